"""Quantized storage, of the base model and of an optimizer's moments: the only module that uses bitsandbytes."""

import logging
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from autopeft.errors import MissingDependencyError, ModelError
from autopeft.models.roles import state_spaces
from autopeft.spec.block import Quantization

_NOTICES = {
    # On import: a download that it can do without.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # On every int8 matrix product: what int8 storage means.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Starts of messages that are no news, by the logger that they come from."""

READ_DIRECTLY = (
    *("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),  # LayoutLM: rows of the weight are looked up
    *("prediction_coefs", "correction_coefs"),  # Gemma 3n: the weight is clipped in place
    "map_inputs_layer",  # RoCBert: the output is added to in place
)
"""Last names of linear maps that their models use otherwise than by a product."""
DOUBLE = "-dq"
"""End of the name of a storage whose scales are quantized too."""


class _NoticeFilter(logging.Filter):
    """Drop the notices of one logger, and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is news."""
        return not record.getMessage().startswith(_NOTICES[record.name])


for _logger in _NOTICES:
    logging.getLogger(_logger).addFilter(_NoticeFilter())


def quantization_config(quantization: Quantization, *, skip: Iterable[str], compute_dtype: torch.dtype) -> Any:
    """Return the configuration that `from_pretrained` takes, or None for an unquantized base.

    Args:
        quantization: Storage of the linear maps of the layers.
        skip: Paths of modules to leave as they are, from `skipped_paths`; a quantized head fails.
        compute_dtype: Dtype that 4-bit weights are multiplied in.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"quantization={quantization!r} needs bitsandbytes, which cannot be imported ({error}); "
            "pip install bitsandbytes, or take quantization none out of the space"
        ) from error
    from transformers import BitsAndBytesConfig

    skipped = sorted(skip)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.removesuffix(DOUBLE),
        bnb_4bit_use_double_quant=quantization.endswith(DOUBLE),
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def skipped_paths(model: Any, new_modules: Iterable[str]) -> tuple[str, ...]:
    """Return the modules of a model that are never quantized: new ones, a language model's output map, state spaces.

    bitsandbytes would leave the output map out by itself, but not once it is told of any others. State spaces multiply
    by weights of their maps themselves, and so do the models of `READ_DIRECTLY`.
    """
    output = model.get_output_embeddings()
    paths = [path for path, module in model.named_modules() if module is output] if output is not None else []
    paths += [path for path, _ in model.named_modules() if path.rpartition(".")[2] in READ_DIRECTLY]
    return (*new_modules, *paths, *state_spaces(model))


def convert_layers(model: nn.Module, config: Any) -> None:
    """Put quantized layers in the place of a meta model's linear maps, as loading with `config` does."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    skipped = HfQuantizer.get_modules_to_not_convert(model, config.llm_int8_skip_modules, model._keep_in_fp32_modules)
    replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=config)
    setattr(model, "is_loaded_in_8bit" if config.load_in_8bit else "is_loaded_in_4bit", True)


def settle(model: nn.Module, quantization: Quantization) -> None:
    """Make quantized layers keep their weights and biases as they are, in training and evaluation alike.

    On CPUs with AVX512-BF16 a 4-bit layer repacks its weight at the first evaluation, and then passes
    no gradient on. Quantized layers also cast their bias, for good, to the dtype of what they multiply: a
    4-bit layer casts a copy here, and an int8 layer is given its input in the bias's dtype.

    Raises:
        ModelError: Nothing was quantized.
    """
    if quantization == "none":
        return
    import bitsandbytes

    n_quantized = 0
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.__class__ = _steady_4bit_class()
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt) and module.bias is not None:
            module.register_forward_pre_hook(_cast_to_bias)
        n_quantized += isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt)
    if n_quantized == 0:
        raise ModelError(f"quantization={quantization!r} must change linear maps, but {type(model).__name__} kept all")


@cache
def _steady_4bit_class() -> type[nn.Module]:
    """Return bitsandbytes' 4-bit layer with a forward that changes nothing of the layer."""
    import bitsandbytes

    class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            bias = None if self.bias is None else self.bias.to(self.compute_dtype)
            product: torch.Tensor = bitsandbytes.matmul_4bit(
                hidden.to(self.compute_dtype), self.weight, bias=bias, quant_state=self.weight.quant_state
            )
            return product.to(hidden.dtype)

    return Linear4bit


def _cast_to_bias(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Give a module its input in the dtype of its bias; int8 products cast it to fp16 in either case."""
    assert isinstance(module.bias, torch.Tensor)
    return (args[0].to(module.bias.dtype), *args[1:])


def dequantized_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of 4-bit layers as their products see them, by path of the layer; [out, in], fp32."""
    import bitsandbytes

    for path, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            yield path, bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()


def adamw_8bit_class() -> Any:
    """Return AdamW with moments of 8 bits in blocks of 256, and of fp32 for tensors of less than 4,096 numbers.

    It runs on a CPU too.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.

    Source: Dettmers et al. 2022 (arXiv:2110.02861).
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingDependencyError(
            f"training.optimizer=adamw_8bit needs bitsandbytes, which cannot be imported ({error}); "
            "pip install bitsandbytes, or set it to adamw"
        ) from error
    return bitsandbytes.optim.AdamW8bit


def probe() -> tuple[torch.Tensor, torch.Tensor]:
    """Push a gradient through a small 4-bit layer before and after an evaluation, settled as a base model is.

    Returns:
        Both gradients, [3, 64]; equal where quantized training works on this machine.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    quantization_config("nf4", skip=(), compute_dtype=torch.float32)
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    settle(layer, "nf4")
    gradients = []
    for _ in range(2):
        inputs = torch.ones(3, 64, requires_grad=True)
        layer.train()(inputs).sum().backward()
        assert inputs.grad is not None
        gradients.append(inputs.grad)
        with torch.no_grad():
            layer.eval()(inputs)
    return gradients[0], gradients[1]
