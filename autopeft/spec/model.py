"""What the search needs to know of a model, as a plain value."""

from collections.abc import Iterable, Mapping
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
    "kv",
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

_FUSED = {"query": ("qkv",), "key": ("kv", "qkv"), "value": ("kv", "qkv"), "mlp_gate": ("mlp_up",)}
"""The maps that may do the work of a role that a model has no map of its own for."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a task asks of the model.

    Attributes:
        auto_class: Class of transformers that has the head, such as `AutoModelForSequenceClassification`.
        labels: Names of the classes in index order. Where there are any, the head is a new one even
            if the checkpoint has one: its classes mean something else.
        task: Whose loss trains it; empty for that of classes where there are any, and of tokens otherwise.
    """

    auto_class: str
    labels: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class LinearSummary:
    """A linear map inside a layer: where it is, its shape, and whether its weight is stored as [in, out] (`Conv1D`)."""

    path: str
    in_features: int
    out_features: int
    transposed: bool = False
    has_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class NormSummary:
    """A normalisation with a learned factor for each of its features, and a bias in some architectures."""

    path: str
    n_features: int
    has_bias: bool


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One transformer layer: its module path, its linear maps by role, its norms, and the stack that it is in."""

    path: str
    roles: Mapping[str, LinearSummary]
    stack: Stack = ""
    norms: tuple[NormSummary, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The structure of a model with its task head.

    Attributes:
        name: Hub id or folder, as the user gave it.
        fingerprint: SHA-256 over the configuration and the weight files.
        n_parameters: Parameters of the pretrained base, unquantized, without `new_modules`.
        n_head_parameters: Parameters of `new_modules`; they always train.
        new_modules: Paths of the modules that the checkpoint did not have (head, pooler).
        hidden_size: Width of the layers.
        head_size: Width of a head's keys and values.
        vocabulary_size: Rows of the token table; 0 where no tokens go in or come out.
        n_positions: Longest input in tokens, or None where positions are not limited; the patches of an image,
            and of sound the positions that the layers see.
        n_target_positions: Longest target of an encoder-decoder in tokens; None where it has none, or no limit.
        has_attention_interface: Whether the attention can be given prefixes in chosen layers.
        sliding_window: How many tokens a layer sees at most, in those layers that see only so many, or None.
        takes_cache: Whether it takes keys and values of earlier tokens, as stock prefix tuning needs.
        takes_embeddings: Whether its input can be given as embeddings, so that a prompt fits before the text.
        is_decoder: Whether a token sees earlier ones only, so that heads read the last one; not of encoder-decoders.
        modality: What goes in.
        layers: From the input upwards; an encoder-decoder's are the encoder's, then the decoder's.
        outer_norms: The norms of the base outside of the layers: of the embeddings, and the last one.
        own_maps: The class of the layers' linear maps where it is the architecture's own (Falcon's), which bitsandbytes
            does not quantize; empty where some are plain.
        expert_names: Last names of modules that stock PEFT takes for the experts of a mixture, also where one is dense.
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
    sliding_window: int | None = None
    takes_cache: bool = True
    takes_embeddings: bool = True
    is_decoder: bool = False
    modality: Modality = "text"
    n_target_positions: int | None = None
    outer_norms: tuple[NormSummary, ...] = ()
    own_maps: str = ""
    expert_names: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        """Return the number of transformer layers."""
        return len(self.layers)

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the roles that any layer has, in canonical order; only a decoder's layers have the cross ones."""
        return tuple(role for role in ROLES if any(role in layer.roles for layer in self.layers))

    def fused(self, roles: Iterable[str]) -> tuple[str, ...]:
        """Return the roles of the maps that do the work of `roles`, in canonical order.

        One map may make queries, keys and values (`qkv`), keys and values (`kv`), or both inner activations of a gated
        MLP (`mlp_up`): a role that has no map of its own then stands for that map. Any other role stays as it is.
        """
        found = {self._map_for(role) for role in roles}
        return tuple(role for role in ROLES if role in found)

    def _map_for(self, role: str) -> str:
        if role in self.roles or (role == "mlp_gate" and not self._has_fused_gate):
            return role
        return next((fused for fused in _FUSED.get(role, ()) if fused in self.roles), role)

    @property
    def _has_fused_gate(self) -> bool:
        """Return whether the first map of the MLP makes twice what the last one reads."""
        pairs = ((layer.roles.get("mlp_up"), layer.roles.get("mlp_down")) for layer in self.layers)
        return any(up and down and up.out_features == 2 * down.in_features for up, down in pairs)

    @property
    def is_encoder_decoder(self) -> bool:
        """Return whether the layers are two stacks, the second of which attends to the first."""
        return any(layer.stack == "decoder" for layer in self.layers)

    def first_layer_without(self, indices: Iterable[int], *roles: str) -> int | None:
        """Return the first of some layers that has none of the roles, or None where each has one."""
        return next((index for index in indices if self.layers[index].roles.keys().isdisjoint(roles)), None)

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
                norms=_norms(layer),
            )
            for layer in values["layers"]
        )
        read = {
            "layers": layers,
            "new_modules": tuple(values["new_modules"]),
            "outer_norms": _norms(values, "outer_norms"),
            "expert_names": tuple(values.get("expert_names", ())),
        }
        return cls(**{**values, **read})


def _norms(values: Mapping[str, Any], name: str = "norms") -> tuple[NormSummary, ...]:
    return tuple(NormSummary(**norm) for norm in values.get(name, ()))
