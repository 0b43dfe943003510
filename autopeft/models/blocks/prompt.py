"""Prompt tuning: trainable embeddings that the model reads before the text, or beside the patches of an image.

With P the length and X the embedded text: X <- [P_e; X], in the model's input only. The step-0 model is
not the base model: the prompt is random tokens of the model's own vocabulary, read before the text.
P-tuning computes P_e with an encoder that trains with it and is folded away in an export.

Source: Lester et al. 2021 (arXiv:2104.08691), section 2: Pr(Y | [P; X]) with P trained alone. Section 3.2
(initialisation) compares random values with the embeddings of sampled tokens; ours are the latter, from
the whole table as stock peft's `SAMPLE_VOCAB`, where the paper samples the 5,000 most common tokens.
P-tuning: Liu et al. 2021 (arXiv:2103.10385); its prompt starts at random, since the encoder does.
Images: Jia et al. 2022 (arXiv:2203.12119), eq. 4 and 5, VPT-shallow; the tokens stand after the class token and
start as random as theirs.
Omits: P-tuning's anchor tokens and its prompt in the middle of the text; VPT's dropout.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from autopeft.errors import DesignError
from autopeft.models.positions import backbone
from autopeft.models.prompt_insertion import LayerInserter, TextInserter
from autopeft.models.prompt_modules import EncodedPrompt, Encoder, PromptEmbeddings
from autopeft.models.summary import sides
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, register
from autopeft.spec.model import ModelSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEFT_TYPE = "PROMPT_TUNING"
_NAME = "autopeft_prompt"
_STOCK_NAME = "prompt_embeddings"
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")


@register
class Prompt(Technique):
    """Settings of a prompt.

    Before a text it takes positions: the prompt and the longest input together must fit into the model's. Classifiers
    of encoders read the model's first position, so with a prompt they read what the model makes of its
    first token, as in stock peft. Every other head gets the text's positions alone, so that logits are as long
    as the input.

    Attributes:
        length: Embeddings before the text, in tokens.
        encoder: What computes them (P-tuning): an `mlp`, or an `lstm` and an MLP; `none` trains them directly.
        encoder_hidden_size: Inner width of the encoder; None means as wide as the embeddings.
    """

    kind: ClassVar[str] = "prompt"
    size_field: ClassVar[str | None] = "length"
    whole_model: ClassVar[bool] = True
    # A prior, not a measurement: Lester et al. (section 3) train at 0.3 with Adafactor, whose steps are relative to
    # the size of a parameter. AdamW's are absolute, and 0.01 is a fifth of a usual embedding's standard deviation.
    default_learning_rate: ClassVar[float] = 1e-2
    slow_start: ClassVar[bool] = True
    stage: ClassVar[int] = 0  # before a prefix, which then counts the prompt's tokens as input

    length: Annotated[int, Field(ge=1)]
    encoder: Encoder = "none"
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None

    @property
    def merge_obstacle(self) -> str:
        """Say what no weight can hold."""
        return "embeddings before the input are no weights"

    @property
    def starts_as_base(self) -> bool:
        """Return False: the prompt is read from the first step on."""
        return False

    @property
    def n_input_tokens(self) -> int:
        """Return the length."""
        return self.length

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a model that takes no embeddings once, and a prompt that leaves no positions."""
        super().check(model, quantization)
        if not model.takes_embeddings and model.modality != "vision":
            raise DesignError(
                f"a prompt needs a model of one stack that takes its input as embeddings, but {model.architecture} "
                "is none; take prompt out of the space"
            )
        # beside patches it takes no position
        if model.modality != "vision" and model.n_positions is not None and self.length >= model.n_positions:
            raise DesignError(
                f"length < n_positions must hold, but got length={self.length}, n_positions={model.n_positions}; "
                "lower prompt.length"
            )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:  # noqa: ARG003
        """Refuse two prompts: they would be one longer prompt."""
        if len(blocks) > 1:
            raise DesignError(f"a design can have one prompt, but this one has {len(blocks)}; add their lengths")

    def resolve(self, model: ModelSummary) -> Block:
        """Write the encoder's usual width, and the width of no encoder, as None."""
        resolved = super().resolve(model)
        if self.encoder == "none" or self.encoder_hidden_size == model.hidden_size:
            return resolved.model_copy(update={"encoder_hidden_size": None})
        return resolved

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether stock peft reads the same position: in language models, and in classifiers of encoders."""
        if model.modality != "text":
            return False
        return _reads_first_position(model) or (model.is_decoder and model.architecture.endswith(_LANGUAGE_MODELS))

    def describe(self) -> str:
        """Say the length, and the encoder where there is one."""
        return f"prompt of {self.length}" + ("" if self.encoder == "none" else f" from an {self.encoder.upper()}")

    def attach(self, site: Site) -> None:
        """Put the prompt beside the embeddings, and into every forward."""
        if site.summary.modality == "vision":
            self._attach_to_layers(site)
        else:
            self._attach_to_text(site)

    def _attach_to_text(self, site: Site) -> None:
        table, inner = site.model.get_input_embeddings(), backbone(site.model)
        path = self._add(site, PromptEmbeddings.sampled(table, self.length))
        # A classifier that pools may use the mask too, so all of it must see the longer input.
        reader = site.model if _reads_first_position(site.summary) else inner
        inserter = TextInserter(site.module(path), self.length, table, reader, site.summary.n_positions)
        site.pre_hook(reader, inserter.before)
        if reader is inner:
            site.hook(reader, inserter.after)

    def _attach_to_layers(self, site: Site) -> None:
        path = self._add(site, random_tokens(site, self.length))
        inserter = LayerInserter(site.module(path), self.length)
        first, last = site.summary.layers[0], site.summary.layers[-1]
        site.pre_hook(site.module(first.path), inserter.before)
        site.hook(site.module(last.path), inserter.after)

    def _add(self, site: Site, plain: PromptEmbeddings) -> str:
        """Put the prompt, or what computes it in its place, into the model, and return where it is."""
        if self.encoder == "none":
            site.add(_path(site.model), _NAME, plain)
        else:
            width = plain.embeddings.shape[1]
            hidden_size = self.encoder_hidden_size or width
            encoded = EncodedPrompt(self.length, width, encoder=self.encoder, hidden_size=hidden_size)
            site.add(_path(site.model), _NAME, encoded)
        return _path(site.model, _NAME)

    @classmethod
    def to_peft(cls, blocks: Sequence["Prompt"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and the prompt."""
        (block,) = blocks
        embeddings = site.module(_path(site.model, _NAME))()
        settings = {
            "peft_type": PEFT_TYPE,
            "num_virtual_tokens": block.length,
            "token_dim": embeddings.shape[1],
            "num_transformer_submodules": 1,
            "num_attention_heads": site.summary.n_heads,
            "num_layers": site.summary.n_layers,
        }
        return settings, {_STOCK_NAME: embeddings.detach().cpu().contiguous()}

    @classmethod
    def from_peft(cls, tensors: Mapping[str, torch.Tensor], model: "PreTrainedModel") -> dict[str, torch.Tensor]:
        """Return the tensors for an own prompt: peft's lengthens the logits, and counts padding as positions."""
        path = _path(model, f"{_NAME}.embeddings")
        return {path if n == _STOCK_NAME else n.removeprefix("base_model."): tensor for n, tensor in tensors.items()}


def _path(model: "PreTrainedModel", *names: str) -> str:
    """Return the path of the backbone in a model, or of something below it."""
    backbone = () if model.base_model is model else (model.base_model_prefix,)
    return ".".join((*backbone, *names))


def _reads_first_position(model: ModelSummary) -> bool:
    return model.architecture.endswith("ForSequenceClassification") and not model.is_decoder


def random_tokens(site: Site, length: int) -> PromptEmbeddings:
    """Return tokens for the layers of a vision model, as VPT starts them."""
    config: Any = site.model.config
    height, width = sides(config.patch_size)
    return PromptEmbeddings.uniform(
        length, site.summary.hidden_size, patch_numbers=height * width * config.num_channels
    )
