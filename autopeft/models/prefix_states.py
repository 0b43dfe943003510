"""The keys and values that a prefix gives to one layer: parameters, or computed from parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autopeft.models.gate import Gate


class LayerPrefix(nn.Module):
    """The prefix of one layer.

    Attributes:
        gate: Scales keys and values by what it makes of the layer's input, or None.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.gate = gate
        self._factors: torch.Tensor | None = None

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values, each [n_key_value_heads, length, head_size].

        No forward: torch's trackers of modules want an output that has been computed, and parameters have not.
        """
        raise NotImplementedError

    def read(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compute the gate from what an attention module is called with; a forward pre-hook."""
        assert self.gate is not None
        self._factors = self.gate(args[0] if args else kwargs["hidden_states"])

    def factors(self) -> torch.Tensor | None:
        """Return the gate of the forward that runs, [batch, 1 or tokens, 1], or None where there is none."""
        factors, self._factors = self._factors, None  # what is kept after the forward keeps its graph
        return factors


class PrefixStates(LayerPrefix):
    """A prefix that is its parameters.

    Args:
        keys: Values to start from, [n_key_value_heads, length, head_size].
        values: Like `keys`.
        gate: See `LayerPrefix`.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, gate: Gate | None = None) -> None:
        super().__init__(gate)
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)

    @classmethod
    def small(cls, n_heads: int, length: int, head_size: int, gate: Gate | None = None) -> "PrefixStates":
        """Start as tokens that say nothing, and not as noise of the size of real values."""
        keys, values = (torch.randn(n_heads, length, head_size) * 0.02 for _ in range(2))
        return cls(keys, values, gate)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the parameters."""
        return self.keys, self.values


class Reparameterisation(nn.Module):
    """The part of the MLP that layers share: the smaller embeddings P' [length, size] and the first map.

    Nothing of it is left in an export.

    Source: Li & Liang 2021 (arXiv:2101.00190), eq. 3: P[i] = MLP(P'[i]); as in their code the MLP has one inner
        layer with tanh. Its width is that of P' here: the paper gives one number, 512 or 800, for both.
    """

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(length, size))
        self.map = nn.Linear(size, size)

    def forward(self) -> torch.Tensor:
        """Return the inner layer, [length, size]."""
        return torch.tanh(self.map(self.embeddings))

    def folded(self) -> nn.Module:
        """Return a module without parameters."""
        return nn.Module()


class ProjectedStates(LayerPrefix):
    """A prefix that the MLP computes: the rows of its last map that belong to one layer.

    Args:
        shared: The rest of the MLP, which is part of the model elsewhere.
        n_heads: Key-value heads.
        head_size: Numbers in each.
        size: Width of the MLP's inner layer.
        gate: See `LayerPrefix`.
    """

    def __init__(
        self,
        shared: Callable[[], torch.Tensor],
        n_heads: int,
        head_size: int,
        size: int,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(gate)
        self._shared = (shared,)  # a module in a tuple is not registered twice
        self._shape = (2, n_heads, head_size)
        self.map = nn.Linear(size, 2 * n_heads * head_size)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the MLP makes of its embeddings; always in fp32, so that it is the same wherever it is read."""
        device = self.map.weight.device
        with torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False):
            states: torch.Tensor = self.map(self._shared[0]().to(device))
        keys, values = states.view(len(states), *self._shape).permute(1, 2, 0, 3)
        return keys, values

    def folded(self) -> PrefixStates:
        """Return the prefix as it is computed now."""
        with torch.no_grad():
            keys, values = self.states()
            return PrefixStates(keys.clone(), values.clone(), self.gate)
