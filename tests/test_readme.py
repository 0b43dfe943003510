"""The README is true: its Python runs, its commands exist, its files are there."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from autopeft.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run from top to bottom in one folder: a later one may use what an earlier one has written."""
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(blocks("python"), start=1):
        exec(compile(code, f"README.md, Python block {number}", "exec"), {})


def commands() -> list[list[str]]:
    """Return the words of every autopeft command, up to a comment, a pipe or a redirection."""
    lines = [shlex.split(line, comments=True) for block in blocks("console") for line in block.splitlines()]
    calls = [words[1:] for words in lines if words[:1] == ["autopeft"]]
    return [list(itertools.takewhile(lambda word: word not in ("|", ">", "&&"), words)) for words in calls]


def test_its_commands_are_understood() -> None:
    assert {words[0] for words in commands()} == set(main.commands)
    for name, *arguments in commands():
        main.commands[name].make_context(name, arguments)  # raises for an option, a value or a number of arguments


def test_what_it_says_that_an_estimate_prints_is_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two threads, as on the machine that it was printed on: attention has a workspace for each."""
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.chdir(tmp_path)
    (command,) = [words for words in commands() if words[0] == "estimate" and "--plot" in words]
    shown = README.split("--plot memory.png\n```\n\n```text\n")[1].split("```")[0]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert CliRunner().invoke(main, command).output == shown
    finally:
        torch.set_num_threads(n_threads)
    assert (tmp_path / "memory.png").is_file()


def test_the_files_it_names_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_makefile_has_its_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"^make (\w+)", blocks("console")[0], flags=re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE)
