"""Every architecture that transformers builds for a task."""
