"""The losses of a language model against plain torch, token by token."""

import math

import pytest
import torch

from autopeft.models import losses
from autopeft.models.losses import IGNORED, token_loss, token_rows

N_VOCABULARY = 13


def batch(n_prompt: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, with positions of a prompt before the tokens', and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, n_prompt + 7, N_VOCABULARY, generator=generator) * 3).to(dtype)
    labels = torch.randint(0, N_VOCABULARY, (3, 7), generator=generator)
    labels[:, 0] = IGNORED
    labels[0, 1:4] = IGNORED
    labels[2, 5:] = IGNORED
    return logits, labels


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> list[list[tuple[float, bool]]]:
    """The oracle: each target token's negative log-likelihood given what stands before it, and whether it is right."""
    n_prompt = logits.shape[1] - labels.shape[1]
    examples = []
    for row in range(len(labels)):
        tokens = []
        for at in range(1, labels.shape[1]):
            token = int(labels[row, at])
            if token != IGNORED:
                scores = logits[row, n_prompt + at - 1].double().tolist()
                total = math.log(sum(math.exp(score) for score in scores))
                tokens.append((total - scores[token], max(range(len(scores)), key=scores.__getitem__) == token))
        examples.append(tokens)
    return examples


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
@pytest.mark.parametrize("n_prompt", [0, 4])
def test_the_loss_is_the_mean_over_target_tokens(n_prompt: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    logits, labels = batch(n_prompt)
    expected = [loss for tokens in by_hand(logits, labels) for loss, _ in tokens]
    assert float(token_loss(logits, labels)) == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
@pytest.mark.parametrize("n_prompt", [0, 4])
def test_the_gradient_is_the_one_of_plain_cross_entropy(
    n_prompt: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    logits, labels = batch(n_prompt)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (token_loss(ours * 2, labels) * 3).backward()
    chosen = (plain * 2)[:, n_prompt:][:, :-1].flatten(0, 1)
    (torch.nn.functional.cross_entropy(chosen, labels[:, 1:].flatten()) * 3).backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-6)


@pytest.mark.parametrize("n_prompt", [0, 4])
def test_rows_are_sums_over_the_target_tokens_of_each_example(n_prompt: int) -> None:
    logits, labels = batch(n_prompt)
    for example in range(3):  # make some tokens right
        logits[example, n_prompt + 3, int(labels[example, 4])] += 20
    rows = token_rows(logits, labels)
    expected = [
        [sum(loss for loss, _ in tokens), sum(right for _, right in tokens)] for tokens in by_hand(logits, labels)
    ]
    assert torch.allclose(rows, torch.tensor(expected), rtol=1e-5)
    assert rows[:, 1].sum() >= 3


def test_reduced_precision_is_summed_in_fp32() -> None:
    logits, labels = batch(dtype=torch.bfloat16)
    exact = token_rows(logits.float(), labels)
    assert torch.allclose(token_rows(logits, labels), exact, rtol=1e-6)
    assert float(token_loss(logits, labels)) == pytest.approx(float(token_loss(logits.float(), labels)), rel=1e-6)


def test_what_is_not_to_be_predicted_may_be_anything_and_what_is_may_not() -> None:
    logits, labels = batch()
    clean = float(token_loss(logits, labels))
    logits[0, 0] = float("nan")  # predicts an ignored token
    logits[1, -1] = float("nan")  # predicts what comes after the last one
    logits.requires_grad_()
    loss = token_loss(logits, labels)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(clean)
    assert torch.isfinite(logits.grad).all()
    logits = logits.detach()
    assert token_rows(logits, labels).isfinite().all()
    logits[1, 2] = float("nan")
    assert token_rows(logits, labels).isnan().all(dim=1).tolist() == [False, True, False]


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    logits, labels = batch()
    logits.requires_grad_()
    loss = token_loss(logits, torch.full_like(labels, IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not logits.grad.any()
