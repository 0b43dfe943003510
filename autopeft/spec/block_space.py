"""One entry of a search space: the choices of one block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.spec.block import Block, block_class
from autopeft.spec.choices import Groups, LayerRule, Param


@dataclass(frozen=True, kw_only=True)
class BlockSpace:
    """The choices of one block: whether it is used, its fields, its layers, its learning rate.

    Attributes:
        name: Of the entry; several entries may be of one kind.
        learning_rate: Shared by all entries of one kind; None takes the kind's default.
    """

    name: str
    kind: str
    use: Param
    fields: Mapping[str, Param]
    layers: LayerRule
    learning_rate: Param | None = None

    @property
    def block(self) -> type[Block]:
        """Return the technique."""
        return block_class(self.kind)

    @property
    def size(self) -> Param | None:
        """Return the choice of the block's size, or None where the space has none."""
        return None if self.block.size_field is None else self.fields.get(self.block.size_field)

    @property
    def chosen_by_group(self) -> str:
        """Return what each group of layers has for itself: the size's field, `use` for a block without, or nothing."""
        if not isinstance(self.layers, Groups):
            return ""
        return self.block.size_field or "use"

    def needed(self, n_layers: int) -> dict[str, Any]:
        """Return a value for every field that a block cannot do without, its size above 0, to try the others with."""
        return {
            name: param.least(n_layers) if name == self.block.size_field else param.extremes(n_layers)[0]
            for name, param in self.fields.items()
            if name == self.block.size_field or (name in self.block.model_fields and self._is_required(name))
        }

    def _is_required(self, name: str) -> bool:
        return self.block.model_fields[name].is_required()
