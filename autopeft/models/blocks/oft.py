"""OFT: an orthogonal rotation of a linear map's input, block by block, y = W R x.

R is block-diagonal with blocks (I + Q)(I - Q)^-1 of a size b that divides in_features, each Q skew-symmetric with
b (b - 1) / 2 numbers. Q starts at zero, so that R is the identity and the step-0 model is the base model. By
default a block is the first terms of its Neumann series, I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4, which leaves out the fifth
order of Q; there peft turns the other way, so that Q stands for -Q.

Source: Qiu et al. 2023 (arXiv:2306.07280), the Cayley parametrization and the block-diagonal structure; the rotation of
the input instead of the weight, and the series: Qiu et al. 2025 (arXiv:2506.19847). The layers are peft's.
Omits: maps that store their weight as [in, out], which peft's layer cannot wrap.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from autopeft.errors import DesignError
from autopeft.models.linear_technique import LinearTechnique
from autopeft.models.technique import Site
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary


@register
class Oft(LinearTechnique):
    """Settings of an OFT block.

    Attributes:
        block_size: Rows of each diagonal block of R; divides in_features of every map.
        exact: Solve for the inverse in every step, so that R is orthogonal up to rounding.
    """

    kind: ClassVar[str] = "oft"
    peft_type: ClassVar[str] = "OFT"
    size_field: ClassVar[str | None] = "block_size"
    stock_fields: ClassVar[tuple[str, ...]] = ("block_size", "exact")
    takes_transposed: ClassVar[bool] = False
    # A prior, not a measurement: LoRA's of here; Q is on the scale of an angle in radians.
    default_learning_rate: ClassVar[float] = 1e-3

    block_size: Annotated[int, Field(ge=2)]
    exact: bool = False

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and a block size that does not divide the input of a map."""
        super().check(model, quantization)
        for linear in self.targets(model):
            if linear.in_features % self.block_size:  # peft would take another size, with a warning
                raise DesignError(
                    f"block_size must divide in_features, but got block_size={self.block_size} for {linear.path} with "
                    f"in_features={linear.in_features}; change oft.block_size"
                )

    def describe(self) -> str:
        """Say the block size and the roles."""
        return f"OFT{' exact' if self.exact else ''} b={self.block_size} {self.describe_roles()}"

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Inject blocks of one size together: peft keeps it once for all of an adapter's layers."""
        settings = {(block.block_size, block.exact) for block in blocks}
        for size, exact in sorted(settings):
            super().attach_all([b for b in blocks if (b.block_size, b.exact) == (size, exact)], site)

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:  # noqa: ARG003
        """Return the block size and how blocks are made."""
        first = next(iter(targets.values()))
        return {"r": 0, "oft_block_size": first.block_size, "use_cayley_neumann": not first.exact}
