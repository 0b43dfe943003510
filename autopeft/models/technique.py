"""What a technique is to the code that attaches it: a block that can change a model and say how."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.spec.block import Block
from autopeft.spec.model import ModelSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DISPLACED = "_autopeft_displaced"
"""Attribute of a model: the parameters whose trained copies are in their places. They take memory until detaching."""
_MISSING = object()


@runtime_checkable
class Foldable(Protocol):
    """A module that training needs more of than inference: an export holds what it folds to, in its place."""

    def folded(self) -> nn.Module:
        """Return a module that answers the same without what only training needs."""


class Site:
    """A model that a technique is being attached to, which remembers how to undo every change.

    A technique changes the model through these methods only; then detaching is exact, and the
    parameters that train are known by name.

    Attributes:
        model: The model, as the techniques attached before have left it.
        summary: Its layers and roles; paths stay valid whatever is attached.
        trainable: Parameters that the technique trains.
        frozen: Tensors that the technique owns and does not train; saved with it.
        rate_factors: What the kind's learning rate is multiplied by, for parameters that want another.
        training_state: What the technique remembers from step to step, by a name of its choice: tensors that it
            writes in place. They go into checkpoints like the optimizer's, and not into exports.
        restored: Whether saved tensors will be written over what the technique brings: it need not fetch any.
        inference: Whether an export is being opened: modules that can be folded are put in as what they fold to.
        added: The technique's own modules, by path.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        summary: ModelSummary,
        undo: ExitStack,
        *,
        restored: bool = False,
        inference: bool = False,
    ) -> None:
        self.model = model
        self.summary = summary
        self.restored = restored
        self.inference = inference
        self.added: dict[str, nn.Module] = {}
        self.trainable: list[nn.Parameter] = []
        self.frozen: list[torch.Tensor] = []
        self.rate_factors: dict[nn.Parameter, float] = {}
        self.training_state: dict[str, torch.Tensor] = {}
        self._undo = undo

    def module(self, path: str) -> nn.Module:
        """Return the module at a path; where a peft layer wraps a linear map, the wrapper."""
        module: nn.Module = self.model.get_submodule(path)
        return module

    def base_module(self, path: str) -> nn.Module:
        """Return the module of the base at a path, inside of whatever wraps it."""
        module = self.module(path)
        while isinstance(inner := getattr(module, "base_layer", None), nn.Module):  # peft's wrappers hold the map so
            module = inner
        return module

    def holder(self, path: str, name: str) -> nn.Module:
        """Return the module at a path, or the first inside of it, that has an attribute: others may be around it."""
        module = self.module(path)
        while not hasattr(module, name):
            module = module.get_submodule("base_layer")
        return module

    def linear(self, layer: int, role: str) -> nn.Module:
        """Return the linear map, or its wrapper, that has a role in a layer."""
        return self.module(self.summary.layers[layer].roles[role].path)

    def add(self, parent: str, name: str, module: nn.Module) -> None:
        """Put a module of the technique's own under a module of the model, in fp32, to be trained.

        Parameters whose `requires_grad` is False stay frozen, and are saved like buffers.

        Raises:
            ModelError: The name is taken.
        """
        place = self.module(parent)
        if hasattr(place, name):
            raise ModelError(f"an own module needs a free name, but {parent}.{name} exists")
        if self.inference and isinstance(module, Foldable):
            module = module.folded()
        near = next(place.parameters())  # where the layer is: another device for some layers, or meta in a dry run
        place.add_module(name, module.to(device=near.device, dtype=torch.float32))
        self._undo.callback(delattr, place, name)
        self.added[f"{parent}.{name}" if parent else name] = module
        for parameter in module.parameters():
            self.own(parameter)
        self.frozen.extend(buffer for buffer in module.buffers() if buffer is not None)

    def own(self, parameter: nn.Parameter) -> None:
        """Take a parameter that the technique brought: train it in fp32, or keep it frozen and save it."""
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            self.trainable.append(parameter)
        else:
            self.frozen.append(parameter)

    def freeze(self, parameter: nn.Parameter) -> None:
        """Keep a parameter that the technique trained as it is: it is saved still."""
        self.trainable = [each for each in self.trainable if each is not parameter]
        self.frozen.append(parameter)

    def train(self, path: str) -> nn.Parameter:
        """Train a parameter of the base: a copy takes its place, and the original comes back untouched.

        A parameter that the model uses in several places stays the same in all of them.
        """
        parent, _, name = path.rpartition(".")
        original = getattr(self.base_module(parent), name)
        copy = nn.Parameter(original.detach().clone().float())
        for module in self.model.modules():
            for own_name, parameter in module._parameters.items():
                if parameter is original:
                    self._undo.callback(setattr, module, own_name, original)
                    setattr(module, own_name, copy)
        vars(self.model).setdefault(DISPLACED, []).append(original)
        self.trainable.append(copy)
        return copy

    def replace(self, path: str, module: nn.Module) -> None:
        """Put another module in the place of one of the model's."""
        self.restore_module(path)
        parent, _, name = path.rpartition(".")
        setattr(self.module(parent), name, module)

    def hook(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Run `function(module, args, output)` after a module's forward; what it returns is the output."""
        self._undo.callback(module.register_forward_hook(function).remove)

    def pre_hook(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Run `function(module, args, kwargs)` before a module's forward; it may return both anew."""
        self._undo.callback(module.register_forward_pre_hook(function, with_kwargs=True).remove)

    def restore_module(self, path: str) -> None:
        """Put the module that is at a path now back there on detaching."""
        parent, _, name = path.rpartition(".")
        place = self.module(parent)
        self._undo.callback(setattr, place, name, getattr(place, name))

    def restore_attribute(self, owner: Any, name: str) -> None:
        """Give an attribute its present value again on detaching, or delete it where there is none now."""
        value = vars(owner).get(name, _MISSING)

        def restore() -> None:
            if value is not _MISSING:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)

        self._undo.callback(restore)

    def on_detach(self, action: Callable[[], object]) -> None:
        """Run an action on detaching; the last one that was added runs first."""
        self._undo.callback(action)


@dataclass(frozen=True, kw_only=True)
class StepPosition:
    """Where an optimizer step stands in a full training.

    Attributes:
        step: Index of the step, from 0.
        examples: Examples trained on when the step is done.
        full: Examples of the full training.
    """

    step: int
    examples: int
    full: int


class Technique(Block):
    """A block with the code that attaches it; subclass it, decorate with `register`, and that is all.

    Class attributes:
        stage: Techniques attach in ascending stage: 0 wraps linear maps or changes the input, 1 wraps what is then
            there, 2 hooks into it.
    """

    stage: ClassVar[int] = 2

    def attach(self, site: Site) -> None:
        """Change the model; called inside a transaction, with torch's generator seeded."""
        raise NotImplementedError

    @classmethod
    def attach_all(cls, blocks: Sequence[Any], site: Site) -> None:
        """Attach every block of this kind in a design; override where they must be attached as one."""
        for block in blocks:
            block.attach(site)

    @classmethod
    def penalty(cls, blocks: Sequence[Any], site: Site) -> torch.Tensor | None:  # noqa: ARG003
        """Return what a training step adds to the loss, a scalar, or None; called in fp32, outside of autocast."""
        return None

    @classmethod
    def after_step(cls, blocks: Sequence[Any], site: Site, position: StepPosition) -> None:
        """Act after an optimizer step, while the gradients are still there.

        What is remembered from step to step must be in `site.training_state`, or a parameter or buffer that the
        site owns: they travel with the checkpoint, and a training cut into segments equals one long run.
        """

    @classmethod
    def merge(cls, blocks: Sequence[Any], site: Site) -> None:
        """Write what the technique does into the weights of the base's modules, in place.

        Called where every block of the design is `mergeable`, for each technique in the order in which they
        attached, and before all is detached: what is around the weights may stay there. Parameters of the base that
        the technique trains itself need nothing.
        """
        raise NotImplementedError

    @classmethod
    def to_peft(cls, blocks: Sequence[Any], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return a stock adapter's configuration and tensors; only asked where `exports_to_peft` holds."""
        raise NotImplementedError

    @classmethod
    def from_peft(
        cls,
        tensors: Mapping[str, torch.Tensor],  # noqa: ARG003
        model: "PreTrainedModel",  # noqa: ARG003
    ) -> dict[str, torch.Tensor] | None:
        """Return a stock adapter's tensors by their path in the attached model, or None: then peft opens the folder.

        Override where a model that peft opens does not answer as the attached one does.
        """
        return None
