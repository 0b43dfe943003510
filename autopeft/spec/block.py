"""A block is one technique with its settings: the unit that designs are sums of.

A technique is one file: a `Block` subclass with its fields, and the code that attaches it. Files in
`autopeft/models/blocks/` are found by themselves; a package outside autopeft names its module in the
entry-point group `autopeft.blocks`. This module knows no technique by name.
"""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from autopeft.errors import DesignError
from autopeft.spec.messages import explain, one_of
from autopeft.spec.model import ROLES, ModelSummary

Place = TypeVar("Place", bound=Hashable)

ENTRY_POINT_GROUP = "autopeft.blocks"

Quantization = Literal["none", "int8", "nf4", "fp4", "nf4-dq"]
"""Storage of the base model's linear maps; embeddings, norms and new modules stay as they are.

`nf4-dq` is nf4 with double quantisation: the scales of the weights are quantized too (Dettmers et al. 2023,
arXiv:2305.14314, section 3).
"""
FOUR_BIT: tuple[Quantization, ...] = ("nf4", "fp4", "nf4-dq")
QUANTIZED: tuple[Quantization, ...] = ("int8", *FOUR_BIT)


MAX_NUMBER = 2**53
"""Of any setting: larger ones are no floating-point numbers."""


def _is_too_large(value: Any) -> bool:
    """Return whether a whole number, or text that would be read as a number, is above the limit."""
    if isinstance(value, str):
        try:
            return abs(float(value)) > MAX_NUMBER
        except ValueError:
            return False
    return isinstance(value, int) and abs(value) > MAX_NUMBER


def _indices(value: Any) -> Any:
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        found = tuple(value)
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in found):
            raise ValueError("layers must be all, or whole numbers counted from 0")
        return tuple(sorted(set(found)))
    return value


def _roles(value: Any) -> Any:
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        unknown = [role for role in value if role not in ROLES]
        if unknown:
            raise ValueError(f"role {one_of(ROLES, unknown[0])}")
        return tuple(role for role in ROLES if role in set(value))
    return value


_as_list = PlainSerializer(lambda value: value if value == "all" else list(value))
Layers = Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_indices), _as_list]
"""`"all"`, or layer indices counted from the input, from 0."""
Roles = Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_roles), _as_list]
"""`"all"`, or role names; see `autopeft.spec.model.ROLES`."""


class Block(BaseModel):
    """Settings of one technique in a design; frozen, validated when built.

    Class attributes:
        kind: Name in files and on the command line.
        size_field: The field that says how large the block is, or None; 0 in a search space leaves the block out.
        size_is_factor: Whether all that it brings and computes is in proportion to its size, or the same at any: costs
            of all sizes are then told from two.
        whole_model: Whether the technique belongs to the model as a whole: such a block has no layers to choose.
        space_fields: Names that a search space may give besides the fields themselves.
        default_learning_rate: Used where a space gives none.
        slow_start: Whether the technique improves late, so that early stopping keeps it a quota.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    kind: ClassVar[str]
    size_field: ClassVar[str | None] = None
    size_is_factor: ClassVar[bool] = False
    whole_model: ClassVar[bool] = False
    space_fields: ClassVar[frozenset[str]] = frozenset()
    default_learning_rate: ClassVar[float] = 1e-3
    slow_start: ClassVar[bool] = False

    layers: Layers = "all"

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping):
            for name, value in settings.items():
                if _is_too_large(value):
                    raise ValueError(f"{name} must be at most {MAX_NUMBER:,}")
        return settings

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: Layers) -> Layers:
        if cls.whole_model and layers != "all":
            raise ValueError(f"{cls.kind} belongs to the model as a whole and has no layers: leave layers out")
        return layers

    @property
    def n_input_tokens(self) -> int:
        """Return how many tokens the block puts before every input; they take positions and computation."""
        return 0

    @property
    def starts_as_base(self) -> bool:
        """Return whether the model answers as the base does until the first training step."""
        return True

    @property
    def merge_obstacle(self) -> str:
        """Say why the block cannot be folded into the base weights; only asked where it is not `mergeable`."""
        return "what it adds depends on the input in a way that no weight can hold"

    @property
    def mergeable(self) -> bool:
        """Return whether the trained block can be folded into the base weights."""
        return False

    def base_parameters(self, model: ModelSummary) -> Iterator[str]:
        """Yield what the block trains of the base itself: paths of parameters, or of whole modules."""
        yield from ()

    def outside_content(self) -> Mapping[str, str]:
        """Return what the block read from outside of its settings, by path, with a hash of its content.

        A folder among them travels to workers that lack it; there `autopeft.spec.local_folders` says where it is.
        """
        return {}

    def conflicts(self) -> Mapping[str, str]:
        """Return the quantizations and the other kinds that the block cannot go with, each with the reason."""
        return {}

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Raise `DesignError` where the block is illegal on this model; subclasses add rules."""
        if self.layers != "all":
            for layer in self.layers:
                if not 0 <= layer < model.n_layers:
                    raise DesignError(
                        f"0 <= layer < n_layers must hold, but got layer={layer}, n_layers={model.n_layers}; "
                        f"change {self.kind}.layers"
                    )

    @classmethod
    def check_together(cls, blocks: Sequence["Block"], model: ModelSummary) -> None:
        """Raise `DesignError` where blocks of this kind exclude each other; subclasses override."""

    def resolve(self, model: ModelSummary) -> "Block":
        """Return the canonical form on this model: every layer named is written as `"all"`."""
        return self._collapse("layers", range(model.n_layers))

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether a design of blocks of this kind alone is one that stock PEFT can load."""
        return False

    @classmethod
    def exports_together(cls, blocks: Sequence["Block"], quantization: Quantization) -> bool:  # noqa: ARG003
        """Return whether stock PEFT can load blocks of this kind as one adapter, over a base in this storage."""
        return True

    def layer_indices(self, model: ModelSummary) -> tuple[int, ...]:
        """Return the layers that the block is in, as indices."""
        return tuple(range(model.n_layers)) if self.layers == "all" else self.layers

    def describe(self) -> str:
        """Say in words what the block is, without its layers."""
        return (
            self.kind if self.size_field is None else f"{self.kind} {self.size_field}={getattr(self, self.size_field)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return `{kind: settings}`, JSON-ready."""
        return {self.kind: self.model_dump(mode="json")}

    def _collapse(self, field: str, everything: Iterable[Any]) -> "Block":
        value = getattr(self, field)
        if value != "all" and set(value) >= set(everything):
            return self.model_copy(update={field: "all"})
        return self

    def sort_key(self) -> tuple[str, str]:
        """Return what designs order their blocks by."""
        return self.kind, json.dumps(self.to_dict(), sort_keys=True)


