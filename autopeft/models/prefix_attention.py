"""Attention that reads a prefix: functions that a model is switched to, and back from.

Most architectures compute attention through transformers' attention interface, and are switched there. Those of
`BYPASSING` do not: they get a forward of their own, which says in our words what theirs computes.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import DesignError, ModelError
from autopeft.models.prefix_states import LayerPrefix
from autopeft.models.technique import Site

NAME = "autopeft_prefix"
"""Name of a layer's prefix in its attention module."""
_KERNELS = ("sdpa", "eager")


def switch_attention(site: Site, paths: list[str]) -> None:
    """Make the attention modules at some paths, which have prefixes, read them, until the model is detached.

    Raises:
        ModelError: The model uses an attention kernel that cannot be given a prefix.
    """
    forward = BYPASSING.get(site.summary.model_type)
    if forward is None:
        _switch_interface(site)
        return
    for path in paths:
        module = site.module(path)
        site.restore_attribute(module, "forward")
        vars(module)["forward"] = partial(forward, module)


def _switch_interface(site: Site) -> None:
    """Give every configuration in the model the name of a kernel that reads prefixes.

    The mask registry needs the name too: without it transformers makes no mask, and padding is seen.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for kernel in _KERNELS:
        ALL_ATTENTION_FUNCTIONS.register(f"{NAME}_{kernel}", partial(_attention, kernel))
        ALL_MASK_ATTENTION_FUNCTIONS.register(f"{NAME}_{kernel}", ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    owned: list[Any] = [getattr(module, "config", None) for module in site.model.modules()]  # one for each stack
    configs = {id(config): config for config in owned if hasattr(config, "_attn_implementation")}
    kernels = [config._attn_implementation for config in configs.values()]  # a model's sets those inside of it too
    for kernel in kernels:
        if kernel not in _KERNELS:
            raise ModelError(
                f"a prefix needs the attention kernel {' or '.join(_KERNELS)}, but the model uses {kernel!r}"
            )
    for config, kernel in zip(configs.values(), kernels, strict=True):
        site.on_detach(partial(setattr, config, "_attn_implementation", kernel))
        config._attn_implementation = f"{NAME}_{kernel}"


def reads_prefix(module: nn.Module) -> bool:
    """Return whether a module computes attention of keys and values through transformers' interface.

    In a model of several kinds of layers some do not: states of a recurrence know no keys, and a prefix would do
    nothing there.
    """
    functions = (vars(kind).values() for kind in type(module).__mro__)
    codes = (getattr(unwrap(each), "__code__", None) for own in functions for each in own if callable(each))
    return any(code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names for code in codes)


def _attention(
    kernel: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Any:
    """Compute attention with one of transformers' kernels, after the module's prefix where it has one.

    Args:
        kernel: Its name.
        module: The attention module.
        query: [batch, heads, queries, head_size].
        key: [batch, key-value heads, keys, head_size].
        value: Like `key`.
        attention_mask: Broadcastable to [batch, heads, queries, keys], boolean (open) or additive, or None.
        options: What the architecture passes to its kernel besides.
    """
    function, prefix = _kernel(kernel, module), getattr(module, NAME, None)
    if not isinstance(prefix, LayerPrefix):
        return function(module, query, key, value, attention_mask, **options)
    keys, values = (states.to(key.dtype).expand(len(key), -1, -1, -1) for states in prefix.states())
    if keys.shape[:2] + keys.shape[3:] != key.shape[:2] + key.shape[3:] or keys.shape[3] != value.shape[3]:
        raise DesignError(
            f"a prefix needs keys and values of {keys.shape[1]} heads x {keys.shape[3]}, as the configuration says, "
            f"but {type(module).__name__} has keys of {key.shape[1]} x {key.shape[3]} and values of {value.shape[1]} x "
            f"{value.shape[3]}; take prefix out of the space"
        )
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = _extend_mask(attention_mask, query, n_keys=key.shape[2], length=keys.shape[2], causal=bool(causal))
    if options.get("position_bias") is not None:  # T5: a prefix is at no distance
        options["position_bias"] = functional.pad(options["position_bias"], (keys.shape[2], 0))
    factors = prefix.factors()
    if factors is not None and factors.shape[1] > 1:
        return _gated_by_token(partial(function, module), factors, query, (keys, key), (values, value), mask, options)
    if factors is not None:
        keys, values = keys * factors[:, None], values * factors[:, None]
    return function(module, query, torch.cat([keys, key], 2), torch.cat([values, value], 2), mask, **options)


def _extend_mask(
    mask: torch.Tensor | None, query: torch.Tensor, *, n_keys: int, length: int, causal: bool
) -> torch.Tensor | None:
    """Return a mask with open columns for the prefix; None means that no token sees a later one where `causal`."""
    n_queries = query.shape[2]
    if mask is None and causal and n_queries > 1:
        # A kernel that is told "causal" would align that triangle with the prefix: spell it out.
        later = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).triu(1)
        mask = torch.zeros_like(later, dtype=query.dtype).masked_fill(later, torch.finfo(query.dtype).min)[None, None]
    return None if mask is None else functional.pad(mask, (length, 0), value=mask.dtype == torch.bool)


def _gated_by_token(
    function: Callable[..., Any],
    factors: torch.Tensor,
    query: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """Compute attention where each token has a gate of its own on the prefix, with any kernel.

    Heads are twice as wide: the text's keys and values fill the first half and the prefix's the second. With the
    query [q; g q] a score is q k or g q P_k, and of the two halves of the result the second is scaled by g.
    """
    options["scaling"] = options.get("scaling") or query.shape[-1] ** -0.5  # kernels would take it from the width
    gates = factors[:, None].to(query.dtype)  # [batch, 1, tokens, 1]
    size = query.shape[-1]

    def halves(prefix: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.pad(prefix, (size, 0)), functional.pad(text, (0, size))], dim=2)

    wide = torch.cat([query, query * gates], dim=-1)
    output, weights = function(wide, halves(*keys), halves(*values), mask, **options)
    return output[..., :size] + output[..., size:] * gates.transpose(1, 2), weights  # [batch, tokens, heads, size]


def _kernel(kernel: str, module: nn.Module) -> Callable[..., Any]:
    """Return the attention function; each architecture's file has an eager one of its own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel == "eager":
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[kernel]
    return function


