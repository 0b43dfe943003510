"""Tiny models with random weights, and what tests ask of a model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from autopeft.models.attach import Attached
from autopeft.models.base import Head
from autopeft.spec.design import Design

HEAD = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
LANGUAGE_HEAD = Head(auto_class="AutoModelForCausalLM")
SIZES: dict[str, Any] = {"vocab_size": 97, "pad_token_id": 1}
BERT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    **SIZES,
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
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        **SIZES,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=40, vocab_size=97, eos_token_id=1, bos_token_id=1
    ),
}
ARCHITECTURES = tuple(CONFIGS)


def save(name: str, folder: Path, auto_class: str = "AutoModel") -> str:
    """Save a tiny model, headless by default, with weights so large that errors show, and return its folder."""
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    return str(folder)


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
