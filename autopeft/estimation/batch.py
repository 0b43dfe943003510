"""What goes into one step, as tensors without data: text, images or sound, and what is to be answered."""

import math

import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.models.base import Base
from autopeft.models.summary import sides


def batch_for(
    base: Base, *, batch_size: int, n_tokens: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the inputs of a batch by name, and its labels; made in the tensor mode that is active.

    Args:
        base: Whose inputs they are. Images have the size of its configuration, sound its full length.
        batch_size: Examples.
        n_tokens: Tokens of each example, of what goes in and of what is written alike.
        device: Where the tensors say that they are.

    Raises:
        ModelError: The model reads sound in a form that is not known here.
    """

    def tokens(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device=device)

    match base.summary.modality:
        case "vision":
            inputs = {"pixel_values": torch.empty(batch_size, *_image_shape(base), device=device)}
        case "speech":
            inputs = {"input_features": torch.empty(batch_size, *_sound_shape(base), device=device)}
        case "text":
            names = ["input_ids", "attention_mask"]
            if getattr(base.model.config.get_text_config(), "type_vocab_size", 0) > 1:
                names.append("token_type_ids")  # a model that tells segments apart has a tokenizer that marks them
            inputs = {name: tokens(batch_size, n_tokens) for name in names}
    if base.head.labels:
        return inputs, tokens(batch_size)
    if base.summary.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(batch_size, n_tokens)
    return inputs, tokens(batch_size, n_tokens)


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
