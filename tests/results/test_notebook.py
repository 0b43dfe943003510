import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from IPython.core.formatters import DisplayFormatter

from autopeft.results.result import SearchResult
from autopeft.spec.trial import Outcome
from tests.results.generated import Builder, language_model, lora


def display(value: Any) -> dict[str, str]:
    """What a notebook gets of a cell's last value."""
    data, _ = DisplayFormatter().format(value)
    return data


@pytest.mark.parametrize("what", ["result", "front"])
def test_a_notebook_shows_a_table_and_a_picture(result: SearchResult, what: str) -> None:
    value = result if what == "result" else result.front
    data = display(value)
    assert data["text/plain"] == repr(value)
    html = data["text/html"]
    for record in result.front:
        assert record.design.describe() in html
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert b64decode(picture).startswith(b"\x89PNG")
    # Viewers take scripts and style sheets out, so that nothing may hang on them.
    assert "<script" not in html
    assert "<style" not in html


def test_the_table_has_the_references_and_reads_right_for_perplexity(build: Builder) -> None:
    html = display(SearchResult(language_model(build)))["text/html"]
    assert "LoRA r=8 on query, value (yardstick)" in html
    assert "no adapter, untrained (base model)" in html
    assert "23.68 ± 0.40" in html
    assert html.count("<tr>") == 1 + 7 + 1  # heading, front (with the yardstick on it), base model


def test_empty_results_show_why_and_texts_are_escaped(build: Builder, tmp_path: Path) -> None:
    empty = display(SearchResult(build.state()))
    assert "12 refused before training" in empty["text/html"]
    build.add(lora(2), params=1000, outcome=Outcome.FAILED, reason="ValueError: <b>")
    assert "ValueError: &lt;b&gt;" in display(SearchResult(build.state()))["text/html"]
    assert "ValueError: &lt;b&gt;" in display(SearchResult(build.state()).front)["text/html"]
