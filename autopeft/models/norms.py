"""Normalisations: found by what they are and not by the name of their class, which every architecture chooses anew."""

from collections.abc import Iterable

from torch import nn

from autopeft.spec.model import NormSummary


def find_norms(modules: Iterable[tuple[str, nn.Module]]) -> tuple[NormSummary, ...]:
    """Return the normalisations with learned factors among named modules: LayerNorm, RMSNorm, T5's and the like.

    Args:
        modules: Path and module.
    """
    return tuple(
        NormSummary(
            path=path,
            n_features=module.get_parameter("weight").numel(),
            has_bias=module._parameters.get("bias") is not None,
        )
        for path, module in modules
        if is_norm(module)
    )


def is_norm(module: nn.Module) -> bool:
    """Return whether a module has one factor for each feature and nothing else but a bias.

    Omits: norms without factors, and batch norms: what these remember of the training data is no parameter.
    """
    weight = module._parameters.get("weight")
    return (
        weight is not None
        and weight.dim() == 1
        and module._parameters.keys() <= {"weight", "bias"}
        and not isinstance(module, nn.PReLU | nn.modules.batchnorm._NormBase)
        and next(module.children(), None) is None
    )
