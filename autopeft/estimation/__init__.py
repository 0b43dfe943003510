"""Cost before training: a dry run of the real adapted model on tensors without data."""
