"""The command line: what it prints, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autopeft.cli import main


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


def test_a_dry_run_says_what_would_happen(study_file: Path) -> None:
    code, output = run("search", str(study_file), "--dry-run")
    assert code == 0
    assert "198 designs" in output
    assert "random designs" in output


def test_an_estimate_for_people_and_for_programs(tiny_bert: str) -> None:
    design = '{"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]}'
    code, output = run("estimate", tiny_bert, "--design", design, "--sequence-length", "16")
    assert code == 0
    assert "peak_memory" in output
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


def test_help_names_every_command() -> None:
    output = run("--help")[1]
    for command in ("search", "status", "leaderboard", "report", "export", "estimate", "doctor", "Exit codes"):
        assert command in output
