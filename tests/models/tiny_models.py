"""Tiny models with random weights, and what tests ask of a model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from autopeft.models.attach import Attached
from autopeft.spec.design import Design
from autopeft.spec.model import Head

HEAD = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
IMAGE_HEAD = Head(auto_class="AutoModelForImageClassification", labels=HEAD.labels)
LANGUAGE_HEAD = Head(auto_class="AutoModelForCausalLM")
TARGET_HEAD = Head(auto_class="AutoModelForSeq2SeqLM")
SPEECH_HEAD = Head(auto_class="AutoModelForSpeechSeq2Seq")
SOUND_HEAD = Head(auto_class="AutoModelForAudioClassification", labels=HEAD.labels)
SIZES: dict[str, Any] = {"vocab_size": 97, "pad_token_id": 1}
BERT_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    **SIZES,
}
LLAMA_LIKE = {**BERT_LIKE, "num_key_value_heads": 2}
VIT_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**BERT_LIKE),
    "roberta": lambda: transformers.RobertaConfig(**BERT_LIKE),
    "mpnet": lambda: transformers.MPNetConfig(**BERT_LIKE),
    "deberta": lambda: transformers.DebertaV2Config(
        **BERT_LIKE, relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=32
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=40, **SIZES
    ),
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=40, vocab_size=97, eos_token_id=1, bos_token_id=1
    ),
    "qwen": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE),
    "gemma": lambda: transformers.Gemma3TextConfig(**LLAMA_LIKE, head_dim=8),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=40,
        word_embed_proj_dim=32,
        **SIZES,
    ),
    "t5": lambda: transformers.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=1,
        **SIZES,
    ),
    "vit": lambda: transformers.ViTConfig(**VIT_LIKE, intermediate_size=48),
    "dinov2": lambda: transformers.Dinov2Config(**VIT_LIKE, mlp_ratio=2),
    "whisper": lambda: transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=40,
        bos_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=2,
        **SIZES,
    ),
}
ARCHITECTURES = tuple(CONFIGS)
HEADS = dict.fromkeys(ARCHITECTURES, HEAD) | {
    "qwen": LANGUAGE_HEAD,
    "gemma": LANGUAGE_HEAD,
    "opt": LANGUAGE_HEAD,
    "t5": TARGET_HEAD,
    "vit": IMAGE_HEAD,
    "dinov2": IMAGE_HEAD,
    "whisper": SPEECH_HEAD,
}
"""The head that tests give each architecture: decoders classify, or write."""


def saved_as(name: str) -> str:
    """Return the class that a checkpoint is made with: without a head, unless that is a language model's."""
    return LANGUAGE_HEAD.auto_class if HEADS[name] is LANGUAGE_HEAD else "AutoModel"


def save(name: str, folder: Path, auto_class: str = "AutoModel") -> str:
    """Save a tiny model, headless by default, with weights so large that errors show, and return its folder.

    T5 draws such weights by itself, and does not scale its attention: with larger ones rounding shows, not errors.
    """
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and name != "t5":
                parameter.mul_(5)
    model.save_pretrained(folder)
    return str(folder)


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    """Return a batch of three for an architecture: text padded on the right, images, or sound; and targets to read."""
    generator = torch.Generator().manual_seed(0)
    if HEADS[name] is IMAGE_HEAD:
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    ids = torch.randint(5, 97, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 4, 6)):
        ids[row, length:] = 1
        mask[row, length:] = 0
    target = torch.randint(5, 97, (3, 6), generator=generator)
    if HEADS[name] is SPEECH_HEAD:
        return {"input_features": torch.randn(3, 8, 20, generator=generator), "decoder_input_ids": target}
    text = {"input_ids": ids, "attention_mask": mask}
    return text | {"decoder_input_ids": target} if HEADS[name] is TARGET_HEAD else text


def labels_for(head: Head, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what a batch of `inputs_for` is to be answered with: classes, or tokens."""
    return torch.tensor([0, 1, 0]) if head.labels else inputs.get("decoder_input_ids", inputs.get("input_ids"))


def design(*blocks: dict[str, Any], quantization: str = "none") -> Design:
    """Return a design from the JSON forms of its blocks."""
    return Design.from_dict({"quantization": quantization, "blocks": list(blocks)})


def logits(model: nn.Module, text: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the model answers, in evaluation mode and without a gradient."""
    model.eval()
    with torch.no_grad():
        answer: torch.Tensor = model(**text).logits
    return answer


def perturb(attached: Attached, seed: int = 1, only: list[nn.Parameter] | None = None) -> None:
    """Move every trainable parameter, or those named only, as training would."""
    generator = torch.Generator().manual_seed(seed)
    everything = [parameter for group in attached.groups.values() for parameter in group]
    with torch.no_grad():
        for parameter in everything if only is None else only:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def content(model: nn.Module) -> dict[str, str]:
    """Return a hash of every tensor of a model by name, and of the state of quantized weights."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if tensor.dim() > 0
    }


def structure(model: nn.Module) -> list[tuple[str, type, int, int]]:
    """Return every module with its class and the number of its hooks."""
    return [(n, type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]
