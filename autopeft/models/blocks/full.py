"""Full fine-tuning: every parameter of chosen layers trains.

The weights go on training from what they are, so that the step-0 model is the base model. With `layers: all` and
`embeddings: true` this is fine-tuning of the whole model.

Source: Lee et al. 2019 (arXiv:1911.03090) for the top layers alone.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from autopeft.models.selective import SelectiveTechnique
from autopeft.models.technique import Site
from autopeft.spec.block import QUANTIZED, register
from autopeft.spec.model import ModelSummary

OUTSIDE = "(what is outside of the layers)"
"""Stands for the parameters of embeddings and the like, in the answer to who trains what."""


@register
class Full(SelectiveTechnique):
    """Settings of full fine-tuning.

    Attributes:
        embeddings: Whether everything outside of the layers trains too: embeddings, outer norms, a language
            model's output map.
    """

    kind: ClassVar[str] = "full"
    # A prior, not a measurement: the middle of what Devlin et al. 2019 (arXiv:1810.04805) sweep for BERT.
    default_learning_rate: ClassVar[float] = 3e-5

    embeddings: bool = False

    def conflicts(self) -> Mapping[str, str]:
        """Return every quantization."""
        return dict.fromkeys(QUANTIZED, "quantized weights cannot be trained")

    def base_parameters(self, model: ModelSummary) -> Iterator[str]:
        """Yield the layers as wholes, by their paths."""
        yield from (model.layers[index].path for index in self.layer_indices(model))
        if self.embeddings:
            yield OUTSIDE
            yield from (norm.path for norm in model.outer_norms)

    def describe(self) -> str:
        """Say what trains."""
        return "full fine-tuning" + (" with embeddings" if self.embeddings else "")

    def attach(self, site: Site) -> None:
        """Train copies of the parameters in their places."""
        summary = site.summary
        chosen = tuple(f"{summary.layers[index].path}." for index in self.layer_indices(summary))
        inside = tuple(f"{path}." for path in (*(layer.path for layer in summary.layers), *summary.new_modules))
        for name in [name for name, _ in site.model.named_parameters()]:
            if name.startswith(chosen) or (self.embeddings and not name.startswith(inside)):
                site.train(name)
