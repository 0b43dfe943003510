"""A search space without what a model cannot have: so that one space serves many architectures."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from autopeft.errors import DesignError
from autopeft.spec.block import make_block
from autopeft.spec.block_space import BlockSpace
from autopeft.spec.choices import Choice
from autopeft.spec.design import check_quantization
from autopeft.spec.model import ROLES, ModelSummary
from autopeft.spec.space import SearchSpace
from autopeft.spec.space_size import layer_owner

_PLACES = ("at", "mode")
"""Fields that say which sublayers of a layer a technique is in, and how."""


def leave_out_unsupported(space: SearchSpace, model: ModelSummary) -> tuple[SearchSpace, tuple[str, ...]]:
    """Fit a space to what the model's architecture has, and say how.

    An entry that may be left out (`use: [true, false]`) is, where the model cannot have its technique even in its
    smallest form. A role of a fused map means that map (see `ModelSummary.fused`), and a choice of roles that the model
    has no maps for is left out where another one remains. All else that does not fit is for
    `SearchSpace.check` to refuse.

    Returns:
        The space, and one note for each change.
    """
    blocks = tuple(_with_fused_roles(entry, model) for entry in space.blocks)
    changed = [new.name for new, old in zip(blocks, space.blocks, strict=True) if new != old]
    said = describe_fused(model) or f"those that {model.architecture} has no maps for are left out"
    notes = [f"roles of {', '.join(changed)}: {said}"] if changed else []
    blocks, more = _with_possible_places(blocks, model)
    notes += more
    space, note = _with_quantization(space, model)
    notes += [note] if note else []
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


def describe_fused(model: ModelSummary) -> str:
    """Say which maps of a model stand for several roles; empty where none does."""
    stand_for: dict[str, list[str]] = {}
    for role in ROLES:
        for fused in model.fused([role]):
            stand_for.setdefault(fused, []).append(role)
    return "; ".join(
        f"{fused} stands for {' and '.join([', '.join(alone[:-1]), alone[-1]])}, as one map makes "
        f"{'all three' if len(alone) == 3 else 'both'}"
        for fused, roles in stand_for.items()
        if len(alone := [role for role in roles if role != fused or role == "mlp_up"]) > 1
    )


def _with_quantization(space: SearchSpace, model: ModelSummary) -> tuple[SearchSpace, str]:
    """Return the space without the storages that the model cannot have, where any is left, and a note."""
    if not isinstance(space.quantization, Choice):
        return space, ""
    kept, reasons = [], {}
    for option in space.quantization.options:
        try:
            check_quantization(option, model)
            kept.append(option)
        except DesignError as error:
            reasons[option] = str(error).rpartition("; ")[0]
    if not kept or not reasons:
        return space, ""
    note = f"{', '.join(reasons)} is left out of the space {space.name}: {next(iter(reasons.values()))}"
    return replace(space, quantization=replace(space.quantization, options=tuple(kept))), note


def _with_fused_roles(entry: BlockSpace, model: ModelSummary) -> BlockSpace:
    roles = entry.fields.get("roles")
    if not isinstance(roles, Choice):
        return entry
    fused = dict.fromkeys(o if isinstance(o, str) else model.fused(o) for o in roles.options)
    present = tuple(o for o in fused if isinstance(o, str) or set(o) <= set(model.roles))
    options = present or tuple(fused)
    if options == roles.options:
        return entry
    return replace(entry, fields={**entry.fields, "roles": replace(roles, options=options)})


def _with_possible_places(
    entries: tuple[BlockSpace, ...], model: ModelSummary
) -> tuple[tuple[BlockSpace, ...], list[str]]:
    """Return the entries without the sublayers and modes that no layer has, where another choice remains, and notes."""
    changed, notes = [], []
    for entry in entries:
        for name in _PLACES:
            param = entry.fields.get(name)
            if not isinstance(param, Choice):
                continue
            reasons = {option: _obstacle(entry, entries, model, {name: option}) for option in param.options}
            kept = tuple(option for option in param.options if not reasons[option])
            if kept and len(kept) < len(param.options):
                entry = replace(entry, fields={**entry.fields, name: replace(param, options=kept)})
                reason = next(reason for reason in reasons.values() if reason)
                notes.append(f"{entry.name}.{name} is narrowed: {reason.rpartition('; ')[0]}")
        changed.append(entry)
    return tuple(changed), notes


def _obstacle(
    entry: BlockSpace, entries: Iterable[BlockSpace], model: ModelSummary, chosen: Mapping[str, Any] | None = None
) -> str:
    """Return why the model cannot have the smallest form of a technique, with some options, or an empty string."""
    layers = layer_owner(entry, tuple(entries)).layers
    fewest = layers.fewest(model.n_layers)  # type: ignore[union-attr]
    block = make_block(entry.kind, {**entry.needed(model.n_layers), "layers": fewest, **(chosen or {})})
    try:
        block.check(model, "none")
    except DesignError as error:
        # What was made elsewhere for another model is a mistake, and no matter of the architecture.
        return "" if block.outside_content() else str(error)
    return ""