def _mpnet(
    module: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,  # the signature of the forward in whose place this is
    **_: Any,
) -> Any:
    """Compute MPNet's self-attention, whose scores get a bias by distance; the prefix is at no distance."""
    query, key, value = (
        linear(hidden_states).unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)
        for linear in (module.q, module.k, module.v)
    )
    scale = module.attention_head_size**-0.5
    scores = query @ key.transpose(-1, -2) * scale
    for bias in (position_bias, attention_mask):
        scores = scores if bias is None else scores + bias
    attended, weights = _attend(module, query * scale, value, scores)
    answer = module.o(attended)
    return (answer, weights) if output_attentions else (answer,)


def _deberta(
    module: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> Any:
    """Compute DeBERTa's disentangled attention; the prefix is at no distance and has the score of contents alone.

    Source: He et al. 2021 (arXiv:2006.03654), eq. 2 to 4: scores are divided by sqrt(d x the number of their terms).
    """
    n_heads = module.num_attention_heads
    query, key, value = (
        module.transpose_for_scores(linear(hidden), n_heads)
        for linear, hidden in (
            (module.query_proj, hidden_states if query_states is None else query_states),
            (module.key_proj, hidden_states),
            (module.value_proj, hidden_states),
        )
    )
    n_terms = 1 + sum(term in module.pos_att_type for term in ("c2p", "p2c"))
    scale = (query.shape[-1] * n_terms) ** -0.5
    scores = query @ key.transpose(-1, -2) * scale
    if module.relative_attention:
        distances = module.pos_dropout(rel_embeddings)
        scores = scores + module.disentangled_attention_bias(query, key, relative_pos, distances, n_terms)
    query, value, scores = (tensor.unflatten(0, (-1, n_heads)) for tensor in (query, value, scores))
    scores = scores.masked_fill(~attention_mask.bool(), torch.finfo(scores.dtype).min)
    attended, weights = _attend(module, query * scale, value, scores)
    return attended, weights if output_attentions else None


def _attend(
    module: Any, query: torch.Tensor, value: torch.Tensor, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what queries read from a module's prefix and from the text, [batch, tokens, heads x size], and weights.

    Args:
        module: The attention module.
        query: Scaled, [batch, heads, queries, size].
        value: [batch, heads, keys, size].
        scores: Of the text's keys, masked, [batch, heads, queries, keys].
    """
    prefix = getattr(module, NAME)
    keys, values = (states.to(value.dtype)[None] for states in prefix.states())
    factors = prefix.factors()
    if factors is not None:
        keys, values = keys * factors[:, None], values * factors[:, None]
    scores = torch.cat([query @ keys.transpose(-1, -2), scores], dim=-1)
    weights = scores.softmax(dim=-1)
    read = module.dropout(weights) @ torch.cat([values.expand(len(value), -1, -1, -1), value], dim=2)
    return read.transpose(1, 2).flatten(2), weights


BYPASSING: Mapping[str, Callable[..., Any]] = {"mpnet": _mpnet, "deberta-v2": _deberta}
"""Forwards of attention modules, by type of the model, where transformers' interface is not used."""
