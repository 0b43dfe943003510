"""The README of an exported adapter: what it is, how good, at what cost, how it was found, how to load it."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from ruamel.yaml import YAML

from autopeft.results.summary import count_words
from autopeft.results.wording import MISSING, SERVING, format_interval, format_score, label_words
from autopeft.spec.cost import format_cost, format_limits
from autopeft.spec.state import StudyState, TestScore
from autopeft.spec.task import load_task, task_names
from autopeft.spec.trial import TrialRecord
from autopeft.spec.units import format_seconds
from autopeft.study.folder import ADAPTER_MARK, StudyFolder

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")


def model_card(state: StudyState, record: TrialRecord, description: Mapping[str, Any]) -> str:
    """Return the card of a trained design as Markdown, with what hubs read at its top.

    Paths of the machine are left out: a local model or file is called by its last name.

    Args:
        state: The study that it comes from.
        record: The trial that trained it.
        description: What `autopeft.json` beside the card says.
    """
    base = {"name": _public_name(state.model.name), "hub": _is_hub_id(state.model.name)}
    test = state.tests.get(record.number)
    stock = description["format"] == "peft"
    return _template().render(
        state=state,
        record=record,
        stock=stock,
        pad_token_id=description.get("base_model", {}).get("pad_token_id"),
        serving=SERVING[record.estimate.serving],
        base=base,
        tested=test is not None,
        scores=[_score_row(record, test, name) for name in record.scores],
        costs=_cost_rows(record),
        data={
            "name": _data_name(state.spec.data),
            "rows": ", ".join(
                f"{state.facts[f'n_{split}']:,} {split}"
                for split in ("train", "validation", "test")
                if f"n_{split}" in state.facts
            ),
            "fingerprint": description["metadata"].get("data_fingerprint", "not known"),
        },
        rates=", ".join(f"{name} {rate:.2g}" for name, rate in sorted(record.learning_rates.items())),
        counts=count_words(state),
        space=f"`{_public_name(state.spec.space)}`" if isinstance(state.spec.space, str) else "given with the study",
        budget=format_limits(state.limits, state.spec.budget),
        versions=", ".join(f"{name} {version}" for name, version in state.facts.get("versions", {}).items()),
        front_matter=_yaml(_front_matter(state, record, test, stock=stock)),
    )


def write_card(state: StudyState, record: TrialRecord, folder: Path) -> None:
    """Write the card of the adapter in `folder`, and the scores on the test split into its `autopeft.json`."""
    study, file = StudyFolder(state.folder), folder / ADAPTER_MARK
    description = json.loads(file.read_text(encoding="utf-8"))
    test = state.tests.get(record.number)
    if test is not None and description["metadata"].get("test") != test.scores:
        description["metadata"]["test"] = dict(test.scores)
        study.write(file, json.dumps(description, indent=2, sort_keys=True).encode())
    study.write(folder / "README.md", model_card(state, record, description).encode())


def _front_matter(state: StudyState, record: TrialRecord, test: TestScore | None, *, stock: bool) -> dict[str, Any]:
    """Return what hubs read; a local base has no place there, and neither has a licence without an identifier."""
    task = state.spec.task
    pipeline = load_task(task).pipeline_tag if task in task_names() else task
    licence = str(state.facts.get("licence") or "")
    split, scores = ("validation", record.scores) if test is None else ("test", test.scores)
    return {
        **({"base_model": state.model.name} if _is_hub_id(state.model.name) else {}),
        "library_name": "peft" if stock else "autopeft",
        **({"license": licence} if _LICENCE_ID.fullmatch(licence) else {}),
        "pipeline_tag": pipeline,
        "tags": ["autopeft", *record.design.kinds],
        "model-index": [
            {
                "name": f"{state.spec.study_name}-{record.number}",
                "results": [
                    {
                        "task": {"type": pipeline},
                        "dataset": {"name": _data_name(state.spec.data), "type": "custom", "split": split},
                        "metrics": [{"type": name, "value": round(value, 4)} for name, value in scores.items()],
                    }
                ],
            }
        ],
    }


def _score_row(record: TrialRecord, test: TestScore | None, name: str) -> list[str]:
    cells = [
        [format_score(source.scores, source.standard_errors, name), format_interval(*_of(source), name)]
        for source in (record, test)
        if source is not None
    ]
    return [
        label_words(name),
        *(cell or MISSING for pair in cells for cell in pair),
        *[MISSING] * (2 if test is None else 0),
    ]


def _of(source: TrialRecord | TestScore) -> tuple[Mapping[str, float], Mapping[str, float]]:
    return source.scores, source.standard_errors


def _cost_rows(record: TrialRecord) -> list[list[str]]:
    estimate, peak = record.estimate, record.measured.peak_memory
    head = f", of which {estimate.head_params:,} in new modules" if estimate.head_params else ""
    return [
        ["trainable parameters", f"{estimate.trainable_params:,}{head}", "exact"],
        ["peak memory", _cost(record, "peak_memory"), MISSING if peak is None else format_cost("peak_memory", peak)],
        ["training compute", f"{_cost(record, 'train_flops')}", MISSING],
        ["inference compute per example", f"{_cost(record, 'inference_flops')}", MISSING],
        ["size on disk", _cost(record, "adapter_bytes"), MISSING],
    ]


def _cost(record: TrialRecord, name: str) -> str:
    return format_cost(name, record.estimate.cost(name))


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _public_name(name: str) -> str:
    return name if _is_hub_id(name) else Path(name).name


def _data_name(data: str) -> str:
    """Return a hub id as it is, and of a path the last name."""
    return data if data.startswith("<") or _is_hub_id(data.partition(":")[0]) else Path(data).name


def _yaml(values: Mapping[str, Any]) -> str:
    text = StringIO()
    YAML(typ="rt", pure=True).dump(dict(values), text)
    return text.getvalue()


@cache
def _template() -> Template:
    environment = Environment(  # Markdown: there is nothing to escape
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(json=json.dumps, seconds=format_seconds)
    return environment.from_string(files("autopeft.results").joinpath("model_card.md").read_text(encoding="utf-8"))
