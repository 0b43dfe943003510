"""The only module that uses peft: its target table, its injected layers, its file format."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

import autopeft.models.quantization  # noqa: F401  # peft imports bitsandbytes: the notice must be filtered first

if TYPE_CHECKING:
    from autopeft.models.technique import Site

ADAPTER_NAME = "default"
"""Name under which peft keeps the one adapter that we inject."""


def default_targets(model_type: str) -> tuple[str, ...]:
    """Return the module names that peft gives LoRA for a model type, or none where it knows none."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    return () if isinstance(names, str) else tuple(names)


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
    site.restore_attribute(site.model, "peft_config")
    inject_adapter_in_model(config, site.model, adapter_name=ADAPTER_NAME)
    for path in targets:
        wrapper: nn.Module = site.module(path)
        for name, parameter in wrapper.named_parameters():
            if not name.startswith("base_layer."):
                site.own(parameter)
