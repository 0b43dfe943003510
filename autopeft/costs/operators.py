"""What operators make of fake tensors, remembered by the shapes that they are given.

Layers repeat, and so do designs: nearly every operator of a dry run has met the same shapes before. What it makes then
is known without asking how it is computed on tensors without data, which takes torch several times as long.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_META = torch.device("meta")
_NO_SHAPE = (0,)
_aten = torch.ops.aten
_DIRECT = {
    _aten._softmax.default,
    _aten._softmax_backward_data.default,
    _aten._unsafe_view.default,
    _aten.add.Tensor,
    _aten.addmm.default,
    _aten.bitwise_and.Tensor,
    _aten.bmm.default,
    _aten.clone.default,
    _aten.div.Tensor,
    _aten.empty_like.default,
    _aten.gelu.default,
    _aten.gelu_backward.default,
    _aten.mm.default,
    _aten.mul.Scalar,
    _aten.mul.Tensor,
    _aten.relu.default,
    _aten.sub.Tensor,
    _aten.sum.dim_IntList,
    _aten.tanh_backward.default,
    _aten.threshold_backward.default,
}
"""The most frequent operators, besides views: the meta device's own kernels tell their results, and faster."""
_N_REMEMBERED = 100_000
"""Operators and shapes that are remembered at most, about 100 MB: all are forgotten when there are more."""

_SCALARS = (bool, int, float)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor that an operator makes.

    Attributes:
        source: The argument whose storage it sees; None where it has its own.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0
    source: int | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What an operator makes, one alone or in a sequence of some type; where that is nothing, its first argument."""

    made: tuple[_Tensor | None, ...] = ()
    sequence: Callable[[Iterable[Any]], Any] | None = None


_known: dict[Hashable, _Known | None] = {}
"""By operator, shapes and numbers; None where the result has to be asked for each time."""


class FakeOperators:
    """Run operators on the fake tensors of a mode, all of which say that they are on one device."""

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        """Take a look at a fake tensor: what each carries along is the same for all."""
        self._mode = mode
        self._device = device
        with mode:
            self._state = dict(torch.empty(0, device=device).__dict__)

    def __call__(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what an operator makes of its arguments."""
        try:
            key = (operator, *_described(args), *_described(tuple(kwargs.items())))
            known = _known[key]
        except KeyError:
            result = self._ask(operator, args, kwargs)
            self._remember(key, args, kwargs, result)
            return result
        except TypeError:  # an argument that can't be remembered
            return operator(*args, **kwargs)
        if known is None:
            return operator(*args, **kwargs)
        if known.sequence is not None:
            return known.sequence([self._make(each, args) for each in known.made])
        return self._make(known.made[0], args) if known.made else args[0]

    def _ask(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what torch says of an operator that was not met before."""
        if operator not in _DIRECT and not operator.is_view:
            return operator(*args, **kwargs)
        with in_kernel_invocation_manager(self._mode):
            result = operator(*args, **kwargs)
        return type(result)(map(self._fake, result)) if isinstance(result, tuple | list) else self._fake(result)

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor, or parameter, of the shape and layout of one."""
        made = self._new(_Tensor(tuple(tensor.shape), tensor.stride(), tensor.dtype))
        if isinstance(tensor, nn.Parameter):
            made._is_param = True  # what `nn.Parameter` makes of a tensor of another class
            made.requires_grad_(tensor.requires_grad)
        return made

    def _make(self, made: _Tensor | None, args: tuple[Any, ...]) -> torch.Tensor | None:
        if made is None or made.source is None:
            return None if made is None else self._new(made)
        storage = args[made.source].untyped_storage()
        with torch._C._DisableTorchDispatch():
            seen = torch.empty_strided(_NO_SHAPE, _NO_SHAPE, dtype=made.dtype, device=_META)
            seen.set_(storage, made.offset, made.shape, made.stride)
        return self._fake(seen)

    def _new(self, made: _Tensor) -> torch.Tensor:
        with torch._C._DisableTorchDispatch():
            empty = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device=_META)
        return self._fake(empty)

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the meta device as a fake one.

        Source: `FakeTensor.__new__`, which sets the same attributes one by one.
        """
        fake: torch.Tensor = torch.Tensor._make_subclass(
            FakeTensor, tensor, False, dispatch_device=True, device_for_backend_keys=self._device
        )
        torch._C._set_throw_on_mutable_data_ptr(fake)
        fake.__dict__.update(self._state)
        return fake

    def _remember(self, key: Hashable, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        if len(_known) >= _N_REMEMBERED:
            _known.clear()
        _known[key] = self._what_is_made(key, args, kwargs, result)

    def _what_is_made(self, key: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> _Known | None:
        """Return what can be made again without asking; None for whatever is not plainly one of its kinds."""
        operator = key[0]
        if (operator, *_described(args), *_described(tuple(kwargs.items()))) != key:
            return None  # it changed the shape of what it was given
        if operator._schema.is_mutable:
            return _Known() if args and result is args[0] else None
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        made = [self._how_made(each, args, kwargs) for each in results if each is not None]
        storages = {each.untyped_storage()._cdata for each in results if each is not None}
        if not made or None in made or len(storages) < sum(each is not None and each.source is None for each in made):
            return None
        order = iter(made)
        every = tuple(None if each is None else next(order) for each in results)
        return _Known(every, None if results[0] is result else type(result))

    def _how_made(self, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Tensor | None:
        """Return how to make one result again; None where that is not known."""
        if not self._is_plain(result):
            return None
        storage = result.untyped_storage()
        shape, stride, dtype, offset = tuple(result.shape), result.stride(), result.dtype, result.storage_offset()
        for source, arg in enumerate(args):
            if isinstance(arg, torch.Tensor) and arg.untyped_storage()._cdata == storage._cdata:
                return _Tensor(shape, stride, dtype, offset, source)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, tuple(kwargs.values())))}
        made = _Tensor(shape, stride, dtype)
        again = self._new(made).untyped_storage().nbytes()
        return made if storage._cdata not in given and (offset, again) == (0, storage.nbytes()) else None

    def _is_plain(self, tensor: Any) -> bool:
        return (
            isinstance(tensor, FakeTensor)
            and tensor.fake_device == self._device
            and tensor.layout is torch.strided
            and tensor.constant is None
            and not tensor.is_conj()
            and not tensor.is_neg()
        )


def _described(values: tuple[Any, ...] | list[Any]) -> tuple[Hashable, ...]:
    """Return what decides the shapes of results: shapes, and everything that is no tensor with its type.

    Raises:
        TypeError: When it is looked up, where an argument is of a kind that can't be compared.
    """
    found: list[Hashable] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or not isinstance(value, FakeTensor):
                raise TypeError("not a fake tensor that is strided")
            found.append((value.shape, value.stride(), value.dtype, value.storage_offset()))
        elif isinstance(value, _SCALARS):
            found.append((type(value), value))
        elif isinstance(value, tuple | list):
            found.append(_described(value))
        else:
            found.append(value)
    return tuple(found)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
