"""The search spaces that ship with autopeft: data, found by name."""
