"""The README and the pages of docs/ are true: their code runs, their commands exist, their files are there."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML

from autopeft.cli import main
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import StudySpec, make_study

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GRAMMAR = ROOT / "search_spaces" / "README.md"
PAGES = (
    README,
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    GRAMMAR,
    ROOT / "studies" / "cluster" / "README.md",
)
MAX_README_WORDS = 1_200

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def run_python(page: Path) -> None:
    """Run the Python of a page, from top to bottom."""
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{page.relative_to(ROOT)}, Python block {number}", "exec"), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's Python has run: pages may use what it has written."""
    path = tmp_path_factory.mktemp("docs")
    (path / "studies").symlink_to(ROOT / "studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        run_python(README)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page != README and blocks(page, "python")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_its_python_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_python(page)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MAX_README_WORDS


def commands(page: Path) -> list[list[str]]:
    """Return the words of every autopeft command, up to a comment, a pipe or a redirection."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    calls = [words[1:] for words in lines if words[:1] == ["autopeft"]]
    return [list(itertools.takewhile(lambda word: word not in ("|", ">", "&&"), words)) for words in calls]


@every_page
def test_its_commands_are_understood(page: Path) -> None:
    for name, *arguments in commands(page):
        main.commands[name].make_context(name, arguments)  # raises for an option, a value or a number of arguments


def test_every_command_is_shown_somewhere() -> None:
    assert {words[0] for page in PAGES for words in commands(page)} == set(main.commands)


@every_page
def test_what_its_yaml_says_is_valid(page: Path, tmp_path: Path) -> None:
    """A block has keys of a study, which are tried beside those that every study needs, or is a search space."""
    needed = {"model": "model", "data": "data.csv"}
    for block in blocks(page, "yaml"):
        values = YAML(typ="safe").load(block)
        if set(values) <= set(StudySpec.model_fields):
            make_study({**needed, **values})
        else:
            (tmp_path / "space.yaml").write_text(block, encoding="utf-8")
            SearchSpace.load(tmp_path / "space.yaml")


def test_what_it_says_that_an_estimate_prints_is_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two threads, as on the machine that it was printed on: attention has a workspace for each."""
    page = ROOT / "docs" / "howto" / "budgets.md"
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.chdir(tmp_path)
    (command,) = [words for words in commands(page) if words[0] == "estimate" and "--plot" in words]
    shown = page.read_text(encoding="utf-8").split("--plot memory.png\n```\n\n```text\n")[1].split("```")[0]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert CliRunner().invoke(main, command).output == shown
    finally:
        torch.set_num_threads(n_threads)
    assert (tmp_path / "memory.png").is_file()


@every_page
def test_the_files_it_links_to_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page)):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{target} is not there, as seen from {page.relative_to(ROOT)}"


@every_page
def test_the_files_it_names_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:autopeft|search_spaces|studies|tests)/[\w./-]+)", prose(page)):
        assert (ROOT / name).exists(), f"{name} is not there"


def test_the_makefile_has_the_commands_that_are_named() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {name for page in PAGES for name in re.findall(r"(?m)(?:^|`)make (\w+)", page.read_text("utf-8"))}
    assert {"demo", "test", "docs"} <= named
    for name in named:
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), f"make {name}"
