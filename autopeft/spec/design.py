"""A design: what is attached to the base model, and how the base is stored."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

from autopeft.errors import DesignError
from autopeft.spec.block import Block, Quantization, block_class, make_block
from autopeft.spec.messages import echo, one_of, unknown_key
from autopeft.spec.model import ModelSummary

Serving = Literal["merge", "peft", "autopeft"]
"""How a trained design is served: merged into the base at no cost, by stock PEFT, or by autopeft alone."""
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)


@dataclass(frozen=True, kw_only=True)
class Design:
    """A tuple of blocks and the quantization of the base; no blocks means the head alone.

    Equal designs are one design: `blocks` is kept sorted, and `resolve` writes a design in the one
    form that it has on a given model.
    """

    blocks: tuple[Block, ...] = ()
    quantization: Quantization = "none"

    def __post_init__(self) -> None:
        """Validate the quantization and put the blocks in canonical order."""
        if self.quantization not in QUANTIZATIONS:
            raise DesignError(f"quantization {one_of(QUANTIZATIONS, self.quantization)}")
        object.__setattr__(self, "blocks", tuple(sorted(self.blocks, key=Block.sort_key)))

    @cached_property
    def key(self) -> str:
        """Return a short stable identifier: equal designs have equal keys."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the block kinds in use, sorted, each once."""
        return tuple(sorted({block.kind for block in self.blocks}))

    def check(self, model: ModelSummary) -> None:
        """Raise `DesignError` where the design is illegal on this model."""
        check_quantization(self.quantization, model)
        for block in self.blocks:
            block.check(model, self.quantization)
            for other, reason in block.conflicts().items():
                if other in (self.quantization, *self.kinds):
                    raise DesignError(f"{block.describe()} cannot go with {other}: {reason}; leave out one of the two")
        for kind in self.kinds:
            block_class(kind).check_together([block for block in self.blocks if block.kind == kind], model)
        self._check_owners(model)

    def _check_owners(self, model: ModelSummary) -> None:
        """Raise `DesignError` where two blocks train the same parameter of the base."""
        wanted = [(path.split("."), block) for block in self.blocks for path in block.base_parameters(model)]
        # what is inside of a module comes right after it
        for (outer, first), (inner, second) in pairwise(sorted(wanted, key=lambda pair: pair[0])):
            if inner[: len(outer)] == outer:
                raise DesignError(
                    f"a parameter of the base can train in one block only, but {first.describe()} and "
                    f"{second.describe()} both train {'.'.join(inner)}; give them different layers, or leave out one"
                )

    def resolve(self, model: ModelSummary) -> "Design":
        """Return the canonical form on this model: empty blocks dropped, full choices written `all`.

        Blocks that differ only in their layers become one.
        """
        merged: dict[Block, set[int]] = {}
        for block in self.blocks:
            merged.setdefault(block.model_copy(update={"layers": ()}), set()).update(block.layer_indices(model))
        blocks = tuple(
            block.model_copy(update={"layers": tuple(sorted(layers))}).resolve(model)
            for block, layers in merged.items()
            if layers
        )
        return Design(blocks=blocks, quantization=self.quantization)

    def serving(self, model: ModelSummary) -> Serving:
        """Return how the trained design is served; see `Serving`."""
        if self.quantization == "none" and all(block.mergeable for block in self.blocks):
            return "merge"
        return "peft" if self.exports_to_peft(model) else "autopeft"

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether the export is a folder that stock PEFT loads: blocks of one kind that it can express."""
        return (
            len(self.kinds) == 1
            and all(block.exports_to_peft(model) for block in self.blocks)
            and block_class(self.kinds[0]).exports_together(self.blocks, self.quantization)
        )

    def describe(self) -> str:
        """Say in words what the design is."""
        base = [] if self.quantization == "none" else [f"{self.quantization} base"]
        parts = [
            block.describe() + ("" if block.layers == "all" else f" in {_name_layers(block.layers)}")
            for block in self.blocks
        ]
        return " + ".join(parts or ["head only"]) + "".join(f", {part}" for part in base)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that study files, Optuna, exports and the command line share."""
        return {"quantization": self.quantization, "blocks": [block.to_dict() for block in self.blocks]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Design":
        """Build a design from its JSON form.

        Raises:
            DesignError: A key, a block or a setting is unknown or illegal.
        """
        if not isinstance(values, Mapping):
            raise DesignError(f"a design must be an object with quantization and blocks, but got {echo(values)}")
        for name in values:
            if name not in ("quantization", "blocks"):
                raise DesignError(unknown_key(str(name), ("quantization", "blocks")))
        blocks = values.get("blocks", [])
        if not isinstance(blocks, list | tuple) or not all(isinstance(b, Mapping) and len(b) == 1 for b in blocks):
            raise DesignError(
                'blocks must be a list of objects with one kind each, such as {"lora": {"rank": 8}}, '
                f"but got {echo(blocks)}"
            )
        made = []
        for block in blocks:
            ((kind, settings),) = block.items()
            if not isinstance(settings, Mapping):
                raise DesignError(f"the settings of {kind} must be an object, but got {echo(settings)}")
            made.append(make_block(str(kind), settings))
        return cls(blocks=tuple(made), quantization=values.get("quantization", "none"))


def check_quantization(quantization: Quantization, model: ModelSummary) -> None:
    """Raise `DesignError` where the linear maps of a model cannot be stored so."""
    if quantization != "none" and model.own_maps:
        raise DesignError(
            f"quantization={quantization!r} needs plain linear maps, but those of {model.architecture} are "
            f"{model.own_maps}, which bitsandbytes leaves as they are; take quantization none"
        )


def _name_layers(indices: tuple[int, ...]) -> str:
    """Write sorted indices compactly: (0, 1, 2, 5) becomes layers 0-2, 5."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    ranges = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer{'' if len(indices) == 1 else 's'} {ranges}"
