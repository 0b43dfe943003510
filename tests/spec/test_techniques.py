"""The table of techniques: it is the registry's, and the README shows it."""

from pathlib import Path

from click.testing import CliRunner

from autopeft.cli import main
from autopeft.spec.block import block_class, block_kinds, make_block
from autopeft.spec.design import QUANTIZATIONS
from autopeft.spec.techniques import BASES, combinations_markdown, describe, fields, technique_rows, techniques_markdown

README = Path(__file__).parents[2] / "search_spaces" / "README.md"


def test_the_readme_shows_what_the_code_says() -> None:
    text = README.read_text(encoding="utf-8")
    for table in (techniques_markdown(), combinations_markdown()):
        assert table in text, f"replace the table in {README} by what `autopeft techniques --markdown` prints"


def test_every_kind_has_a_row_and_a_line() -> None:
    assert {row.kind for row in technique_rows()} == set(block_kinds())
    for kind in block_kinds():
        assert describe(kind)
        assert "\n" not in describe(kind)
        own = set(block_class(kind).model_fields) - {"layers"}
        assert own <= set(fields(kind))


def test_a_row_says_what_its_block_conflicts_with() -> None:
    rows = {row.name: row for row in technique_rows()}
    assert set(BASES) == set(QUANTIZATIONS) - {"none"}
    dora = make_block("lora", {"rank": 4, "dora": True})
    assert not rows["lora (dora: true)"].quantizations["int8"]
    assert rows["lora (dora: true)"].reasons == dict(dora.conflicts())
    assert all(rows["lora"].quantizations.values())
    assert "lora (rslora: true)" not in rows, "it answers as LoRA does: no row of its own"


def test_exclusion_is_said_on_both_sides() -> None:
    plain = {row.kind: row for row in technique_rows() if not row.variant}
    for row in plain.values():
        for other in row.not_with:
            assert row.kind in plain[other].not_with


def test_the_command_prints_each_technique_and_each_reason() -> None:
    answer = CliRunner().invoke(main, ["techniques"])
    assert answer.exit_code == 0, answer.output
    for row in technique_rows():
        assert f"\n{row.kind}: {describe(row.kind)}\n" in answer.output
        assert all(reason in answer.output for reason in row.reasons.values())
