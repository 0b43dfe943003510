"""A search space without what a model cannot have: so that one space serves many architectures."""

from collections.abc import Iterable
from dataclasses import replace

from autopeft.errors import DesignError
from autopeft.spec.block import make_block
from autopeft.spec.block_space import BlockSpace
from autopeft.spec.choices import Choice
from autopeft.spec.model import ModelSummary
from autopeft.spec.space import SearchSpace
from autopeft.spec.space_size import layer_owner

FUSED = {"query": "qkv", "key": "qkv", "value": "qkv"}


def leave_out_impossible(space: SearchSpace, model: ModelSummary) -> tuple[SearchSpace, tuple[str, ...]]:
    """Fit a space to what the model's architecture has, and say how.

    An entry that may be left out (`use: [true, false]`) is, where the model cannot have its technique even in its
    smallest form. Where one map makes queries, keys and values, roles that name one of them mean that map. All else
    that does not fit is for `SearchSpace.check` to refuse.

    Returns:
        The space, and one note for each change.
    """
    fused = "qkv" in model.roles and "query" not in model.roles
    blocks = tuple(_with_fused_roles(entry) if fused else entry for entry in space.blocks)
    changed = [new.name for new, old in zip(blocks, space.blocks, strict=True) if new != old]
    notes = [f"roles of {', '.join(changed)}: qkv stands for query, key and value, as one map makes all three"]
    notes = notes if changed else []
    shared = {layer_owner(entry, blocks).name for entry in blocks if layer_owner(entry, blocks) is not entry}
    kept = []
    for entry in blocks:
        optional = isinstance(entry.use, Choice) and False in entry.use.options and entry.name not in shared
        reason = _obstacle(entry, blocks, model) if optional else ""
        if reason:
            notes.append(f"{entry.name} is left out of the space {space.name}: {reason.rpartition('; ')[0]}")
        else:
            kept.append(entry)
    names = {entry.name for entry in kept}
    any_of = tuple(name for name in space.any_of if name in names)
    if not kept or (space.any_of and not any_of):
        return space, ()  # nothing would be left: the check says what is wrong
    return replace(space, blocks=tuple(kept), any_of=any_of), tuple(notes)


def outside_content(space: SearchSpace, model: ModelSummary) -> dict[str, str]:
    """Return what the blocks of a space read from outside of it, by path, with a hash of its content."""
    found: dict[str, str] = {}
    for entry in space.blocks:
        layers = layer_owner(entry, space.blocks).layers
        needed = {**entry.needed(model.n_layers), "layers": layers.fewest(model.n_layers)}  # type: ignore[union-attr]
        for name, param in entry.fields.items():
            for option in param.extremes(model.n_layers) if isinstance(param, Choice) else ():
                try:
                    found |= make_block(entry.kind, {**needed, name: option}).outside_content()
                except DesignError:
                    continue  # a size of 0
    return found


def _with_fused_roles(entry: BlockSpace) -> BlockSpace:
    roles = entry.fields.get("roles")
    if not isinstance(roles, Choice):
        return entry
    options = tuple(dict.fromkeys(o if isinstance(o, str) else _fused(o) for o in roles.options))
    return replace(entry, fields={**entry.fields, "roles": replace(roles, options=options)})


def _fused(roles: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(FUSED.get(role, role) for role in roles))


def _obstacle(entry: BlockSpace, entries: Iterable[BlockSpace], model: ModelSummary) -> str:
    """Return why the model cannot have the smallest form of a technique, or an empty string."""
    layers = layer_owner(entry, tuple(entries)).layers
    settings = {**entry.needed(model.n_layers), "layers": layers.fewest(model.n_layers)}  # type: ignore[union-attr]
    block = make_block(entry.kind, settings)
    try:
        block.check(model, "none")
    except DesignError as error:
        # What was made elsewhere for another model is a mistake, and no matter of the architecture.
        return "" if block.outside_content() else str(error)
    return ""
