"""A search from end to end, on a tiny model: what it writes, how it resumes, how it is stopped."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import optuna
import pytest
import torch

import autopeft
from autopeft.errors import StudyMismatchError
from autopeft.spec.event import EventKind
from autopeft.spec.trial import Outcome
from autopeft.study.folder import StudyFolder
from autopeft.tasks.prepare import prepare
from tests.api.conftest import tiny_study
from tests.conftest import started
from tests.tasks.generated import reviews
from tests.token_rows import token_rows


def search(study: dict[str, Any], **changes: Any) -> autopeft.SearchResult:
    result = autopeft.search(**{**study, **changes})
    assert isinstance(result, autopeft.SearchResult)
    return result


@pytest.fixture(scope="module")
def searched(tiny_bert: str, reviews_csv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs of a finished study of one design; tests copy it."""
    study = tiny_study(tiny_bert, reviews_csv, tmp_path_factory.mktemp("searched"), trainable_params="50%")
    search(study, n_trials=1)
    return Path(study["output_dir"])


def test_a_search_answers_with_trained_adapters(study: dict[str, Any], tiny_bert: str) -> None:
    events: list[autopeft.Event] = []
    result = search(study, callbacks=[events.append])
    folder = Path(study["output_dir"]) / "tiny"
    trials = result.state.trials
    assert {t.outcome for t in trials} <= {Outcome.COMPLETE, Outcome.STOPPED, Outcome.INFEASIBLE}
    assert [t.baseline for t in trials[:2]] == ["yardstick", "head"]
    assert len(result.front) >= 1
    assert all(t.value("trainable_params") <= result.state.limits["trainable_params"] for t in result.front)
    for name in ("study.json", "study.journal", "report.html", "front.json", "front.png"):
        assert (folder / name).stat().st_size > 0
    HTMLParser().feed((folder / "report.html").read_text(encoding="utf-8"))
    assert set(result.state.tests) >= {t.number for t in result.front}
    assert {e.kind for e in events} >= {EventKind.STARTED, EventKind.FINISHED}
    assert events[-1].progress.n_started == 6
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    assert {line["worker"] for line in lines if line["event"] == "started"} == {None}
    assert {line["worker"] for line in lines if line["outcome"] == "complete"} == {
        f"{os.getpid()}@{socket.gethostname()}"
    }

    again = autopeft.open(folder)
    assert again.state == result.state
    assert list(again.leaderboard()["number"]) == list(result.leaderboard()["number"])


def test_an_exported_adapter_predicts_what_the_search_saw(
    study: dict[str, Any], tiny_bert: str, tmp_path: Path
) -> None:
    result = search(study, early_stopping="off", n_trials=4)
    data = prepare(
        study["data"],
        model=tiny_bert,
        columns=study["columns"],
        splits=autopeft.Splits(**study["splits"]),
        training=autopeft.Training(**study["training"]),
    )
    split = data.validation
    complete = [t for t in result.state.trials if t.outcome is Outcome.COMPLETE]
    assert len(complete) == 6
    for trial in complete:
        target = tmp_path / f"adapter-{trial.number}"
        result.export(trial, target)
        model, tokenizer = autopeft.load(target)
        assert tokenizer is not None
        model.eval()
        predicted = []
        for row in token_rows(split):
            tokens = torch.from_numpy(row.astype(np.int64))[None]
            with torch.no_grad():
                predicted.append(int(model(input_ids=tokens).logits.argmax()))
        seen = json.loads((result.state.folder / "predictions" / f"validation-{trial.number}.json").read_text())
        agreement = np.mean(np.asarray(predicted) == np.asarray(seen))
        assert agreement >= 0.98, f"{trial.design.describe()}: {agreement}"
        assert np.mean(np.asarray(seen) == split.labels) == pytest.approx(trial.scores["accuracy"])


def test_the_same_call_resumes_and_a_larger_one_goes_on(study: dict[str, Any]) -> None:
    first = search(study, n_trials=3)
    same = search(study, n_trials=3)
    assert same.state == first.state
    more = search(study, n_trials=5)
    assert more.state.trials[: len(first.state.trials)] == first.state.trials
    assert len(started(more.state.trials)) == 5


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"space": {"blocks": {"lora": {"rank": [1, 2, 4]}}}}, "space"),
        ({"splits": {"train": 100, "validation": 60, "test": 60}}, "data"),
        ({"training": {"epochs": 2, "batch_size": 16, "precision": "fp32", "kernel": "sdpa"}}, "training"),
        ({"budget": {"trainable_params": "40%"}}, "budget"),
        ({"objectives": ("macro_f1", "trainable_params")}, "objectives|metric"),
    ],
)
def test_a_changed_study_is_refused(study: dict[str, Any], searched: Path, change: dict[str, Any], what: str) -> None:
    shutil.copytree(searched, study["output_dir"])
    with pytest.raises(StudyMismatchError, match=f"goes on with the ({what}) it began with"):
        search(study, **change)


@pytest.mark.slow
def test_equal_seeds_give_equal_studies(study: dict[str, Any]) -> None:
    def outline(result: autopeft.SearchResult) -> list[object]:
        return [(t.design, t.learning_rates, t.outcome, t.scores, t.rungs) for t in result.state.trials]

    a, b = search(study, study_name="a"), search(study, study_name="b")
    assert outline(a) == outline(b)
    assert outline(search(study, study_name="c", seed=1)) != outline(a)


