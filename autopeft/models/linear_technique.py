"""Techniques that change linear maps chosen by layer and role, with peft's layers: what they have in common."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from autopeft.errors import DesignError
from autopeft.models import peft_gate
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, Roles, first_shared
from autopeft.spec.messages import nearest
from autopeft.spec.model import ROLES, LinearSummary, ModelSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LinearTechnique(Technique):
    """Settings that every technique on linear maps has; a subclass adds its own, and `peft_settings`.

    Attributes:
        roles: The linear maps that are changed in each layer.

    Class attributes:
        peft_type: Name of the technique in peft, such as `"LORA"`.
        shared_fields: What peft keeps once for all of an adapter's layers: blocks of one design must agree on it.
        stock_fields: What stock peft keeps once, but we do not: where blocks differ in it, only autopeft loads them.
        takes_transposed: Whether maps that store their weight as [in, out] can be changed (GPT-2's `Conv1D`).
    """

    stage: ClassVar[int] = 0
    peft_type: ClassVar[str]
    shared_fields: ClassVar[tuple[str, ...]] = ()
    stock_fields: ClassVar[tuple[str, ...]] = ()
    takes_transposed: ClassVar[bool] = True

    roles: Roles = "all"

    @property
    def mergeable(self) -> bool:
        """Return True: what is added to a linear map can be added to its weight."""
        return True

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:
        """Return the arguments of peft's configuration besides the targets.

        Args:
            targets: The block that each linear map gets, by the map's path; never empty.
            conv1d: Whether the maps are GPT-2's, whose weights are transposed.
        """
        raise NotImplementedError

    def targets(self, model: ModelSummary) -> Iterator[LinearSummary]:
        """Yield the linear maps that the block changes."""
        wanted = ROLES if self.roles == "all" else model.fused(self.roles)
        for index in self.layer_indices(model):
            roles = model.layers[index].roles
            yield from (roles[role] for role in wanted if role in roles)

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and maps that cannot be changed; subclasses add rules on their size."""
        super().check(model, quantization)
        for linear in self.targets(model):
            if linear.transposed and not self.takes_transposed:
                raise DesignError(
                    f"{self.kind} needs maps that store their weight as [out, in], but {linear.path} of "
                    f"{model.architecture} stores it as [in, out] (Conv1D), which peft's {self.peft_type} cannot wrap; "
                    "take another technique, such as lora"
                )
        if self.roles != "all":
            for role in model.fused(self.roles):
                if role not in model.roles:
                    raise DesignError(
                        f"{self.kind}.roles must be roles of the model ({', '.join(model.roles)}), but got {role!r}"
                        f"{nearest(role, model.roles)}"
                    )
            chosen = self.layer_indices(model)
            if chosen and next(self.targets(model), None) is None:
                raise DesignError(
                    f"a chosen layer must have one of {self.kind}.roles, but none of layers "
                    f"{', '.join(map(str, chosen))} has {' or '.join(self.roles)}; change {self.kind}.layers"
                )

    def check_rank(self, rank: int, model: ModelSummary, field: str = "rank") -> None:
        """Refuse a rank above what the maps can have, in the words of the field that it comes from."""
        if rank > model.hidden_size:
            raise DesignError(
                f"{field} <= hidden_size must hold, but got {field}={rank}, hidden_size={model.hidden_size}; "
                f"lower {self.kind}.rank"
            )
        for linear in self.targets(model):
            if rank > min(linear.in_features, linear.out_features):
                raise DesignError(
                    f"{field} <= min(in_features, out_features) must hold, but got {field}={rank} for {linear.path} of "
                    f"{linear.in_features} x {linear.out_features}; lower {self.kind}.rank"
                )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse blocks that share a linear map, or that peft cannot keep in one configuration."""
        own = [block for block in blocks if isinstance(block, cls)]
        path = first_shared((linear.path for linear in block.targets(model)) for block in own)
        if path is not None:
            raise DesignError(f"a linear map can have one {cls.kind}, but two blocks want {path}; make them disjoint")
        for field in cls.shared_fields:
            values = sorted({getattr(block, field) for block in own})
            if len(values) > 1:
                raise DesignError(
                    f"{cls.kind} blocks of one design must have the same {field}, because peft keeps one {field} for "
                    f"all of an adapter's layers, but got {' and '.join(map(str, values))}"
                )

    def resolve(self, model: ModelSummary) -> Block:
        """Write fused maps by their role, and every layer and every role of the model as `all`."""
        resolved = super().resolve(model)
        if self.roles != "all":
            resolved = resolved.model_copy(update={"roles": model.fused(self.roles)})
        return resolved._collapse("roles", model.roles)

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return True: peft has targets for each map."""
        return True

    @classmethod
    def exports_together(cls, blocks: Sequence[Block], quantization: Quantization) -> bool:  # noqa: ARG003
        """Return whether the blocks agree on what stock peft keeps once."""
        return all(len({getattr(block, field) for block in blocks}) <= 1 for field in cls.stock_fields)

    def describe_roles(self) -> str:
        """Say which roles are changed, after a size."""
        return f"on {'all roles' if self.roles == 'all' else ', '.join(self.roles)}"

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Inject all blocks as one peft adapter."""
        targets = {linear.path: block for block in blocks for linear in block.targets(site.summary)}
        conv1d = any(type(site.base_module(path)).__name__ == "Conv1D" for path in targets)
        peft_gate.inject(site, cls.peft_type, list(targets), cls.peft_settings(targets, conv1d=conv1d))

    @classmethod
    def merge(cls, blocks: Sequence[Self], site: Site) -> None:
        """Let peft's layers do it."""
        for block in blocks:
            for linear in block.targets(site.summary):
                peft_gate.fold(site, linear.path)

    @classmethod
    def to_peft(cls, blocks: Sequence[Self], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:  # noqa: ARG003
        """Return what was injected, as peft would save it."""
        return peft_gate.extract(site)


class RankTechnique(LinearTechnique):
    """Settings of a technique whose update has a rank.

    Attributes:
        rank: Of the update, or of its factors.
    """

    size_field: ClassVar[str | None] = "rank"

    rank: Annotated[int, Field(ge=1)]


class AlphaTechnique(RankTechnique):
    """Settings of a technique whose update is scaled by alpha over its rank.

    Attributes:
        alpha: Numerator of the scaling; the rank where it is not given, so that nothing is scaled.
    """

    space_fields: ClassVar[frozenset[str]] = frozenset({"alpha_ratio"})

    alpha: float = Field(default_factory=lambda settings: float(settings.get("rank", 1)), gt=0)

    @model_validator(mode="before")
    @classmethod
    def _read_alpha_ratio(cls, values: Any) -> Any:
        """Turn `alpha_ratio`, which a space may give, into alpha."""
        if not isinstance(values, Mapping) or "alpha_ratio" not in values:
            return values
        if "alpha" in values:
            raise ValueError("alpha and alpha_ratio exclude each other: give one of them")
        rest = {name: value for name, value in values.items() if name != "alpha_ratio"}
        try:
            return {**rest, "alpha": float(values["alpha_ratio"]) * int(values["rank"])}
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("alpha_ratio and rank must be numbers") from None


class HookedTechnique(LinearTechnique):
    """A technique with a module of its own beside each linear map, where peft's layer would not do.

    The module is `autopeft_<kind>` under the map, and adds what it makes of the map's input to the
    map's output: y = W x + module(x), linear in x. Whatever else is on the map, and however its weight is stored, stays
    in force. Files have peft's format.

    Class attributes:
        peft_names: peft's name of each tensor that a module may hold, by ours.
        peft_takes_transposed: Whether peft's layer can wrap maps that store their weight as [in, out].
        not_stock_over: Storages of the base over which peft's layer fails, or answers otherwise.
    """

    peft_names: ClassVar[Mapping[str, str]]
    peft_takes_transposed: ClassVar[bool] = False
    not_stock_over: ClassVar[tuple[Quantization, ...]] = ()

    def build(self, linear: LinearSummary) -> nn.Module:
        """Return the module for a linear map: called with its input, it returns what is added to its output."""
        raise NotImplementedError

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether peft's layer can wrap the maps."""
        return self.peft_takes_transposed or not any(linear.transposed for linear in self.targets(model))

    @classmethod
    def exports_together(cls, blocks: Sequence[Block], quantization: Quantization) -> bool:
        """Return whether the blocks agree on what peft keeps once, and peft's layer answers as ours over it."""
        return quantization not in cls.not_stock_over and super().exports_together(blocks, quantization)

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Put a module beside each linear map, and add what it computes."""
        for block in blocks:
            for linear in block.targets(site.summary):
                module = block.build(linear)
                site.add(linear.path, f"autopeft_{cls.kind}", module)
                site.hook(site.module(linear.path), partial(_add, module))

    @classmethod
    def merge(cls, blocks: Sequence[Self], site: Site) -> None:
        """Add to each weight what its module makes of the identity: the module is linear."""
        for linear in (linear for block in blocks for linear in block.targets(site.summary)):
            name = f"autopeft_{cls.kind}"
            module = getattr(site.holder(linear.path, name), name)
            weight = site.base_module(linear.path).weight
            assert isinstance(weight, torch.Tensor)
            with torch.no_grad():
                added = module(torch.eye(linear.in_features, device=weight.device))
                weight += (added if linear.transposed else added.T).to(weight.dtype)

    @classmethod
    def to_peft(cls, blocks: Sequence[Self], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and the modules' tensors under peft's names."""
        targets = {linear.path: block for block in blocks for linear in block.targets(site.summary)}
        tensors = {
            f"{path}.{cls.peft_names[name]}": tensor.detach().cpu().contiguous()
            for path in targets
            for name, tensor in site.module(f"{path}.autopeft_{cls.kind}").state_dict().items()
        }
        conv1d = any(linear.transposed for block in blocks for linear in block.targets(site.summary))
        settings = cls.peft_settings(targets, conv1d=conv1d)
        return {"peft_type": cls.peft_type, "target_modules": list(targets), **settings}, tensors

    @classmethod
    def from_peft(
        cls,
        tensors: Mapping[str, torch.Tensor],
        model: "PreTrainedModel",  # noqa: ARG003
    ) -> dict[str, torch.Tensor]:
        """Return the tensors by their path in the attached model."""
        ours = {theirs: ours for ours, theirs in cls.peft_names.items()}
        state = {}
        for name, tensor in tensors.items():
            path, _, last = name.removeprefix("base_model.model.").rpartition(".")
            state[f"{path}.autopeft_{cls.kind}.{ours[last]}" if last in ours else f"{path}.{last}"] = tensor
        return state


class UnscaledTechnique(RankTechnique, HookedTechnique):
    """A technique that adds an update of a rank as it is; stock peft has one rank for all of an adapter's maps."""

    stock_fields: ClassVar[tuple[str, ...]] = ("rank",)

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:  # noqa: ARG003
        """Return the rank."""
        return {"r": next(iter(targets.values())).rank}


class ScaledTechnique(AlphaTechnique, HookedTechnique):
    """A technique that adds s times a product of factors of a rank, with s = alpha / rank."""

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:  # noqa: ARG003
        """Return the first block's scaling, with patterns for the maps that differ."""
        first = next(iter(targets.values()))
        return {
            "r": first.rank,
            "alpha": first.alpha,
            "rank_pattern": {path: block.rank for path, block in targets.items() if block.rank != first.rank},
            "alpha_pattern": {path: block.alpha for path, block in targets.items() if block.alpha != first.alpha},
        }


def _add(module: nn.Module, _map: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = module(args[0])
    return output + added.to(output.dtype)
