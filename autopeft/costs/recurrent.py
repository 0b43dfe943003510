"""What an LSTM takes on a CPU, besides what goes into it and comes out: oneDNN's workspace and reordered weights.

Source: `mkldnn_rnn_layer` in aten/src/ATen/native/mkldnn/RNN.cpp, and `set_offsets` and `get_good_ld` in
    oneDNN's src/cpu/rnn/rnn_utils.hpp; as in torch 2.13. The workspace is right to a page of memory; beside it, a
    scratch pad of some kB (under 0.2 MB in bf16) is left out.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from autopeft.errors import DesignError

_aten = torch.ops.aten
_LSTM = 2
"""What torch calls it among its recurrent layers."""
_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64


@cache
def has_lstm(dtype: torch.dtype) -> bool:
    """Return whether this CPU can train an LSTM in a dtype: without AVX512 oneDNN has no kernel for bf16."""

    def run() -> bool:
        weights = [weight.detach() for weight in torch.nn.LSTM(1, 1).to(dtype).parameters()]
        read, state = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
        try:
            _aten.mkldnn_rnn_layer(read, *weights, state, state, False, [], _LSTM, 1, 1, True, False, False, True)
        except RuntimeError:
            return False
        return True

    with ThreadPoolExecutor(max_workers=1) as thread:  # where no mode of torch is that watches operators
        return thread.submit(run).result()


def lstm_layer(
    read: torch.Tensor, w_input: torch.Tensor, w_hidden: torch.Tensor, *rest: Any, **_: Any
) -> tuple[torch.Tensor, ...]:
    """Return what a layer of an LSTM makes; torch's own stand-in leaves out the workspace that its backward reads."""
    hidden, cell, is_trained = rest[2], rest[3], rest[-1]
    n_steps, n_rows, _n_features = read.shape
    n_bytes = _workspace_bytes(n_steps, n_rows, w_input, w_hidden, read.itemsize) if is_trained else 0
    return (
        read.new_empty(n_steps, n_rows, w_hidden.shape[1]),
        hidden.new_empty(hidden.shape),
        cell.new_empty(cell.shape),
        read.new_empty(n_bytes, dtype=torch.uint8),
    )


def lstm_scratch_bytes(read: torch.Tensor, w_input: torch.Tensor, w_hidden: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the weights in the order that the forward pass reads them, and the gates in fp32.

    Raises:
        DesignError: This CPU has no such kernel, so a training step would fail.
    """
    if not has_lstm(read.dtype):
        raise DesignError(
            f"an LSTM in {str(read.dtype).removeprefix('torch.')} needs a kernel that this processor does not have; "
            "set training.precision to fp32"
        )
    ordered = sum(_transposed_bytes(weight, weight.itemsize) for weight in (w_input, w_hidden))
    return ordered + _gates_bytes(read, w_input)


def lstm_backward_scratch_bytes(
    read: torch.Tensor, w_input: torch.Tensor, w_hidden: torch.Tensor, *_: Any, **__: Any
) -> int:
    """Return the weights and their gradients in the order that the backward pass reads and writes them, and the gates.

    Weights in fp32 are used as they lie where their rows suit the caches.
    """
    n_bytes = _gates_bytes(read, w_input)
    for weight in (w_input, w_hidden):
        n_gates, n_features = weight.shape
        leading = _leading(n_features, weight.itemsize)
        if weight.itemsize < 4 or leading != n_features:
            n_bytes += n_gates * (n_features if weight.itemsize < 4 else leading) * weight.itemsize
        n_bytes += _transposed_bytes(weight, 4)
    return n_bytes


def _workspace_bytes(n_steps: int, n_rows: int, w_input: torch.Tensor, w_hidden: torch.Tensor, itemsize: int) -> int:
    """Return what the forward pass keeps: gates, states of the layer and of its input, and room for their gradients."""
    n_gates, n_hidden = w_hidden.shape
    n_widest = max(w_input.shape[1], n_hidden)
    states = (n_steps + 1) * n_rows
    parts = [
        n_steps * n_rows * n_gates * itemsize,
        2 * states * _leading(n_widest, itemsize) * itemsize,
        2 * states * _leading(n_hidden, itemsize) * itemsize,
        states * _leading(n_hidden, itemsize) * itemsize,
        2 * states * _leading(n_widest, 4) * 4,
        2 * states * _leading(n_widest, 4) * 4,
        2 * states * _leading(n_hidden, 4) * 4,
    ]
    return sum(-(-part // _PAGE_BYTES) * _PAGE_BYTES for part in parts)


def _transposed_bytes(weight: torch.Tensor, itemsize: int) -> int:
    """Return the size of a weight with the gates in its rows; in bf16 packed for the matrix unit, without gaps."""
    n_gates, n_features = weight.shape
    return n_features * (n_gates if itemsize < 4 else _leading(n_gates, itemsize)) * itemsize


def _gates_bytes(read: torch.Tensor, w_input: torch.Tensor) -> int:
    return 4 * w_input.shape[0] * (read.shape[:-1].numel() + 1)


def _leading(n: int, itemsize: int) -> int:
    """Return the numbers from one row to the next: whole cache lines, but no multiple of 256 numbers."""
    per_line = _CACHE_LINE_BYTES // itemsize
    whole = -(-n // per_line) * per_line
    return whole + per_line if whole % 256 == 0 else whole
