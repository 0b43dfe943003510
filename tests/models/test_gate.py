import pytest
import torch
from tiny_models import design, inputs_for, logits
from torch import nn

from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.models.gate import Gate, TokenMask, gate_maker
from autopeft.models.technique import Site

MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])


def learned(width: int, mask: torch.Tensor | None = None, *, causal: bool = False) -> Gate:
    """Return a gate with random weights, in a model that was called with a mask."""
    seen = TokenMask()
    stack = nn.Identity()
    stack.forward = lambda hidden, attention_mask=None: hidden  # type: ignore[assignment, method-assign]
    seen.read(stack, (None, mask), {})
    gate = Gate(width, causal=causal, mask=seen)
    nn.init.normal_(gate.linear.weight)
    nn.init.normal_(gate.linear.bias)
    return gate


def test_it_starts_half_open() -> None:
    assert torch.equal(Gate(8)(torch.randn(2, 5, 8)), torch.full((2, 1, 1), 0.5))
    assert torch.equal(Gate(8, causal=True)(torch.randn(2, 5, 8)), torch.full((2, 5, 1), 0.5))


@pytest.mark.parametrize("mask", [None, MASK])
def test_it_is_the_mean_over_an_example_of_the_sigmoid(mask: torch.Tensor | None) -> None:
    """Mao et al. 2022, section 3.2, one example and one token at a time."""
    gate, hidden = learned(8, mask), torch.randn(2, 5, 8)
    weight, bias = gate.linear.weight[0], gate.linear.bias
    for row in range(2):
        tokens = [hidden[row, t] for t in range(5) if mask is None or mask[row, t]]
        expected = sum(1 / (1 + torch.exp(-(weight @ token + bias))) for token in tokens) / len(tokens)
        torch.testing.assert_close(gate(hidden)[row, 0], expected)


def test_a_prompt_before_the_text_counts() -> None:
    gate, hidden = learned(8, MASK), torch.randn(2, 7, 8)
    longer = learned(8, torch.cat([torch.ones(2, 2), MASK], dim=1))
    longer.load_state_dict(gate.state_dict())
    torch.testing.assert_close(gate(hidden), longer(hidden))


def test_a_mask_of_something_else_is_not_used() -> None:
    gate, plain = learned(8, torch.zeros(2, 9)), learned(8)
    plain.load_state_dict(gate.state_dict())
    hidden = torch.randn(2, 5, 8)
    assert torch.equal(gate(hidden), plain(hidden))


def test_a_token_of_a_decoder_is_told_nothing_of_later_ones() -> None:
    gate, hidden = learned(8, MASK, causal=True), torch.randn(2, 5, 8)
    torch.testing.assert_close(gate(hidden)[:, :3], gate(hidden[:, :3]))
    torch.testing.assert_close(gate(hidden)[0, 1], torch.sigmoid(gate.linear(hidden[0, 1])))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet", "deberta", "llama", "gpt2"])
def test_the_mask_of_a_model_reaches_its_gates(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str
) -> None:
    base = bases[name]
    with attach(base, design()) as attached:
        site = Site(base.model, base.summary, attached._undo)
        gate = gate_maker(site)(0, 32)
        logits(base.model, text)
        assert gate.causal == (name in ("llama", "gpt2"))
        found = gate._mask.of(torch.zeros(3, 9, 32))
        assert found is not None
        assert torch.equal(found, text["attention_mask"])


def test_the_encoder_of_two_stacks_has_the_mask_and_the_decoder_needs_none(bases: dict[str, Base]) -> None:
    base, inputs = bases["t5"], inputs_for("t5")
    with attach(base, design()) as attached:
        new_gate = gate_maker(Site(base.model, base.summary, attached._undo))
        gates = [new_gate(layer, 32) for layer in range(base.summary.n_layers)]
        logits(base.model, inputs)
        assert [gate.causal for gate in gates] == [False, False, True, True]
        found = gates[0]._mask.of(torch.zeros(3, 9, 32))
        assert found is not None
        assert torch.equal(found, inputs["attention_mask"])
