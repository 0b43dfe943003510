"""A batch of a model's inputs without data: text, images or sound of given sizes, as tensors in the active mode."""

import math

import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.models.base import Base
from autopeft.models.summary import sides
from autopeft.tasks.batches import Inputs


def example_inputs(base: Base, *, batch_size: int, n_tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the inputs of a batch by argument of `forward`, each [batch, ...].

    Args:
        base: Whose inputs they are. Images have the size of its configuration, sound its full length.
        batch_size: Examples.
        n_tokens: Tokens of each text.
        device: Where the tensors are.

    Raises:
        ModelError: The model reads sound in a form that is not known here.
    """
    match base.summary.modality:
        case "vision":
            return {"pixel_values": torch.empty(batch_size, *_image_shape(base), device=device)}
        case "speech":
            return {"input_features": torch.empty(batch_size, *_sound_shape(base), device=device)}
        case "text":
            names = ["input_ids", "attention_mask"]
            if getattr(base.model.config.get_text_config(), "type_vocab_size", 0) > 1:
                names.append("token_type_ids")  # a model that tells segments apart has a tokenizer that marks them
            return {name: token_ids(batch_size, n_tokens, device=device) for name in names}


def token_ids(*shape: int, device: torch.device) -> torch.Tensor:
    """Return room for token ids or class indices, int64."""
    return torch.empty(shape, dtype=torch.int64, device=device)


def fill_at_random(inputs: Inputs, base: Base) -> Inputs:
    """Fill a batch without padding: random tokens, pixels or sound, and random answers.

    Args:
        inputs: The batch; it is changed.
        base: Gives the number of tokens and classes.
    """
    for name, tensor in inputs.forward.items():
        if tensor.is_floating_point():
            tensor.normal_()
        elif name.endswith("input_ids"):
            tensor.random_(base.summary.vocabulary_size)
        else:
            tensor.fill_(name == "attention_mask")  # and all tokens are of the first segment
    if inputs.labels.is_floating_point():
        inputs.labels.normal_()
    else:
        inputs.labels.random_(len(base.head.labels) or base.summary.vocabulary_size)
    return inputs


def _image_shape(base: Base) -> tuple[int, int, int]:
    config = base.model.config.get_text_config()
    return (int(config.num_channels), *sides(config.image_size))


def _sound_shape(base: Base) -> tuple[int, int]:
    """Return features and frames: as many as the convolutions before the layers turn into all positions."""
    config, n_positions = base.model.config.get_text_config(), base.summary.n_positions
    if base.model.main_input_name != "input_features" or n_positions is None:
        raise ModelError(
            f"an estimate of a speech model needs one that reads features of a fixed length, as Whisper does, but "
            f"{base.summary.architecture} reads {base.model.main_input_name}"
        )
    strides = [module.stride[0] for module in base.model.modules() if isinstance(module, nn.Conv1d)]
    return int(config.num_mel_bins), n_positions * math.prod(strides)
