"""The only module that uses peft: its target table, its injected layers, its file format."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

import autopeft.models.quantization  # noqa: F401  # peft imports bitsandbytes: the notice must be filtered first
from autopeft.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from autopeft.models.technique import Site

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
ADAPTER_NAME = "default"
"""Name under which peft keeps the one adapter that we inject."""
_TASKS = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModel": "FEATURE_EXTRACTION",
}
"""peft's task by class of transformers."""
_STOCK_TYPES = ("LORA", "ADALORA", "OFT", "IA3", "PREFIX_TUNING")
"""What is opened by peft itself; the others are read into modules of our own."""
_STOCK_NAMES = frozenset({"peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "bias"})
_STOCK_SIZES = frozenset(
    {
        "r",
        "init_r",
        "oft_block_size",
        "num_virtual_tokens",
        "num_layers",
        "num_attention_heads",
        "token_dim",
        "num_transformer_submodules",
        "encoder_hidden_size",
    }
)
"""Settings that memory follows from: no larger than some side of a tensor in the file, or small."""
_STOCK_PATHS = frozenset({"target_modules", "modules_to_save", "feedforward_modules"})
_STOCK_PATTERNS = frozenset({"rank_pattern", "alpha_pattern"})
_STOCK_NUMBERS = frozenset(
    {
        "inference_mode",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "target_r",
        "total_step",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "use_cayley_neumann",
    }
)
_SMALL = 4096
_MODULE_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
"""Of a module; peft takes the keys of patterns, and a target that is no list, for regular expressions."""


def default_targets(model_type: str) -> tuple[str, ...]:
    """Return the module names that peft gives LoRA for a model type, or none where it knows none."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    return () if isinstance(names, str) else tuple(names)


def expert_names(model_type: str) -> tuple[str, ...]:
    """Return the names that peft takes for the experts of a mixture, as they were called before transformers 5.

    A dense map that ends like one (`mlp.down_proj`) cannot be a target of a stock LoRA on such a model: peft would
    take the experts in its place.
    """
    from peft.utils import transformers_weight_conversion as conversion

    base = conversion._MODEL_TO_CONVERSION_PATTERN.get(model_type)
    return tuple(conversion._MOE_TARGET_MODULE_MAPPING.get(base, ()))


def kronecker_sizes(n_features: int, factor: int) -> tuple[int, int]:
    """Return the two sizes whose product is `n_features` in peft's LoKr: the left factor's, then the right one's."""
    from peft.tuners.lokr.layer import factorization

    left, right = factorization(n_features, factor)
    return int(left), int(right)


def hadamard_update(factors: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """Return s (B1 A1) * (B2 A2) of the factors B1, A1, B2, A2; only they are kept for the backward pass."""
    from peft.tuners.loha.layer import make_weight

    update: torch.Tensor = make_weight(*factors, torch.tensor(scale))
    return update


def inject(site: "Site", peft_type: str, targets: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Wrap linear maps in the layers of a peft technique, and hand their parameters to the site.

    Args:
        site: Where the technique is attached.
        peft_type: Name of the technique in peft, such as `"LORA"`.
        targets: Full paths of the linear maps.
        settings: Arguments of peft's configuration class besides the targets.
    """
    from peft import get_peft_config, inject_adapter_in_model

    config = get_peft_config({"peft_type": peft_type, "target_modules": list(targets), **settings})
    for path in targets:
        site.restore_module(path)
        linear = site.module(path)
        if "weight" in linear._parameters:  # DoRA puts a copy in the place of a 4-bit weight at every forward on a CPU
            site.on_detach(partial(setattr, linear, "weight", linear.weight))
    site.restore_attribute(site.model, "peft_config")
    modules = _Modules(site.model)
    inject_adapter_in_model(config, modules, adapter_name=ADAPTER_NAME)
    vars(site.model)["peft_config"] = modules.peft_config
    for path in targets:
        wrapper: nn.Module = site.module(path)
        for name, parameter in wrapper.named_parameters():
            if not name.startswith("base_layer."):
                site.own(parameter)


class _Modules(nn.Module):
    """The modules of a model without its configuration: peft then takes paths of targets as they are.

    Where it knows the architecture, it takes some for the names of experts; see `expert_names`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules = model._modules  # the same mapping: what is put there is put into the model
        for name in ("is_loaded_in_8bit", "is_loaded_in_4bit", "hf_device_map"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))


def extract(site: "Site") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return settings and tensors of the adapter that `inject` put into the model, as peft names them."""
    from peft import get_peft_model_state_dict

    config = site.model.peft_config[ADAPTER_NAME]
    tensors = get_peft_model_state_dict(site.model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    return config.to_dict(), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def fold(site: "Site", path: str) -> None:
    """Write what a peft layer around a linear map computes into the map's weight: the innermost that is not yet."""
    layers: list[Any] = []
    module: Any = site.module(path)
    while isinstance(getattr(module, "base_layer", None), nn.Module):
        layers.append(module)
        module = module.base_layer
    next(layer for layer in reversed(layers) if not layer.merged).merge()


def restore(model: "PreTrainedModel", tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors of a stock adapter into the layers that `inject` put into a model, and into its new modules.

    Raises:
        ArtifactError: They are not those of the layers.
    """
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(model, dict(tensors), adapter_name=ADAPTER_NAME)
    if result.unexpected_keys:
        raise ArtifactError(
            f"an adapter must fit its design, but the design has no place for {result.unexpected_keys[0]}"
        )


def stock_files(
    settings: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    new_modules: Mapping[str, torch.Tensor],
    *,
    modules_to_save: Sequence[str],
    base_model: str,
    auto_class: str,
) -> dict[str, bytes]:
    """Return the files of a stock adapter folder.

    Args:
        settings: peft's configuration, as a technique returns it.
        tensors: The adapter's, by peft's names without a prefix; a name without a dot is the tuner's own.
        new_modules: Tensors of the head and the like, by their path in the model.
        modules_to_save: Paths of those modules.
        base_model: Hub id or folder.
        auto_class: Class that the base is loaded with, from which peft's task follows.
    """
    from peft import get_peft_config

    config = get_peft_config(
        {
            **settings,
            "modules_to_save": list(modules_to_save) or None,
            "base_model_name_or_path": base_model,
            "task_type": _TASKS.get(auto_class),
            "inference_mode": True,
        }
    )
    # A tuner wraps the model once more than a prompt does, and prompts have no path in it.
    inner = "base_model." if config.is_prompt_learning else "base_model.model."
    tuner = "" if config.is_prompt_learning else "base_model."
    named = {f"{inner if '.' in name else tuner}{name}": tensor for name, tensor in tensors.items()}
    named.update({f"{inner}{name}": tensor for name, tensor in new_modules.items()})
    return {
        CONFIG_FILE: json.dumps(config.to_dict(), indent=2, sort_keys=True, default=_plain).encode(),
        TENSOR_FILE: safetensors.torch.save(named, metadata={"format": "pt"}),
    }


def check_stock(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Check what a stock adapter says of itself before peft acts on it: its settings may import code, or take memory.

    Raises:
        ArtifactError: A setting is none that `stock_files` writes.
    """
    from peft import get_peft_config

    kind = settings.get("peft_type")
    if kind not in _STOCK_TYPES:
        raise ArtifactError(f"peft_type must be one of {', '.join(_STOCK_TYPES)}, but {CONFIG_FILE} says {kind!r:.100}")
    required = {"total_step": 1} if kind == "ADALORA" else {}
    defaults = get_peft_config({"peft_type": kind, **required}).to_dict()
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for name, value in settings.items():
        if name in _STOCK_NAMES:
            legal = isinstance(value, str | None)
        elif name in _STOCK_SIZES:
            legal = value is None or (type(value) is int and 0 <= value <= max(largest, _SMALL))
        elif name in _STOCK_PATHS:
            legal = value is None or (isinstance(value, list) and all(_is_path(path) for path in value))
        elif name in _STOCK_PATTERNS:
            legal = not value or (
                isinstance(value, dict) and all(_is_pattern(*item, largest) for item in value.items())
            )
        elif name in _STOCK_NUMBERS:
            legal = isinstance(value, bool | int | float | None)
        else:
            if name == "target_parameters" and not value:  # peft writes an empty list for a mixture of experts
                continue
            legal = name in defaults and json.dumps(value) == json.dumps(defaults[name], default=_plain)
        if not legal:
            raise ArtifactError(
                f"{CONFIG_FILE} must say what autopeft writes, but has {name[:100]!r} as {value!r:.100}; open it with "
                "peft.PeftModel.from_pretrained if you trust it"
            )


def _is_path(path: Any) -> bool:
    return isinstance(path, str) and _MODULE_PATH.fullmatch(path) is not None


def _is_pattern(path: Any, value: Any, largest: int) -> bool:
    """Return whether a path has a rank, an alpha, or which of its ranks are in use."""
    is_number = isinstance(value, int | float) and 0 <= value <= max(largest, _SMALL)
    return _is_path(path) and (is_number or (isinstance(value, list) and len(value) <= max(largest, _SMALL)))


def open_stock(model: "PreTrainedModel", folder: Path, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the model with the stock adapter in a folder, ready for inference; `check_stock` must have passed.

    Raises:
        ArtifactError: The tensors of its file are not those that the adapter has.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for a property that has a new name there.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # It takes the ranks that its own AdaLoRA writes for patterns of LoRA, and says so before it applies them.
        warnings.filterwarnings("ignore", message=r".*rank_pattern keys did not match.*lora_E", category=RuntimeWarning)
        # What it lacks is refused below.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        opened: nn.Module = PeftModel.from_pretrained(model, str(folder), adapter_name=ADAPTER_NAME)
    expected = get_peft_model_state_dict(opened, adapter_name=ADAPTER_NAME, save_embedding_layers=False).keys()
    if differing := sorted(expected ^ tensors.keys()):
        where = "lacks" if differing[0] in expected else "has no place for"
        raise ArtifactError(f"an adapter must hold exactly the tensors of its design, but it {where} {differing[0]}")
    return opened


def _plain(value: Any) -> Any:
    """Return a JSON value for what peft keeps as sets and enumerations."""
    return sorted(value) if isinstance(value, set) else str(value)