_REGISTRY: dict[str, type[Block]] = {}


def register(block: type[Block]) -> type[Block]:
    """Make a technique known under its `kind`; a class decorator.

    Raises:
        DesignError: Another class has taken that kind.
    """
    known = _REGISTRY.setdefault(block.kind, block)
    if (known.__module__, known.__qualname__) != (block.__module__, block.__qualname__):
        raise DesignError(f"block kind must be unique, but {block.kind!r} is both {known!r} and {block!r}")
    return block


@cache
def _discover() -> None:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()


def block_kinds() -> tuple[str, ...]:
    """Return the kinds of all known techniques, sorted."""
    _discover()
    return tuple(sorted(_REGISTRY))


def block_class(kind: str) -> type[Block]:
    """Return the technique registered under `kind`.

    Raises:
        DesignError: No technique has that kind.
    """
    _discover()
    if kind not in _REGISTRY:
        raise DesignError(f"block {one_of(block_kinds(), kind)}; one from outside autopeft must be installed here")
    return _REGISTRY[kind]


def packages_of(kinds: Iterable[str]) -> dict[str, str]:
    """Return the package that brings each technique from outside autopeft, as `name==version`.

    One that no entry point names is left out: it was registered by a script, and is known in that process alone.
    """
    entries = {entry.module: entry.dist for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.dist is not None}
    found = {}
    for kind in kinds:
        module = block_class(kind).__module__
        dist = next((dist for name, dist in entries.items() if f"{module}.".startswith(f"{name}.")), None)
        if dist is not None and dist.name != "autopeft":
            found[kind] = f"{dist.name}=={dist.version}"
    return found


def is_foreign(kind: str) -> bool:
    """Return whether a technique comes from outside autopeft, so that other processes may not know it."""
    return not block_class(kind).__module__.startswith("autopeft.")


def require_kinds(kinds: Iterable[str]) -> None:
    """Raise `DesignError` where this process, which is to train them, does not know all of these techniques."""
    if unknown := sorted(set(kinds) - set(block_kinds())):
        raise DesignError(
            f"every process that trains must know the technique {unknown[0]}, but a worker does not: one that a script "
            "registers is known in that script alone; put it into a package with an entry point in the group "
            f"{ENTRY_POINT_GROUP}, installed wherever workers run, or take executor=local"
        )


def first_shared(places: Iterable[Iterable[Place]]) -> Place | None:
    """Return the first place that is wanted a second time, or None.

    Args:
        places: What each block of a design wants for itself: layers, sublayers, linear maps.
    """
    taken: set[Place] = set()
    for place in chain.from_iterable(places):
        if place in taken:
            return place
        taken.add(place)
    return None


def make_block(kind: str, settings: Mapping[str, Any]) -> Block:
    """Build a block from its JSON form.

    Raises:
        DesignError: The kind is unknown, or a setting is unknown or illegal.
    """
    cls = block_class(kind)
    try:
        return cls(**settings)
    except ValidationError as error:
        raise DesignError(explain(error, prefix=kind, known=[*cls.model_fields, *cls.space_fields])) from None
