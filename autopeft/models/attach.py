"""Attaching a design to a base model as one transaction, with an exact undo."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import nn

from autopeft.errors import ArtifactError, AutopeftError, DesignError, ModelError
from autopeft.models.base import Base
from autopeft.models.checkpointing import checkpoint_layers
from autopeft.models.technique import DISPLACED, Foldable, Site, StepPosition, Technique
from autopeft.spec.block import Block, block_class
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import HEAD
from autopeft.spec.messages import first_line


class Attached:
    """A design on a base model; also a context manager that detaches.

    Attributes:
        model: The base's model, changed in place.
        design: What is attached.
        base: What it is attached to.
        groups: Trainable parameters by `head` and block kind; disjoint, and together all that train.
        n_trainable: How many numbers train.
        sites: Where each of them was attached, by `head` and block kind.
        rate_factors: What a group's learning rate is multiplied by, for parameters that want another.
    """

    def __init__(self, base: Base, design: Design, sites: Mapping[str, Site], undo: ExitStack) -> None:
        self.base = base
        self.model = base.model
        self.design = design
        self.groups: dict[str, list[nn.Parameter]] = {kind: site.trainable for kind, site in sites.items()}
        self.n_trainable = sum(p.numel() for group in self.groups.values() for p in group)
        self.sites = dict(sites)
        self.rate_factors = {p: factor for site in sites.values() for p, factor in site.rate_factors.items()}
        self._techniques = _by_technique(design)
        self._undo = undo
        owned = {id(tensor) for site in sites.values() for tensor in (*site.trainable, *site.frozen)}
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        self._tensors = {name: tensor for name, tensor in named if id(tensor) in owned}

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy, on the CPU, of every tensor that the design brought, by its path in the model."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self._tensors.items()}

    def exported_tensors(self) -> dict[str, torch.Tensor]:
        """Return what an export holds, by path in the model: the state, with folded modules as what they fold to."""
        tensors = dict(self._tensors)
        for path, module in ((p, m) for site in self.sites.values() for p, m in site.added.items()):
            if isinstance(module, Foldable):
                tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{path}.")}
                with torch.no_grad():
                    folded = module.folded().state_dict()
                tensors |= {f"{path}.{name}": tensor for name, tensor in folded.items()}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Write the tensors of `state` back.

        Raises:
            ArtifactError: The names or shapes are not those of this design; nothing is written then.
        """
        differing = sorted(self._tensors.keys() ^ state.keys())
        if differing:
            where = "lacks" if differing[0] in self._tensors else "has no place for"
            raise ArtifactError(f"a state must hold exactly the design's tensors, but it {where} {differing[0]}")
        for name, tensor in self._tensors.items():
            if tensor.shape != state[name].shape:
                raise ArtifactError(
                    f"a state must fit the design, but {name} has shape {tuple(state[name].shape)} instead of "
                    f"{tuple(tensor.shape)}"
                )
            if tensor.is_floating_point() != state[name].is_floating_point():
                raise ArtifactError(
                    f"a state must fit the design, but {name} has dtype {state[name].dtype} instead of {tensor.dtype}"
                )
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state[name])

    def training_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that techniques write from step to step, by kind and name; no copies."""
        return {f"{kind}/{name}": t for kind, site in self.sites.items() for name, t in site.training_state.items()}

    def penalty(self) -> torch.Tensor | None:
        """Return what the techniques add to the loss of a training step, a scalar, or None."""
        penalties = [t.penalty(blocks, self.sites[t.kind]) for t, blocks in self._techniques]
        present = [penalty for penalty in penalties if penalty is not None]
        return torch.stack(present).sum() if present else None

    def after_step(self, position: StepPosition) -> None:
        """Let the techniques act after an optimizer step, before the gradients are dropped."""
        for technique, blocks in self._techniques:
            technique.after_step(blocks, self.sites[technique.kind], position)

    def merge(self) -> None:
        """Write the trained design into the base's weights, and detach: the base is another model from then on.

        Only for designs whose blocks are all mergeable.
        """
        with torch.no_grad():
            for technique, blocks in self._techniques:
                technique.merge(blocks, self.sites[technique.kind])
            trained = self.state()
            self.detach()
            own = dict([*self.model.named_parameters(), *self.model.named_buffers()])
            for name, tensor in trained.items():
                place = own.get(name.replace(".base_layer.", "."))  # a parameter that trained may have been wrapped
                if place is not None:
                    place.copy_(tensor)

    def detach(self) -> None:
        """Bring the base model back, bit for bit; doing it again does nothing."""
        self._undo.close()
        self._tensors = {}

    def __enter__(self) -> Self:
        """Return the handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()


