"""Deep visual prompt tuning: trainable tokens of their own in the input of each chosen layer of a vision model.

With x the class token and E the patches, before layer i, and P_i [length, d]:

    [x_i, _, E_i] = L_i([x_(i-1), P_i, E_(i-1)])

What the layer makes of its prompt is dropped. Here P_i stands after E, which is the same: a layer knows no
positions. The step-0 model is not the base model: tokens take attention from the first step on.

Source: Jia et al. 2022 (arXiv:2203.12119), eq. 6, VPT-deep. Lengths that differ by layer: NOAH, Zhang et al. 2022
(arXiv:2206.04673).
Omits: the dropout of the prompt.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from autopeft.errors import DesignError
from autopeft.models.blocks.prompt import random_tokens
from autopeft.models.prompt_insertion import LayerInserter
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared, register
from autopeft.spec.model import ModelSummary

_NAME = "autopeft_deep_prompt"


@register
class DeepPrompt(Technique):
    """Settings of a deep prompt.

    Attributes:
        length: Tokens in each layer.
    """

    kind: ClassVar[str] = "deep_prompt"
    size_field: ClassVar[str | None] = "length"
    # A prior, not a measurement: that of prompts.
    default_learning_rate: ClassVar[float] = 1e-2
    slow_start: ClassVar[bool] = True

    length: Annotated[int, Field(ge=1)]

    @property
    def merge_obstacle(self) -> str:
        """Say what no weight can hold."""
        return "states beside those of the input are no weights"

    @property
    def starts_as_base(self) -> bool:
        """Return False: the tokens take attention from the first step on."""
        return False

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a model that does not read images."""
        super().check(model, quantization)
        if model.modality != "vision":
            raise DesignError(
                f"a deep prompt needs a vision model, but {model.architecture} reads {model.modality}, where masks and "
                "positions would have to change in every layer; take deep_prompt out of the space: a prefix gives each "
                "layer tokens of its own there"
            )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse two deep prompts in one layer: they would be one longer prompt."""
        layer = first_shared(block.layer_indices(model) for block in blocks)
        if layer is not None:
            raise DesignError(f"a layer can have one deep prompt, but layer {layer} has two; add their lengths")

    def describe(self) -> str:
        """Say the length."""
        return f"deep prompt of {self.length}"

    def attach(self, site: Site) -> None:
        """Put tokens beside each layer, and through it."""
        for index in self.layer_indices(site.summary):
            path = site.summary.layers[index].path
            site.add(path, _NAME, random_tokens(site, self.length))
            layer = site.module(path)
            inserter = LayerInserter(site.module(f"{path}.{_NAME}"), self.length, at_end=True)
            site.pre_hook(layer, inserter.before)
            site.hook(layer, inserter.after)
