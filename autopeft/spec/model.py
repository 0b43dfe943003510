"""What the search needs to know of a model, as a plain value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Modality = Literal["text", "vision", "speech"]
"""What goes in: tokens, images, or the features of sound."""

Stack = Literal["", "encoder", "decoder"]
"""Which part of an encoder-decoder a layer belongs to; empty for a model of one stack."""

ROLES = (
    "query",
    "key",
    "value",
    "qkv",
    "attention_output",
    "cross_query",
    "cross_key",
    "cross_value",
    "cross_attention_output",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
)
"""Every role, in the order in which designs list them."""


@dataclass(frozen=True, kw_only=True)
class LinearSummary:
    """A linear map inside a layer: where it is and its shape."""

    path: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One transformer layer: its module path, its linear maps by role, and the stack that it is in."""

    path: str
    roles: Mapping[str, LinearSummary]
    stack: Stack = ""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The structure of a model with its task head.

    Attributes:
        name: Hub id or folder, as the user gave it.
        fingerprint: SHA-256 over the configuration and the weight files.
        n_parameters: Parameters of the pretrained base, unquantized, without `new_modules`.
        n_head_parameters: Parameters of `new_modules`; they always train.
        new_modules: Paths of the modules that the checkpoint did not have (head, pooler).
        n_positions: Longest sequence in tokens, or None where positions are not limited.
        has_attention_interface: Whether the attention can be given prefixes in chosen layers.
        takes_cache: Whether it takes keys and values of earlier tokens, as stock prefix tuning needs.
        takes_embeddings: Whether its input can be given as embeddings, so that a prompt fits before the text.
        is_decoder: Whether a token sees earlier ones only, so that heads read the last one.
        modality: What goes in.
        layers: From the input upwards; an encoder-decoder's are the encoder's, then the decoder's.
    """

    name: str
    architecture: str
    model_type: str
    fingerprint: str
    n_parameters: int
    n_head_parameters: int
    new_modules: tuple[str, ...]
    hidden_size: int
    n_heads: int
    n_key_value_heads: int
    head_size: int
    vocabulary_size: int
    n_positions: int | None
    has_attention_interface: bool
    layers: tuple[LayerSummary, ...]
    takes_cache: bool = True
    takes_embeddings: bool = True
    is_decoder: bool = False
    modality: Modality = "text"

    @property
    def n_layers(self) -> int:
        """Return the number of transformer layers."""
        return len(self.layers)

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the roles that any layer has, in canonical order; only a decoder's layers have the cross ones."""
        return tuple(role for role in ROLES if any(role in layer.roles for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSummary":
        """Rebuild a summary from `to_dict`."""
        layers = tuple(
            LayerSummary(
                path=layer["path"],
                roles={role: LinearSummary(**linear) for role, linear in layer["roles"].items()},
                stack=layer.get("stack", ""),
            )
            for layer in values["layers"]
        )
        return cls(**{**values, "layers": layers, "new_modules": tuple(values["new_modules"])})
