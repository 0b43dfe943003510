"""Fixtures of a search without training."""

from tests.bench import bench

__all__ = ["bench"]
