"""What a search writes, read by plain Optuna and plain Optuna Dashboard in processes that never import autopeft."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from autopeft.spec.trial import Outcome, Segment, SegmentStatus
from tests.bench import Bench, KnownWorker

READ = """
import json, sys
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

study = optuna.load_study(storage=JournalStorage(JournalFileBackend(sys.argv[1])), study_name="test")
trials = [
    {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "constraints": trial.constraints,
        "attributes": trial.user_attrs,
    }
    for trial in study.trials
]
frame = study.trials_dataframe()
assert not [name for name in sys.modules if name.partition(".")[0] == "autopeft"]
answer = {"trials": trials, "names": study.metric_names, "facts": study.user_attrs, "best": len(study.best_trials)}
json.dump({**answer, "columns": [str(column) for column in frame.columns]}, sys.stdout)
"""


def search(bench: Bench) -> None:
    """Run a search in which designs are refused, stopped, fail and train in full."""

    def status(segment: Segment) -> SegmentStatus:
        return SegmentStatus.FAILED if segment.trial % 5 == 4 else SegmentStatus.DONE

    bench.run(KnownWorker(bench.model, status), n_trials=16, limits={"trainable_params": 40_000})


def test_plain_optuna_reads_a_study(bench: Bench) -> None:
    search(bench)
    done = subprocess.run([sys.executable, "-c", READ, str(bench.folder.journal)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    study = json.loads(done.stdout)
    records = bench.store().records()
    assert study["names"] == ["accuracy", "trainable_params"]
    assert study["facts"]["n_refused"]["trainable_params"] > 0
    assert {"params_lora.rank", "user_attrs_summary", "user_attrs_reason"} <= set(study["columns"])
    assert study["best"] > 0
    for record, trial in zip(records, study["trials"], strict=True):
        attributes = trial["attributes"]
        assert attributes["outcome"] == record.outcome.value
        assert attributes["design"] == record.design.to_dict()
        assert attributes["summary"] == record.describe()
        assert attributes["reason"] == record.reason
        assert trial["constraints"] == {"0": record.excess["trainable_params"]}
        assert trial["params"].keys() <= set(bench_parameters(bench))
        assert all(isinstance(value, bool | int | float | str) for value in trial["params"].values())
        if record.outcome is Outcome.COMPLETE:
            assert trial["values"] == [record.scores["accuracy"], record.estimate.trainable_params]


def bench_parameters(bench: Bench) -> list[str]:
    n_layers = bench.model.n_layers
    layers = [f"{kind}.layers{rest}" for kind in ("lora", "adapter") for rest in ("", ".last")]
    numbered = [f"lora.layers.{layer}" for layer in range(n_layers)]
    names = ("lora.use", "lora.rank", "lora.learning_rate", "adapter.use", "adapter.size", "adapter.learning_rate")
    return [*names, *layers, *numbered, "head.learning_rate", "quantization"]


def wait_for(address: str, seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.mark.slow
def test_plain_optuna_dashboard_shows_a_study(bench: Bench) -> None:
    search(bench)
    records = bench.store().records()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), str(bench.folder.journal), "--port", str(port), "--server", "wsgiref", "-q"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            page = wait_for(f"http://127.0.0.1:{port}/api/studies/0")
        finally:
            process.terminate()
    assert page["objective_names"] == ["accuracy", "trainable_params"]
    assert len(page["trials"]) == len(records)
    for record, trial in zip(records, page["trials"], strict=True):
        assert record.describe() in {attribute["value"] for attribute in trial["user_attrs"]}
        note = trial["note"]["body"]
        if record.outcome in (Outcome.FAILED, Outcome.INFEASIBLE, Outcome.STOPPED):
            assert f"**{record.outcome.value}**" in note
            assert " ".join(record.reason.split())[:40] in note
