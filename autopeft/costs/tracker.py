"""Follows the life of every storage through a step, and counts its floating-point operations.

The tensors may be fake (a dry run) or real: what is followed are storages, so that views and aliases
count once, in-place operations count nothing, and what autograd saves counts for as long as autograd
holds it. What this module does *not* know is what a kernel allocates for itself and frees before it
returns; `autopeft.costs.kernels` says that.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Category = Literal["base", "trainable", "gradients", "optimizer", "activations", "scratch"]
CATEGORIES: tuple[Category, ...] = ("base", "trainable", "gradients", "optimizer", "activations", "scratch")
"""What memory is for; `scratch` is what a kernel needs while it runs."""

Formula = Callable[..., int]
"""Bytes or FLOPs of one operator, as a function of its arguments and of its result as `out_val`."""
Run = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]
"""How an operator is run on arguments."""


class Observer(Protocol):
    """Whoever wants to know of every storage, in order; keys are those of storages that live at the same time."""

    def made(self, key: int, n_bytes: int, category: Category) -> None:
        """Hear of a storage that is new, or that was there before."""

    def freed(self, key: int) -> None:
        """Hear of the end of a storage."""

    def moved(self, key: int, category: Category) -> None:
        """Hear that a storage is for something else from now on."""

    def borrowed(self, n_bytes: int) -> None:
        """Hear of what a kernel needed while it ran."""

    def computed(self, packet: Any, n_flops: int) -> None:
        """Hear of an operator's floating-point operations."""

    def made_in_place(self, target: int, new: int) -> None:
        """Hear that a sum, made since `target` was last heard of, took its storage and made none."""


DEVICE = torch.ops.prim.device.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_SUM = torch.ops.aten.add.Tensor


@dataclass(slots=True)
class _Storage:
    """One storage that is alive; `death` is the weak reference whose callback forgets it."""

    n_bytes: int
    category: Category
    death: Any


