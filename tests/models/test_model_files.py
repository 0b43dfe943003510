"""What a model's folder says of itself."""

from pathlib import Path

import pytest

from autopeft.models.model_files import find_licence

CARDS = {
    "an identifier": ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
    "another licence": ("---\nlicense: other\nlicense_name: llama3.2\ndate: 2026-01-01\n---\n", "llama3.2"),
    "several": ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
    "none": ("---\nlanguage: en\n---\nlicense: mit\n", None),
    "no front matter": ("# Model\n\n---\nlicense: mit\n---\n", None),
    "broken front matter": ("---\nlicense: [mit\n---\n", None),
    "open front matter": ("---\nlicense: mit\n", None),
}


@pytest.mark.parametrize("card", CARDS)
def test_the_licence_is_what_the_card_states(card: str, tmp_path: Path) -> None:
    text, licence = CARDS[card]
    (tmp_path / "README.md").write_text(text)
    assert find_licence(tmp_path) == licence


def test_the_licence_file_speaks_where_the_card_does_not(tmp_path: Path) -> None:
    assert find_licence(tmp_path) is None
    (tmp_path / "LICENSE.txt").write_text("\n  MIT License\n\nCopyright ...")
    (tmp_path / "README.md").write_text("# Model")
    assert find_licence(tmp_path) == "MIT License"
    (tmp_path / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    assert find_licence(tmp_path) == "bsd-3-clause"


def test_the_licence_of_a_real_model(minilm: str) -> None:
    assert find_licence(Path(minilm)) == "apache-2.0"
