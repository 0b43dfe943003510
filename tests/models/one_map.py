"""A technique on one linear map, taken apart: what goes in, what comes out, and the tensors in between."""

from dataclasses import dataclass
from typing import Any

import torch
from tiny_models import design, perturb

from autopeft.models.attach import attach
from autopeft.models.base import Base


@dataclass(frozen=True, kw_only=True)
class OneMap:
    """What a changed linear map does, with random values in all that trains.

    Attributes:
        weight: Of the base, [out, in].
        bias: Of the base.
        tensors: That the technique brought, by the last part of their path that is not `default` or `weight`.
        inputs: [batch, tokens, in].
        outputs: [batch, tokens, out].
    """

    weight: torch.Tensor
    bias: torch.Tensor
    tensors: dict[str, torch.Tensor]
    inputs: torch.Tensor
    outputs: torch.Tensor

    @property
    def update(self) -> torch.Tensor:
        """Return what is added to the weight, read off the outputs by least squares."""
        plain = self.inputs @ self.weight.T + self.bias
        flat, added = self.inputs.flatten(0, 1).double(), (self.outputs - plain).flatten(0, 1).double()
        return torch.linalg.lstsq(flat, added).solution.T.float()


def changed_map(base: Base, kind: str, settings: dict[str, Any], role: str = "mlp_up") -> OneMap:
    """Attach a block to one map of layer 1 of an unquantized base, move its parameters, and run the map."""
    linear = base.summary.layers[1].roles[role]
    plain: Any = base.model.get_submodule(linear.path)
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    block = {kind: {**settings, "roles": [role], "layers": [1]}}
    with attach(base, design(block), seed=3) as attached:
        perturb(attached)
        inputs = torch.randn(4, 20, linear.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            outputs = base.model.get_submodule(linear.path)(inputs)
        tensors = {
            [part for part in name.split(".") if part not in ("default", "weight")][-1]: tensor
            for name, tensor in attached.state().items()
            if not name.startswith(base.summary.new_modules)
        }
    return OneMap(weight=weight, bias=bias, tensors=tensors, inputs=inputs, outputs=outputs)
