"""The command line: what it prints, and how it ends."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import autopeft
from autopeft.cli import main
from autopeft.spec.trial import Outcome
from autopeft.study.folder import StudyFolder
from autopeft.training.loop import Trainer


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture
def study_file(study: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study))
    return path


def test_a_study_from_search_to_export(study: dict[str, Any], study_file: Path, tmp_path: Path) -> None:
    folder = str(Path(study["output_dir"]) / "tiny")
    code, output = run("search", str(study_file), "--set", "n_trials=3", "--set", "training.batch_size=8")
    assert code == 0, output
    for expected in ("120 train, 60 validation, 60 test", "budget  trainable_params", "report.html", "head only"):
        assert expected in output
    assert run("status", folder)[0] == 0
    code, output = run("leaderboard", folder, "--csv")
    assert output.splitlines()[0].startswith("number,design,outcome")
    assert len(output.splitlines()) >= 6
    assert "head only" in run("leaderboard", folder)[1]
    assert run("report", folder, "--output", str(tmp_path / "r.html"))[0] == 0
    assert (tmp_path / "r.html").is_file()
    code, output = run("export", folder, str(tmp_path / "adapter"), "--within", "1se")
    assert code == 0, output
    assert (tmp_path / "adapter" / "autopeft.json").is_file()
    code, output = run("export", folder, str(tmp_path / "adapter"))
    assert code == 2
    assert "error:" in output


def test_a_hint_repeats_the_whole_command(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autopeft.api.run_study", interrupt)
    command = [
        "search",
        str(study_file),
        "--set",
        "study_name=other",
        "--set",
        "columns={text: my text}",
        "--workers=2",
    ]
    code, output = run(*command)
    assert code == 130
    assert output.splitlines()[-1] == f"interrupted; resume with: {shlex.join(['autopeft', *command])}"
    assert shlex.split(output.splitlines()[-1])[-7:] == command


def test_a_place_that_cannot_be_written_is_one_line(study_file: Path, tmp_path: Path) -> None:
    for output_dir, said in (("x" * 300, "at most 255 bytes"), (str(study_file), "is a file, or below one")):
        code, output = run("search", str(study_file), "--set", f"output_dir={output_dir}")
        assert code in (2, 6)
        assert said in output.splitlines()[-1] or said in output.splitlines()[-2]
    code, output = run("status", "x" * 300)
    assert code == 2
    assert "at most 255 bytes" in output
    code, output = run("predict", str(tmp_path), "--data", str(study_file), "--output", "x" * 300 + ".csv")
    assert code == 2
    assert "at most 255 bytes" in output


def test_a_dry_run_says_what_would_happen(study_file: Path) -> None:
    code, output = run("search", str(study_file), "--dry-run")
    assert code == 0
    assert "198 designs" in output
    assert "random designs" in output


def test_an_estimate_for_people_and_for_programs(tiny_bert: str) -> None:
    design = '{"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]}'
    code, output = run("estimate", tiny_bert, "--design", design, "--sequence-length", "16")
    assert code == 0
    assert "peak memory" in output
    code, output = run("estimate", tiny_bert, "--design", design, "--sequence-length", "16", "--json")
    values = json.loads(output)
    assert values["trainable_params"] - values["head_params"] == 2 * (2 * 32 + 2 * 32)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "none.yaml"], 2, "none.yaml"),
        (["search", "{study}", "--set", "n_trails=3"], 2, "did you mean 'n_trials'"),
        (["search", "{study}", "--set", "budget.trainable_params=70"], 3, "raise budget.trainable_params"),
        (["status", "nowhere"], 2, "study.json"),
        (["estimate", "{model}", "--design", "{"], 2, "must be JSON"),
        (["estimate", "{model}", "--design", "none.json"], 2, "none.json"),
        (["estimate", "nothing/here", "--design", "{}"], 2, "nothing/here"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, message: str, study_file: Path, tiny_bert: str
) -> None:
    filled = [a.replace("{study}", str(study_file)).replace("{model}", tiny_bert) for a in arguments]
    got, output = run(*filled)
    assert got == code, output
    assert message in output
    assert "Traceback" not in output


def test_the_doctor_finds_this_machine_well() -> None:
    code, output = run("doctor")
    assert code == 0, output
    assert "gradients pass" in output
    assert re.search(r"^ok +precision: made for (fp32|bf16): a step in bf16 takes [\d.e+]+ times as long", output, re.M)


def test_help_names_every_command() -> None:
    output = run("--help")[1]
    for command in ("search", "status", "leaderboard", "report", "export", "estimate", "doctor", "Exit codes"):
        assert command in output


def test_a_design_in_reach_but_none_in_time_is_exit_code_4(study_file: Path) -> None:
    code, output = run("search", str(study_file), "--set", "timeout=0.01")
    assert code == 4, output
    assert "no design trained in full" in output


# Exit code 130, of a real signal, is in test_search.py.


def test_trial_after_trial_that_fails_is_exit_code_5(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Trainer, *_: Any) -> Any:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(Trainer, "_step", broken)
    code, output = run("search", str(study_file), "--set", "n_trials=8")
    assert code == 5, output
    assert "trials in a row failed" in output
    assert "the device is on fire" in output


STATUS_KEYS = [
    *("study", "task", "metric", "running", "n_trials", "n_started", "outcomes", "n_refused", "n_front", "best"),
    *("n_tested", "memory_error"),
]
LEADERBOARD_KEYS = {
    *("number", "design", "outcome", "front", "accuracy", "accuracy_se", "test_accuracy", "test_accuracy_se"),
    *("trainable_params", "peak_memory", "train_flops", "inference_flops", "adapter_bytes", "measured_peak_memory"),
    *("train_seconds", "examples_share", "serving", "excess", "reason", "baseline"),
}


def test_what_programs_read(study: dict[str, Any], study_file: Path) -> None:
    """Scripts depend on these keys: add some, and change none."""
    folder = str(Path(study["output_dir"]) / "tiny")
    assert run("search", str(study_file), "--set", "n_trials=4")[0] == 0
    result = autopeft.open(folder)
    values = json.loads(run("status", folder, "--json")[1])
    assert list(values) == STATUS_KEYS
    assert list(values["outcomes"]) == [outcome.value for outcome in Outcome]
    assert values["running"] is False
    assert (values["n_started"], values["n_front"], values["n_tested"]) == (
        4,
        len(result.front),
        len(result.state.tests),
    )
    assert values["best"] == max(t.scores["accuracy"] for t in result.front)
    rows = json.loads(run("leaderboard", folder, "--json")[1])
    assert set(rows[0]) >= LEADERBOARD_KEYS
    for row, expected in zip(rows, result.leaderboard().to_dict(orient="records"), strict=True):
        for name, value in expected.items():
            missing = isinstance(value, float) and not math.isfinite(value)
            assert row[name] is None if missing else row[name] == pytest.approx(value), name
    untested = [row for row in rows if row["test_accuracy"] is None]
    assert len(untested) == len(rows) - values["n_tested"]


def test_the_status_says_whether_a_search_is_running(study: dict[str, Any], study_file: Path) -> None:
    folder = Path(study["output_dir"]) / "tiny"
    assert run("search", str(study_file), "--set", "n_trials=1", "--set", "yardstick=null")[0] == 0
    assert "No search is running: 1 of 1 designs have started training." in run("status", str(folder))[1]
    search = StudyFolder(folder)
    search.acquire()
    try:
        assert "A search is running: 1 of 1" in run("status", str(folder))[1]
        assert json.loads(run("status", str(folder), "--json")[1])["running"] is True
        code, output = run("clean", str(folder))
        assert code == 2
        assert "one search at a time" in output
        assert run("clean", str(folder), "--dry-run")[0] == 0
    finally:
        search.release()


def test_a_cleaned_study_goes_on_as_if_nothing_had_gone(
    study: dict[str, Any], study_file: Path, tmp_path: Path
) -> None:
    folder = Path(study["output_dir"]) / "tiny"
    assert run("search", str(study_file), "--set", "n_trials=4")[0] == 0
    before = autopeft.open(folder).state
    code, would = run("clean", str(folder), "--adapters", "--dry-run")
    assert code == 0
    files = {path for path in folder.rglob("*") if path.is_file()}
    n_bytes = sum(path.stat().st_size for path in files)
    journal = (folder / "study.journal").read_bytes()
    code, output = run("clean", str(folder), "--adapters")
    assert code == 0, output
    assert output.splitlines()[-1].split()[:2] == would.splitlines()[-1].split()[:2]
    left = {path for path in folder.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in left) < n_bytes
    assert {path.parts[len(folder.parts)] for path in files - left} <= {"checkpoints", "adapters"}
    assert (folder / "study.journal").read_bytes() == journal
    assert run("clean", str(folder), "--adapters")[1].split() == ["0", "B", "freed"]

    assert run("search", str(study_file), "--set", "n_trials=7")[0] == 0
    after = autopeft.open(folder)
    assert after.state.trials[: len(before.trials)] == before.trials
    assert {trial.number for trial in after.front} <= set(after.state.tests)
    assert run("export", str(folder), str(tmp_path / "best"))[0] == 0
    model, _ = autopeft.load(tmp_path / "best")
    assert model is not None


def complete(*words: str) -> list[str]:
    """Return what bash would offer for the last word."""
    done = subprocess.run(
        [sys.executable, "-m", "autopeft"],
        env={
            **os.environ,
            "_AUTOPEFT_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("autopeft", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


def test_shells_complete_commands_paths_and_keys() -> None:
    done = subprocess.run(
        ["bash", "-c", 'eval "$1"; complete -p autopeft', "bash", run("completion", "bash")[1]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_autopeft_completion" in done.stdout
    for shell in ("zsh", "fish"):
        assert "_AUTOPEFT_COMPLETE" in run("completion", shell)[1]
    help_text = run("completion", "--help")[1]
    assert "source ~/.autopeft-complete.bash" in help_text
    assert complete("cl") == ["plain,clean"]
    assert complete("status", "ru") == ["dir,ru"]
    assert complete("search", "stu") == ["file,stu"]
    assert complete("predict", "adapter", "--data", "new") == ["file,new"]
    assert "plain,training.batch_size=" in complete("search", "study.yaml", "--set", "training.b")
    assert "plain,budget.peak_memory=" in complete("search", "study.yaml", "--set", "budget")
    assert complete("search", "study.yaml", "--set", "n_tri") == ["plain,n_trials="]
