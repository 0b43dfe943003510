"""AdamW over the parameters of a design: a learning rate for each block kind, and a state that travels by name.

What techniques remember from step to step is part of that state: it ends where the optimizer's does.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch

from autopeft.errors import ArtifactError
from autopeft.models.attach import Attached
from autopeft.spec.learning_rates import default_learning_rate
from autopeft.spec.training import Training

_FIELDS = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(attached: Attached, learning_rates: Mapping[str, float], training: Training) -> torch.optim.AdamW:
    """Return AdamW with one learning rate for each group of the design, times a parameter's own factor.

    Weight decay acts on matrices alone: biases, norms and scales (fewer than two dimensions) are left out.
    Each parameter group keeps its peak rate as `peak_lr`.

    Args:
        attached: The design on its base.
        learning_rates: Peak rate by block kind, and for `head`; a kind that is not named takes its default.
        training: Gives the weight decay.
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
    return torch.optim.AdamW(groups, fused=True)


def set_learning_rate(optimizer: torch.optim.AdamW, factor: float) -> None:
    """Set every group to its peak rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _named(attached: Attached) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameters in attached.groups.items():
        yield from ((f"{name}/{index}", parameter) for index, parameter in enumerate(parameters))


def optimizer_state(optimizer: torch.optim.AdamW, attached: Attached) -> dict[str, torch.Tensor]:
    """Return a copy of the moments and step counts, by group, index and field, and of the techniques' state."""
    tensors = {
        f"{name}/{field}": value
        for name, parameter in _named(attached)
        for field, value in optimizer.state.get(parameter, {}).items()
    }
    tensors |= attached.training_state()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_optimizer_state(optimizer: torch.optim.AdamW, attached: Attached, state: Mapping[str, torch.Tensor]) -> None:
    """Write a state of `optimizer_state` back.

    Raises:
        ArtifactError: The state is of other parameters.
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
        fields = {key: remaining.pop(f"{name}/{key}") for key in _FIELDS if f"{name}/{key}" in remaining}
        if not fields:
            continue  # it never had a gradient
        if len(fields) < len(_FIELDS) or fields["exp_avg"].shape != parameter.shape:
            raise ArtifactError(
                f"a checkpoint must hold the optimizer's state, but that of {name} is incomplete or misshapen"
            )
        optimizer.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in fields.items()}
    if remaining:
        raise ArtifactError(
            f"a checkpoint must hold the design's optimizer state alone, but has {next(iter(remaining))} too"
        )