def attach(
    base: Base,
    design: Design,
    *,
    seed: int = 0,
    restored: bool = False,
    inference: bool = False,
    checkpointing: bool = False,
) -> Attached:
    """Attach a design and start its new modules from a seed.

    Values depend on the seed and on what is attached alone: torch's generators are left as they
    were, and the head starts the same under every design.

    Args:
        base: A base with the design's quantization, or on the meta device.
        design: What to attach.
        seed: Of every tensor that the design brings.
        restored: Whether `load_state` follows, so that no technique needs to fetch values from elsewhere.
        inference: Whether the state that follows is an export's, where what only training needs is folded away.
        checkpointing: Whether layers compute their activations again in the backward pass, until detaching.

    Raises:
        DesignError: The design is illegal on this model.
        ModelError: The base has something attached already, is stored in another quantization, or cannot be
            checkpointed.
    """
    design.check(base.summary)
    if design.quantization != base.quantization and base.device.type != "meta":
        raise ModelError(
            f"the base must be stored as the design says, but it is {base.quantization!r} and the design wants "
            f"{design.quantization!r}; load it with that quantization"
        )
    if getattr(base.model, "_autopeft_attached", False):
        raise ModelError("one design can be attached at a time, but the base has one; detach it first")
    with ExitStack() as transaction:
        base.model._autopeft_attached = True
        transaction.callback(delattr, base.model, "_autopeft_attached")
        transaction.callback(vars(base.model).pop, DISPLACED, None)
        sites = {HEAD: _attach_head(base, transaction, seed)}
        for technique, blocks in _by_technique(design):
            site = Site(base.model, base.summary, transaction, restored=restored, inference=inference)
            with _seeded(seed, technique.kind), _refused(technique, base):
                technique.attach_all(blocks, site)
            sites[technique.kind] = site
        _set_requires_grad(base, sites)
        if checkpointing:
            checkpoint_layers(base.model, sites[HEAD].restore_attribute)
        return Attached(base, design, sites, transaction.pop_all())


def _by_technique(design: Design) -> list[tuple[type[Technique], list[Block]]]:
    """Return the techniques of a design with their blocks, in the order in which they attach."""
    techniques = []
    for kind in design.kinds:
        technique = block_class(kind)
        if not issubclass(technique, Technique):
            raise DesignError(f"a block must subclass autopeft.models.technique.Technique, but {kind!r} does not")
        techniques.append((technique, [block for block in design.blocks if block.kind == kind]))
    return sorted(techniques, key=lambda pair: (pair[0].stage, pair[0].kind))


def _attach_head(base: Base, transaction: ExitStack, seed: int) -> Site:
    """Put freshly initialised copies in the place of the modules that the checkpoint did not have."""
    site = Site(base.model, base.summary, transaction)
    for path in base.summary.new_modules:
        fresh = copy.deepcopy(site.module(path))
        device = next(fresh.parameters()).device
        if device.type != "meta":
            fresh.cpu()  # every device starts from the values of the CPU's generator
        with _seeded(seed, path):
            for module in fresh.modules():
                base.model._init_weights(module)
        fresh.to(device).requires_grad_(True)
        site.replace(path, fresh)
        for parameter in fresh.parameters():
            site.own(parameter)
        site.frozen.extend(fresh.buffers())
    return site


def _set_requires_grad(base: Base, sites: Mapping[str, Site]) -> None:
    """Make exactly the expected parameters train.

    Raises:
        ModelError: A technique names a parameter that is not in the model, or that another one trains.
    """
    expected: dict[int, str] = {}
    for kind, site in sites.items():
        for parameter in site.trainable:
            if id(parameter) in expected:
                raise ModelError(
                    f"a parameter must have one owner, but {expected[id(parameter)]} and {kind} train the same"
                )
            expected[id(parameter)] = kind
    for parameter in base.model.parameters():
        parameter.requires_grad_(id(parameter) in expected)
    present = {id(parameter) for parameter in base.model.parameters() if parameter.requires_grad}
    for name, kind in expected.items():
        if name not in present:
            raise ModelError(f"every trainable parameter must be part of the model, but one of {kind} is not")


@contextmanager
def _refused(technique: type[Technique], base: Base) -> Iterator[None]:
    """Turn what goes wrong inside on an architecture that nobody tried into a refusal."""
    try:
        yield
    except (AutopeftError, MemoryError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DesignError(
            f"{technique.kind} must fit the model, but attaching it to {base.summary.architecture} ends in "
            f"{type(error).__name__}: {first_line(error)}; take {technique.kind} out of the space"
        ) from error


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    """Seed torch's CPU generator by (seed, name) inside, and give it back its state afterwards."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
    try:
        yield
    finally:
        torch.set_rng_state(state)