@dataclass(slots=True)
class _Sum:
    """A sum of gradients that autograd may have made in place; see `_settle_sum`."""

    target: int
    result: int
    n_bytes: int
    total_bytes: int


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record live bytes, their peak and what was live at the peak, and FLOPs, inside a `with` block.

    Attributes:
        live_bytes: Live bytes by category, now.
        peak_bytes: Highest sum so far.
        at_peak: Bytes by category at the peak.
        flops: Floating-point operations so far by operator packet; a multiply-add is two.
        observer: Who is told of every storage, if anyone.

    Source: the accounting of `torch.distributed._tools.mem_tracker`, with scratch memory, FLOPs and
        autograd's sums in place added.

    Omits: FLOPs of operators without a formula in `torch.utils.flop_counter` (elementwise, norms and
        softmax: about 1 % of a transformer's).
    """

    def __init__(
        self,
        *,
        scratch: Mapping[Any, Formula] | None = None,
        flops: Mapping[Any, Formula] = flop_registry,
        replacements: Mapping[Any, Callable[..., Any]] | None = None,
        observer: Observer | None = None,
        run: Run = lambda operator, args, kwargs: operator(*args, **kwargs),
    ) -> None:
        """Start at zero.

        Args:
            scratch: By operator packet, the bytes that its kernel allocates and frees while it runs.
            flops: By operator packet, its FLOPs.
            replacements: By operator packet, what to call in its place.
            observer: Who is told of every storage.
            run: How all other operators are run.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        self.peak_bytes = 0
        self.at_peak = dict(self.live_bytes)
        self.flops: dict[Any, int] = {}
        self._total_bytes = 0
        self._storages: dict[int, _Storage] = {}
        self._scratch = scratch or {}
        self._flops = flops
        self._replacements = replacements or {}
        self._sum: _Sum | None = None
        self.observer = observer
        self._run = run

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here; the wrapper that keeps torch.compile out would cost a tenth of the time.
        return False

    def register(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Count the storages of tensors under a category; known ones move to it.

        Storages that are there before the block must be registered: they would count from their first view on.
        """
        self._settle_sum()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            record = self._storages.get(storage._cdata)
            if record is None:
                self._add(storage, category)
            elif record.category != category:
                self.live_bytes[record.category] -= record.n_bytes
                self.live_bytes[category] += record.n_bytes
                record.category = category
                if self.observer is not None:
                    self.observer.moved(storage._cdata, category)

    def watch_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> list[Any]:
        """Count gradients as such from the moment they are complete; returns hooks to remove."""

        def name_gradient(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.register([parameter.grad], "gradients")

        return [p.register_post_accumulate_grad_hook(name_gradient) for p in parameters]  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        """Decide what was left open until the next operator; for whoever wants to know what happened so far."""
        self._settle_sum()

    def borrow(self, n_bytes: int) -> None:
        """Count bytes that are needed for a moment, on top of what lives now."""
        self._settle_sum()
        self._note(self._total_bytes, n_bytes)
        if n_bytes and self.observer is not None:
            self.observer.borrowed(n_bytes)

    def __exit__(self, *exc: Any) -> Any:
        """Leave the mode; what is alive stays counted."""
        self._settle_sum()
        return super().__exit__(*exc)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and follow what it makes."""
        if func is DEVICE:
            # Asked for more often than anything else: answered without a way through all modes.
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        if func is _ITEM and _has_no_data(args[0]):
            # Models ask whether a mask is all ones, to leave it out: "no" keeps it.
            return False
        kwargs = kwargs or {}
        self._settle_sum()
        before = self._total_bytes
        packet = func.overloadpacket
        replacement = self._replacements.get(packet)
        result = self._run(func, args, kwargs) if replacement is None else replacement(*args, **kwargs)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor)
        if func is _SUM and _is_made_by_autograd() and not args[0]._is_view():
            self._sum = _Sum(
                target=args[0].untyped_storage()._cdata,
                result=result.untyped_storage()._cdata,
                n_bytes=self._total_bytes - before,
                total_bytes=self._total_bytes,
            )
            return result
        scratch = self._scratch.get(packet)
        self.borrow(0 if scratch is None else scratch(*args, **kwargs, out_val=result))
        formula = self._flops.get(packet)
        if formula is not None:
            self._count(packet, formula(*args, **kwargs, out_val=result))
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor that an operator returned, if it is new."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            self._add(storage, "activations")

    def _count(self, packet: Any, n_flops: int) -> None:
        self.flops[packet] = self.flops.get(packet, 0) + n_flops
        if self.observer is not None:
            self.observer.computed(packet, n_flops)

    def _add(self, storage: torch.UntypedStorage, category: Category) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        # PyTorch keeps a storage's Python object for as long as the storage lives, so this is its death.
        self._storages[key] = _Storage(n_bytes, category, weakref.ref(storage, lambda _: self._forget(key)))
        self.live_bytes[category] += n_bytes
        self._total_bytes += n_bytes
        if self.observer is not None:
            self.observer.made(key, n_bytes, category)

    def _forget(self, key: int) -> None:
        record = self._storages.pop(key)
        self.live_bytes[record.category] -= record.n_bytes
        self._total_bytes -= record.n_bytes
        if self.observer is not None:
            self.observer.freed(key)

    def _note(self, total_bytes: int, scratch_bytes: int = 0) -> None:
        if total_bytes + scratch_bytes > self.peak_bytes:
            self.peak_bytes = total_bytes + scratch_bytes
            self.at_peak = {**self.live_bytes, "scratch": scratch_bytes}

    def _settle_sum(self) -> None:
        """Count a sum of gradients as autograd makes it where no dispatch mode watches.

        Autograd adds in place where it holds the last reference to the first operand and its storage
        (a view shares it with its base, so never there). Under a dispatch mode it always makes a new
        tensor and frees the operand right after the sum, which tells the cases apart.

        Source: `accumulate` in torch/csrc/autograd/input_buffer.cpp.
        """
        if self._sum is not None:
            made, self._sum = self._sum, None
            in_place = made.target not in self._storages
            if in_place and self.observer is not None:
                self.observer.made_in_place(made.target, made.result)
            self._note(made.total_bytes - (made.n_bytes if in_place else 0))


def _is_made_by_autograd() -> bool:
    """Return whether an operator is part of a backward pass, and not of a layer that is computed again in it."""
    return torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()


def _has_no_data(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)
