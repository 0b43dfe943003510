"""What is computed from the logits of a language model, without ever holding a second copy of them in fp32.

A vocabulary makes logits the largest tensor of a step. Training and its dry run call the same functions, so
that both make and drop the same tensors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional

IGNORED = -100
"""Label of a token that is not to be predicted; what torch's losses ignore by default."""
CHUNK_ELEMENTS = 2**22
"""Logits that are turned into fp32 probabilities at a time: 16 MiB."""

_FEW_PIECES = ContextVar("few_pieces", default=False)


@contextmanager
def few_pieces() -> Iterator[None]:
    """Compute only the first two pieces and the last one of a loss inside: a dry run's, all of which do the same."""
    token = _FEW_PIECES.set(True)
    try:
        yield
    finally:
        _FEW_PIECES.reset(token)


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over all target tokens of a batch, in fp32; 0 where there is none.

    Keeps one tensor of the logits' size and dtype for the backward pass, where `cross_entropy` of fp32
    logits keeps or makes three in fp32.

    Args:
        logits: [batch, position, vocabulary]; where there are more positions than tokens (a prompt stands
            before them), the last ones are the tokens'.
        labels: [batch, token], the token itself where it must be predicted from those before it, and
            `IGNORED` elsewhere.
    """
    loss: torch.Tensor = _TokenLoss.apply(_of_tokens(logits, labels).flatten(0, 1), _next(labels).flatten())  # type: ignore[no-untyped-call]
    return loss


def token_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return two numbers for each example: the summed negative log-likelihood of its targets, and how many are right.

    Args:
        logits: As for `token_loss`; no gradient is kept.
        labels: As for `token_loss`.

    Returns:
        [batch, 2], fp32; NaN where a logit of a target token is not finite.
    """
    rows = []
    for of_example, targets in zip(_of_tokens(logits, labels), _next(labels), strict=True):
        losses = _negative_log_likelihood(of_example, targets, reduction="none")
        is_target = targets != IGNORED
        right = (of_example.argmax(dim=-1) == targets) & is_target
        rows.append(torch.stack([losses.sum(), right.sum().to(losses.dtype)]))
    stacked = torch.stack(rows)
    return stacked.masked_fill(~stacked.isfinite().all(dim=-1, keepdim=True), float("nan"))


def _of_tokens(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits[:, -labels.shape[1] :]


def _next(labels: torch.Tensor) -> torch.Tensor:
    """Return the label of the token after each: the labels are shifted, because shifted logits would be a copy."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _starts(n_rows: int, n_at_a_time: int) -> Sequence[int]:
    starts = range(0, n_rows, n_at_a_time)
    return (*starts[:2], starts[-1]) if _FEW_PIECES.get() and len(starts) > 2 else starts


def _negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor, *, reduction: str) -> torch.Tensor:
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return functional.nll_loss(log_probabilities, targets, ignore_index=IGNORED, reduction=reduction)


class _TokenLoss(torch.autograd.Function):
    """Mean cross-entropy of logits [token, vocabulary] whose gradient is made in the forward pass, piece by piece."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        n_targets = (targets != IGNORED).sum().clamp(min=1)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        n_rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
        for start in _starts(logits.shape[0], n_rows):
            piece = slice(start, start + n_rows)
            is_target = (targets[piece] != IGNORED)[:, None]
            chosen = targets[piece, None].clamp(min=0)
            scores = torch.log_softmax(logits[piece], dim=-1, dtype=torch.float32)
            # A sum without the others, not times zero: what is not to be predicted may be infinite.
            total -= scores.gather(1, chosen).masked_fill_(~is_target, 0.0).sum()
            if gradient is not None:
                scores.exp_()
                scores.scatter_add_(1, chosen, torch.full_like(chosen, -1, dtype=scores.dtype))
                gradient[piece] = scores.div_(n_targets).masked_fill_(~is_target, 0.0)
            del scores  # before the next piece is made
        ctx.gradient = gradient
        return total / n_targets

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0]), None
