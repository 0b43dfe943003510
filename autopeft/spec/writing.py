"""How much a language model writes when its samples are asked for."""

N_SAMPLES = 4
"""Prompts, which are one batch."""
MAX_NEW_TOKENS = 48
"""Tokens that are written after each."""


def n_new_tokens(n_positions: int | None) -> int:
    """Return how many tokens are written at most: where positions are few, half of them are left to the prompt.

    Args:
        n_positions: Of the model; None where they have no end.
    """
    return MAX_NEW_TOKENS if n_positions is None else max(1, min(MAX_NEW_TOKENS, n_positions // 2))
