"""The optimizer over the parameters of a design: a learning rate for each block kind, and a state that travels by name.

What techniques remember from step to step is part of that state: it ends where the optimizer's does.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from autopeft.errors import ArtifactError
from autopeft.models.attach import Attached
from autopeft.models.quantization import adamw_8bit_class
from autopeft.spec.learning_rates import default_learning_rate
from autopeft.spec.training import Training

_TABLES = ("qmap1", "qmap2")
"""What an 8-bit state is read with: the same for every parameter and every training, so no checkpoint holds it."""


def make_optimizer(
    attached: Attached, learning_rates: Mapping[str, float], training: Training
) -> torch.optim.Optimizer:
    """Return the optimizer with one learning rate for each group of the design, times a parameter's own factor.

    Weight decay acts on matrices alone: biases, norms and scales (fewer than two dimensions) are left out.
    Each parameter group keeps its peak rate as `peak_lr`.

    Args:
        attached: The design on its base.
        learning_rates: Peak rate by block kind, and for `head`; a kind that is not named takes its default.
        training: Gives the optimizer's name and the weight decay.

    Raises:
        MissingDependencyError: The optimizer needs a package that is not installed.
    """
    groups = []
    for name, parameters in attached.groups.items():
        rate = learning_rates[name] if name in learning_rates else default_learning_rate(name)
        by_setting: dict[tuple[float, float], list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            decay = training.weight_decay if parameter.ndim >= 2 else 0.0
            by_setting[rate * attached.rate_factors.get(parameter, 1.0), decay].append(parameter)
        for (peak, decay), chosen in by_setting.items():
            groups.append({"params": chosen, "lr": peak, "peak_lr": peak, "weight_decay": decay})
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, fused=True)  # others allocate as much as the gradients take once more
        case "adamw_8bit":
            optimizer: torch.optim.Optimizer = adamw_8bit_class()(groups)
            return optimizer
        case "sgd":
            return torch.optim.SGD(groups, fused=True)


def clip_gradients(attached: Attached, limit: float | None) -> float:
    """Scale the gradients of all that trains down to a norm, where it is larger; return the norm that they had.

    Args:
        attached: What trains.
        limit: The largest norm; None for no limit.
    """
    parameters = [parameter for group in attached.groups.values() for parameter in group]
    return float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to its peak rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield every tensor that the optimizer keeps between steps."""
    for fields in optimizer.state.values():
        yield from (value for value in fields.values() if isinstance(value, torch.Tensor))


def optimizer_state(optimizer: torch.optim.Optimizer, attached: Attached) -> dict[str, torch.Tensor]:
    """Return a copy of the moments and step counts, by group, index and field, and of the techniques' state."""
    tensors = {
        f"{name}/{field}": torch.as_tensor(value)
        for name, parameter in _named(attached)
        for field, value in optimizer.state.get(parameter, {}).items()
        if field not in _TABLES
    }
    tensors |= attached.training_state()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, attached: Attached, state: Mapping[str, torch.Tensor]
) -> None:
    """Write a state of `optimizer_state` back.

    Raises:
        ArtifactError: The state is of other parameters, or of another optimizer.
    """
    remaining = dict(state)
    for name, tensor in attached.training_state().items():
        saved = remaining.pop(name, None)
        if saved is None or saved.shape != tensor.shape:
            raise ArtifactError(
                f"a checkpoint must hold what its techniques remember, but {name} is missing or misshapen"
            )
        tensor.copy_(saved)
    for name, parameter in _named(attached):
        fresh = _fresh_state(optimizer, parameter)
        own = {field: value for field, value in fresh.items() if field not in _TABLES}
        saved_fields = {field: remaining.pop(f"{name}/{field}") for field in own if f"{name}/{field}" in remaining}
        if not saved_fields:
            continue  # it never had a gradient
        for field, value in own.items():
            found = saved_fields.get(field)
            if found is None or found.shape != torch.as_tensor(value).shape:
                raise ArtifactError(
                    f"a checkpoint must hold the optimizer's state, but that of {name} is incomplete or misshapen"
                )
            fresh[field] = value.copy_(found) if isinstance(value, torch.Tensor) else int(found)
        optimizer.state[parameter] = fresh
    if remaining:
        raise ArtifactError(
            f"a checkpoint must hold the design's optimizer state alone, but has {next(iter(remaining))} too"
        )


def _named(attached: Attached) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameters in attached.groups.items():
        yield from ((f"{name}/{index}", parameter) for index, parameter in enumerate(parameters))


def _fresh_state(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, Any]:
    """Return the fields that an optimizer has for a parameter before its first step; SGD has none."""
    match optimizer:
        case torch.optim.AdamW():
            zeros = {field: torch.zeros_like(parameter) for field in ("exp_avg", "exp_avg_sq")}
            return {"step": torch.zeros((), device=parameter.device), **zeros}
        case torch.optim.SGD():
            return {}
    own: Any = optimizer
    for number, group in enumerate(own.param_groups):
        for index, each in enumerate(group["params"]):
            if each is parameter:
                own.init_state(group, parameter, number, index)
    fields: dict[str, Any] = own.state.pop(parameter)
    return fields