def test_a_dry_run_trains_nothing(study: dict[str, Any]) -> None:
    answer = autopeft.search(**study, dry_run=True)
    assert isinstance(answer, autopeft.DryRun)
    assert answer.size == 2 * ((1 + 3) * (1 + 2 * 2) * (1 + 4) - 1)
    assert 0 < answer.feasible_share <= 1
    assert answer.predicted_seconds is not None
    assert answer.predicted_seconds > 0
    assert not Path(study["output_dir"]).exists()


def test_data_in_memory_and_objects_instead_of_names(study: dict[str, Any]) -> None:
    frame = reviews(300)
    data = datasets.DatasetDict(
        train=datasets.Dataset.from_pandas(frame[:120], preserve_index=False),
        validation=datasets.Dataset.from_pandas(frame[120:180], preserve_index=False),
        test=datasets.Dataset.from_pandas(frame[180:240], preserve_index=False),
    )
    result = search(
        study,
        data=data,
        splits={},
        columns={},
        space=autopeft.SearchSpace.from_dict(study["space"]),
        budget=autopeft.Budget(trainable_params="50%"),
        training=autopeft.Training(**study["training"]),
        n_trials=2,
    )
    assert len(result.front) >= 1


def test_the_time_limit_is_kept_and_the_rest_resumes(study: dict[str, Any]) -> None:
    short = search(study, n_trials=500, timeout=4)
    assert not any(t.outcome is Outcome.RUNNING for t in short.state.trials)
    n_begun = len(started(short.state.trials))
    assert n_begun < 500, "500 take minutes"
    longer = search(study, n_trials=n_begun + 2)
    assert len(started(longer.state.trials)) == n_begun + 2
    left = {t.number for t in longer.state.trials} - {t.continues for t in longer.state.trials}
    assert not any(t.outcome is Outcome.INTERRUPTED for t in longer.state.trials if t.number in left)


def write_study(study: dict[str, Any], folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(json.dumps(study))  # JSON is YAML
    return path


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autopeft", "search", str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def wait_for_trials(process: subprocess.Popen[str], journal: Path, n: int) -> None:
    """Wait until the journal of a search that runs speaks of `n` trials."""
    for _ in range(3000):
        if journal.is_file() and journal.read_bytes().count(b'"op_code":4') >= n:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no {n} trials in five minutes")


def test_a_killed_search_resumes_without_loss(study: dict[str, Any], tmp_path: Path) -> None:
    study = {**study, "training": {**study["training"], "epochs": 3}, "n_trials": 8}
    path = write_study(study, tmp_path)
    journal = Path(study["output_dir"]) / "tiny" / "study.journal"
    process = start(path)
    wait_for_trials(process, journal, 5)
    process.kill()
    process.communicate()
    complete = [t for t in autopeft.open(journal.parent).state.trials if t.outcome is Outcome.COMPLETE]
    result = search(study)
    trials = result.state.trials
    assert [t.number for t in trials] == list(range(len(trials)))
    assert not any(t.outcome is Outcome.RUNNING for t in trials)
    assert [t for t in trials if t in complete] == complete
    assert len(started(trials)) == 8
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    assert len(optuna.load_study(study_name="tiny", storage=storage).trials) == len(trials)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_a_search_cleanly(study: dict[str, Any], tmp_path: Path, number: signal.Signals) -> None:
    study = {**study, "training": {**study["training"], "epochs": 12}, "n_trials": 30, "early_stopping": "off"}
    path = write_study(study, tmp_path)
    journal = Path(study["output_dir"]) / "other" / "study.journal"
    overrides = ["--set", "study_name=other", "--set", "columns={text: text, label: label}"]
    process = start(path, *overrides)
    wait_for_trials(process, journal, 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert f"resume with: {shlex.join(['autopeft', 'search', str(path), *overrides])}" in output
    trials = autopeft.open(journal.parent).state.trials
    assert not any(t.outcome is Outcome.RUNNING for t in trials)
    cut_short = [t for t in trials if t.outcome is Outcome.INTERRUPTED]
    assert len(cut_short) <= 1
    assert all(StudyFolder(journal.parent).checkpoints.files(t.number) for t in cut_short if t.examples)


def test_out_of_memory_ends_the_trial_not_the_study(study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real trainer meets an allocation that no machine can make, in one trial."""
    from autopeft.training.loop import Trainer

    step, calls = Trainer._step, iter(range(10**6))

    def greedy(self: Trainer, *args: Any) -> Any:
        if next(calls) == 20:
            torch.empty(2**60)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", greedy)
    result = search(study)
    failed = [t for t in result.state.trials if t.outcome is Outcome.OUT_OF_MEMORY]
    assert len(failed) == 1
    assert "see " in failed[0].reason
    assert (result.state.folder / "logs" / f"trial-{failed[0].number}.txt").read_text().startswith("Traceback")
    assert any(t.outcome is Outcome.COMPLETE for t in result.state.trials)


def test_a_diverging_trial_ends_with_its_reason(study: dict[str, Any]) -> None:
    space = {"blocks": {"lora": {"rank": 2, "learning_rate": {"log": [1e30, 1e32]}}}}
    result = search(study, space=space, n_trials=2)
    diverged = [t for t in result.state.trials if not t.baseline]
    assert all(t.outcome is Outcome.FAILED for t in diverged)
    assert all("nan" in t.reason or "inf" in t.reason or "finite" in t.reason for t in diverged)
    for trial in diverged:
        place = re.search(r"at step (\d+) \(example (\d+)\)$", trial.reason)
        assert place is not None, trial.reason
        assert int(place[2]) == 16 * int(place[1]), "of batches of 16"
