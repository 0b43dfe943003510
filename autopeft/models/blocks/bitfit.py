"""BitFit: bias terms train, and nothing else.

In each chosen layer the biases of the chosen linear maps, and those of its LayerNorms, go on training from what
they are, so that the step-0 model is the base model. The paper's two settings are `roles: all` with `norms: true`,
and, at half the size, `roles: [query, mlp_up]` with `norms: false`.

Source: Ben Zaken et al. 2022 (arXiv:2106.10199), sections 3 and 4.
Omits: biases outside of the layers (the embeddings' LayerNorm), and of a pooler that the checkpoint has.
"""

from collections.abc import Iterator
from typing import ClassVar

from autopeft.errors import DesignError
from autopeft.models.selective import SelectiveTechnique
from autopeft.spec.block import Block, Quantization, Roles, register
from autopeft.spec.messages import nearest
from autopeft.spec.model import ROLES, ModelSummary


@register
class BitFit(SelectiveTechnique):
    """Settings of BitFit.

    Attributes:
        roles: The linear maps whose biases train; `all` means those that have one.
        norms: Whether the biases of the layers' norms train too, where they have any.
    """

    kind: ClassVar[str] = "bitfit"
    # A prior, not a measurement: the upper end of what Ben Zaken et al. sweep (1e-4 to 1e-3).
    default_learning_rate: ClassVar[float] = 1e-3

    roles: Roles = "all"
    norms: bool = True

    def base_parameters(self, model: ModelSummary) -> Iterator[str]:
        """Yield the biases that train."""
        for index in self.layer_indices(model):
            layer = model.layers[index]
            wanted = ROLES if self.roles == "all" else model.fused(self.roles)
            maps = [linear for role, linear in layer.roles.items() if role in wanted]
            yield from (f"{linear.path}.bias" for linear in maps if linear.has_bias)
            if self.norms:
                yield from (f"{norm.path}.bias" for norm in layer.norms if norm.has_bias)

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse maps without biases: nothing would train."""
        super().check(model, quantization)
        biased = _biased_roles(model)
        if not biased:
            raise DesignError(
                f"bitfit needs bias terms, but the linear maps of {model.architecture} have none; take norms or ia3, "
                "which are as small, in its place"
            )
        for role in () if self.roles == "all" else model.fused(self.roles):
            if role not in biased:
                raise DesignError(
                    f"bitfit.roles must be roles of maps that have a bias ({', '.join(biased)}), but got {role!r}"
                    f"{nearest(role, biased)}"
                )
        if next(self.base_parameters(model), None) is None:
            raise DesignError("bitfit must find a bias, but the chosen layers have none; change bitfit.layers or roles")

    def resolve(self, model: ModelSummary) -> Block:
        """Write fused maps by their role, and every layer and role with a bias as `all`; norms without add none."""
        resolved = super().resolve(model)
        if self.roles != "all":
            resolved = resolved.model_copy(update={"roles": model.fused(self.roles)})
        if not any(norm.has_bias for layer in model.layers for norm in layer.norms):
            resolved = resolved.model_copy(update={"norms": False})
        return resolved._collapse("roles", _biased_roles(model))

    def describe(self) -> str:
        """Say which biases."""
        which = "all biases" if self.roles == "all" else f"biases of {', '.join(self.roles)}"
        return f"BitFit on {which}" + (" and of norms" if self.norms else "")


def _biased_roles(model: ModelSummary) -> tuple[str, ...]:
    """Return the roles whose maps have a bias in any layer."""
    biased = {role for layer in model.layers for role, linear in layer.roles.items() if linear.has_bias}
    return tuple(role for role in ROLES if role in biased)
