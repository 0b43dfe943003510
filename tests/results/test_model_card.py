"""The model card: what hubs read, what people read, and no paths of this machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from autopeft.results.comparison import interval
from autopeft.results.model_card import model_card
from autopeft.results.result import SearchResult
from autopeft.spec.objective import find_objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from tests.results.generated import Builder, fill

DESCRIPTION = {"format": "autopeft", "metadata": {"data_fingerprint": "f00d"}}


def front_matter(card: str) -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(card.split("---\n")[1]))


def test_hubs_find_the_base_the_licence_and_the_scores(state: StudyState) -> None:
    state = replace(state, facts={**state.facts, "licence": "apache-2.0"})
    record = state.trials[4]
    values = front_matter(model_card(state, record, DESCRIPTION))
    assert values["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert values["license"] == "apache-2.0"
    assert values["library_name"] == "autopeft"
    assert values["pipeline_tag"] == "text-classification"
    assert set(values["tags"]) == {"autopeft", "adapter", "lora"}
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["accuracy"] == round(state.tests[4].scores["accuracy"], 4)
    assert front_matter(model_card(state, record, {**DESCRIPTION, "format": "peft"}))["library_name"] == "peft"


def test_hubs_get_no_local_base_and_no_unknown_licence(state: StudyState, tmp_path: Path) -> None:
    local = replace(state.model, name=str(tmp_path))
    for licence in (None, "Some Licence, all rights reserved"):
        odd = replace(state, model=local, facts={**state.facts, "licence": licence})
        card = model_card(odd, odd.trials[4], DESCRIPTION)
        assert not {"base_model", "license"} & set(front_matter(card))
        assert f"Licence: {licence or 'not stated'}." in card
        assert 'base_model="path/to/the/base"' in card


def test_no_path_of_this_machine_is_in_a_card(state: StudyState, tmp_path: Path) -> None:
    spec = state.spec.model_copy(update={"data": str(tmp_path / "private.csv"), "space": str(tmp_path / "mine.yaml")})
    moved = replace(state, spec=spec, model=replace(state.model, name=str(tmp_path)))
    card = model_card(moved, moved.trials[4], DESCRIPTION)
    assert str(tmp_path) not in card
    assert str(state.folder) not in card
    for name in ("private.csv", "mine.yaml", tmp_path.name):
        assert name in card


def test_people_read_scores_with_intervals_costs_and_how_it_was_found(state: StudyState) -> None:
    record = state.trials[4]
    card = model_card(state, record, DESCRIPTION)
    for source in (record, state.tests[4]):
        low, high = interval(source.scores["accuracy"], source.standard_errors["accuracy"], find_objective("accuracy"))
        assert f"| {low:.3f} to {high:.3f} |" in card
    assert f"{record.estimate.trainable_params:,}, of which {record.estimate.head_params:,} in new modules" in card
    assert json.dumps(record.design.to_dict()) in card
    for words in (
        "9,000 train",
        "`f00d`",
        "classes: bad, good",
        "Splits were made by group film",
        "12 complete, 3 stopped, 2 infeasible, 1 failed, 1 out of memory",
        "search space: `hybrid`",
        "seed: 0",
        "torch 2.13.0",
        "One training seed",
        'autopeft.load("path/to/this/folder")',
        "autopeft predict path/to/this/folder --data new.csv",
    ):
        assert words in card, words


def test_a_design_without_a_test_score_says_so(state: StudyState) -> None:
    record = next(t for t in state.trials if t.outcome is Outcome.COMPLETE and t.number not in state.tests)
    card = model_card(state, record, DESCRIPTION)
    assert "was not checked on a test split" in card
    (result,) = front_matter(card)["model-index"][0]["results"]
    assert result["dataset"]["split"] == "validation"


@pytest.fixture
def own(build: Builder) -> SearchResult:
    """Return the result of a study that may be written to."""
    return SearchResult(fill(build).state())


def test_saving_writes_a_card_beside_every_adapter(own: SearchResult) -> None:
    gone = own.state.folder / "adapters" / "5" / "autopeft.json"
    gone.unlink()
    own.save()
    complete = {t.number for t in own.state.trials if t.outcome is Outcome.COMPLETE}
    cards = {int(card.parent.name) for card in own.state.folder.glob("adapters/*/README.md")}
    assert cards == complete - {5}
    described = json.loads((own.state.folder / "adapters" / "4" / "autopeft.json").read_text())
    assert described["metadata"]["test"] == own.state.tests[4].scores


def test_an_export_has_a_fresh_card_and_leaves_the_study_as_it_was(own: SearchResult, tmp_path: Path) -> None:
    before = (own.state.folder / "adapters" / "4" / "autopeft.json").read_bytes()
    target = own.export(4, tmp_path / "export")
    assert (own.state.folder / "adapters" / "4" / "autopeft.json").read_bytes() == before
    assert own.state.trials[4].design.describe() in (target / "README.md").read_text()
    assert json.loads((target / "autopeft.json").read_text())["metadata"]["test"] == own.state.tests[4].scores
    assert {path.name for path in target.iterdir()} == {"autopeft.json", "README.md", "adapter_model.safetensors"}
