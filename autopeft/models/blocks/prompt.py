"""Prompt tuning: trainable embeddings that the model reads before the text.

With P the length and X the embedded text: X <- [P_e; X], in the model's input only. The step-0 model is
not the base model: the prompt is random tokens of the model's own vocabulary, read before the text.

Source: Lester et al. 2021 (arXiv:2104.08691), section 2: Pr(Y | [P; X]) with P trained alone. Section 3.2
(initialisation) compares random values with the embeddings of sampled tokens; ours are the latter, from
the whole table as stock peft's `SAMPLE_VOCAB`, where the paper samples the 5,000 most common tokens.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from autopeft.errors import DesignError, ModelError
from autopeft.models.roles import position_table
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

    It takes positions: the prompt and the longest input together must fit into the model's. Classifiers
    of encoders read the model's first position, so with a prompt they read what the model makes of its
    first token, as in stock peft. Every other head gets the text's positions alone, so that logits are as long
    as the input.

    Attributes:
        length: Embeddings before the text, in tokens.
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
        if not model.takes_embeddings:
            raise DesignError(
                f"a prompt needs a model of one stack that takes its input as embeddings, but {model.architecture} "
                "is none; take prompt out of the space"
            )
        if model.n_positions is not None and self.length >= model.n_positions:
            raise DesignError(
                f"length < n_positions must hold, but got length={self.length}, n_positions={model.n_positions}; "
                "lower prompt.length"
            )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:  # noqa: ARG003
        """Refuse two prompts: they would be one longer prompt."""
        if len(blocks) > 1:
            raise DesignError(f"a design can have one prompt, but this one has {len(blocks)}; add their lengths")

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether stock peft reads the same position: in language models, and in classifiers of encoders."""
        return _reads_first_position(model) or (model.is_decoder and model.architecture.endswith(_LANGUAGE_MODELS))

    def describe(self) -> str:
        """Say the length."""
        return f"prompt of {self.length}"

    def attach(self, site: Site) -> None:
        """Put the prompt beside the embeddings, and before the text in every forward."""
        backbone = site.model.base_model
        prompt = PromptEmbeddings(site.model.get_input_embeddings(), self.length)
        site.add(_path(site.model), _NAME, prompt)
        # A classifier that pools may use the mask too, so all of it must see the longer input.
        reader = site.model if _reads_first_position(site.summary) else backbone
        inserter = _Inserter(prompt, site.model.get_input_embeddings(), reader, site.summary.n_positions)
        site.pre_hook(reader, inserter.before)
        if reader is backbone:
            site.hook(reader, inserter.after)

    @classmethod
    def to_peft(cls, blocks: Sequence["Prompt"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and the prompt."""
        (block,) = blocks
        (embeddings,) = site.trainable
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


class PromptEmbeddings(nn.Module):
    """The prompt, [length, embedding size]; starts as random rows of the model's own table."""

    def __init__(self, table: nn.Module, length: int) -> None:
        super().__init__()
        weight = table.weight
        assert isinstance(weight, torch.Tensor)
        rows = torch.randint(weight.shape[0], (length,)).to(weight.device)
        with torch.no_grad():
            self.embeddings = nn.Parameter(table(rows).clone())  # through the module: some models scale what they read


class _Inserter:
    """Puts a prompt into what a module is called with, and takes its positions off what comes out.

    With a cache, the prompt goes in at the first step; it is among the cached tokens from then on.
    """

    def __init__(self, prompt: PromptEmbeddings, table: nn.Module, reader: nn.Module, n_positions: int | None) -> None:
        self._prompt = prompt
        self._table = table
        self._names = tuple(signature(reader.forward).parameters)
        positions = position_table(reader)
        self._n_positions = None if positions is None else n_positions  # computed positions go on beyond
        padding = getattr(positions, "padding_idx", None)
        self._first_position = 0 if padding is None else padding + 1  # RoBERTa's table starts after the padding's
        self._n_inserted = 0

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call's arguments with the prompt before the text; mask, types and positions follow."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        length = len(self._prompt.embeddings)
        cache = inputs.get("past_key_values")
        self._n_inserted = length if cache is None or cache.get_seq_length() == 0 else 0
        if self._n_inserted:
            embedded = inputs.get("inputs_embeds")
            if embedded is None:
                embedded = self._table(inputs["input_ids"])
            if self._n_positions is not None and embedded.shape[1] + length > self._n_positions:
                raise ModelError(
                    f"a prompt of {length} tokens and the input must fit into {self._n_positions} positions, but got "
                    f"an input of {embedded.shape[1]} tokens; truncate it to {self._n_positions - length}"
                )
            prompt = self._prompt.embeddings.to(embedded.dtype).expand(len(embedded), -1, -1)
            inputs |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, embedded], dim=1)}
            if inputs.get("token_type_ids") is not None:
                inputs["token_type_ids"] = functional.pad(inputs["token_type_ids"], (length, 0))
        mask = inputs.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
                raise ModelError("a prompt needs an attention mask of [batch, tokens]; a static cache gives another")
            inputs["attention_mask"] = functional.pad(mask, (length, 0), value=1)  # over the cached tokens too
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = self._shift(inputs["position_ids"], length)
        return (), inputs

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Return the output without the prompt's positions: heads see the text's, in the input's length."""
        if self._n_inserted == 0:
            return output
        if isinstance(output, tuple):
            return (output[0][:, self._n_inserted :], *output[1:])
        output["last_hidden_state"] = output.last_hidden_state[:, self._n_inserted :]
        return output

    def _shift(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """Return the text's positions after the prompt's, which are the first ones."""
        shifted = positions + length
        if self._n_inserted == 0:
            return shifted
        own = torch.arange(self._first_position, self._first_position + length, device=positions.device)
        return torch.cat([own.expand(*positions.shape[:-1], -1), shifted], dim=-1)
