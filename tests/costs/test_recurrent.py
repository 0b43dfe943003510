"""An LSTM's memory on a CPU, against what the allocator gave oneDNN."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autopeft.costs import recurrent
from autopeft.costs.kernels import replacements, scratch_formulas
from autopeft.costs.recurrent import has_lstm
from autopeft.errors import DesignError
from tests import hardware
from tests.costs.real_run import allocated_peak, counted

FORWARD, BACKWARD = torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten.mkldnn_rnn_layer_backward
LSTM = 2
"""What torch calls it among its recurrent layers."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_steps", "n_features", "n_hidden"), [(16, 384, 384), (64, 768, 384), (10, 576, 288)])
def test_an_lstm_takes_what_the_allocator_gave_it(
    n_steps: int, n_features: int, n_hidden: int, dtype: torch.dtype
) -> None:
    hardware.require(has_lstm(dtype), f"an LSTM kernel for {dtype} (AVX512)")
    weights = [weight.detach() for weight in torch.nn.LSTM(n_features, n_hidden).to(dtype)._flat_weights]
    read, state = torch.randn(n_steps, 1, n_features, dtype=dtype), torch.zeros(1, n_hidden, dtype=dtype)
    start, settings = (read, *weights, state, state), (LSTM, n_hidden, 1, True)
    arguments = (*start, False, [], *settings, False, False, True)
    made = FORWARD(*arguments)
    output, hidden, cell, workspace = made
    back = (*start[:5], state, state, output, hidden, cell, torch.ones_like(output), None, None)
    back = (*back, False, *settings, True, False, [], False, workspace)

    foretold = replacements()[FORWARD](*arguments)
    assert [(t.shape, t.dtype) for t in foretold[:3]] == [(t.shape, t.dtype) for t in made[:3]]
    assert foretold[3].nbytes == pytest.approx(workspace.nbytes, abs=4096)  # a page
    scratch = scratch_formulas("cpu", n_threads=torch.get_num_threads())
    results = {gradient.untyped_storage()._cdata: gradient.nbytes for gradient in BACKWARD(*back)}
    forward = sum(t.nbytes for t in made) + scratch[FORWARD](*arguments)
    backward = sum(results.values()) + scratch[BACKWARD](*back)
    assert forward == pytest.approx(allocated_peak(lambda: FORWARD(*arguments)), rel=0.02)
    assert backward == pytest.approx(allocated_peak(lambda: BACKWARD(*back)), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_lstm_that_a_step_would_fail_in_is_refused_before(dtype: torch.dtype) -> None:
    """Autocast gives an LSTM's kernel bf16 on any processor, whether or not it has one."""
    lstm = torch.nn.LSTM(4, 4)
    read = torch.zeros(2, 1, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        try:
            lstm(read)
        except RuntimeError:
            assert not has_lstm(dtype)
        else:
            assert has_lstm(dtype)


def test_a_dry_run_says_which_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "has_lstm", lambda dtype: dtype != torch.bfloat16)
    weights = [weight.detach() for weight in torch.nn.LSTM(4, 4)._flat_weights]
    formula = scratch_formulas("cpu", n_threads=1)[FORWARD]
    assert formula(torch.zeros(2, 1, 4), *weights) > 0
    with pytest.raises(DesignError, match=r"an LSTM in bfloat16 needs a kernel .*; set training\.precision to fp32"):
        formula(torch.zeros(2, 1, 4, dtype=torch.bfloat16), *(weight.bfloat16() for weight in weights))


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch sets it with the rest
@pytest.mark.parametrize("n_layers", [1, 2])
def test_an_lstm_computes_the_products_that_torch_counts(n_layers: int) -> None:
    """Without oneDNN torch runs an LSTM as plain products, of which its counter has formulas."""
    lstm = torch.nn.LSTM(12, 8, num_layers=n_layers, bidirectional=True)
    read, *states = (
        torch.randn(*sizes, requires_grad=True) for sizes in ((5, 3, 12), (2 * n_layers, 3, 8), (2 * n_layers, 3, 8))
    )

    def step() -> None:
        lstm(read, tuple(states))[0].sum().backward()

    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        step()
    assert counted(step) == counter.get_total_flops() > 0
