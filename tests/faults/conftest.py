"""The tiny study of a whole search, for the faults that need a model."""

from tests.api.conftest import reviews_csv, study, tiny_bert

__all__ = ["reviews_csv", "study", "tiny_bert"]
