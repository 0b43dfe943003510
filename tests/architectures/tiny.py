"""A tiny model of every architecture that transformers builds for a task, from its configuration class alone.

Attributes that say how large a model is are set by name, in the configuration and in those inside of it; what one
architecture needs besides is in `OVERRIDES`.
"""

import inspect
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS = {
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""The architectures of each task: the class of transformers by model type."""
AUTO_CLASSES = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}

PAD, END, BEGIN, UNKNOWN = range(4)
VOCABULARY = 96
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("n_positions", "n_ctx", "max_position_embeddings", "max_seq_len", "seq_length"), 64),
    **dict.fromkeys(("original_max_position_embeddings", "max_target_positions", "max_source_positions"), 64),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 64
    ),
    **dict.fromkeys(("pooler_hidden_size", "kv_channels_total"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "kv_channels"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "d_inner", "ffn_hidden_size"), 96
    ),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 96),
    **dict.fromkeys(("shared_expert_intermediate_size", "mlp_hidden_size"), 96),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_top_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 8),
    "qk_rope_head_dim": 4,
    "first_k_dense_replace": 1,
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window"), 8),
    **dict.fromkeys(("pad_token_id",), PAD),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), END),
    **dict.fromkeys(("bos_token_id", "cls_token_id", "decoder_start_token_id"), BEGIN),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_d_ssm", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_expand", "expand"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
}
"""A tiny value for each attribute of a configuration that says how large its model is."""

_LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_GEMMA = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 96,
        "encoder_config.hidden_size_global": 64,
        "decoder_config.hidden_size_global": 64,
    },
    "canine": {"num_hash_buckets": 64, "local_transformer_stride": 32},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
    },
    "cpmant": {"dim_head": 16, "dim_ff": 48},
    "ctrl": {"dff": 48},
    "deepseek_v4": {"o_lora_rank": 8, "index_n_heads": 4, "index_head_dim": 8, "index_topk": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"d_head": 16, "block_sizes": [1, 1]},
    "gemma3n_text": {
        **_GEMMA,
        "layer_types": ["sliding_attention", "full_attention"],
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4": {f"text_config.{name}": value for name, value in _GEMMA.items()},
    "gemma4_text": _GEMMA,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_head_dim": 8, "sliding_window_size": 8, "rel_extent": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"linear_head_dim": 8},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 96, "max_2d_position_embeddings": 64},
    "xmod": {"default_language": "en_XX"},
    "longcat_flash": {"zero_expert_num": 2, "expert_ffn_hidden_size": 48},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 16},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 8,
        "max_xpath_subs_unit_embeddings": 8,
        "tag_pad_id": 0,
        "subs_pad_id": 0,
    },
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "minimax_m3_vl_text": {
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 48,
        "rotary_dim": 4,
        "index_head_dim": 8,
    },
    "nemotron_h": {"mamba_head_dim": 32, "chunk_size": 16, "moe_shared_expert_intermediate_size": 48},
    "perceiver": {"num_latents": 4, "d_latents": 64},
    "phi4_multimodal": {
        "audio_config.ext_pw_out_channel": 32,
        "audio_config.depthwise_separable_out_channel": 32,
        "audio_config.nemo_conv_channels": 32,
    },
    "qwen3_5": {f"text_config.{name}": value for name, value in _LINEAR.items()},
    "qwen3_5_moe": {f"text_config.{name}": value for name, value in _LINEAR.items()},
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "reformer": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 8,
        "shape_embed_dim": 8,
        "shape_vocab_size": 8,
    },
    "zamba": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
        "mamba_dt_rank": 4,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_headdim": 32, "mamba_ngroups": 1, "chunk_size": 16},
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture needs besides, by model type; a key with a dot reaches into a configuration inside."""

_DECODERS = (
    "bert",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
    "big_bird",
    "bert-generation",
    "reformer",
)
"""Encoders that write where their configuration says `is_decoder`."""

NOT_BUILT: dict[str, str] = {
    "layoutlmv2": "needs detectron2",
    "gemma3n": "needs timm",
    "gemma4_assistant": "drafts tokens for another model, and takes its states",
    "gemma4_unified_assistant": "drafts tokens for another model, and takes its states",
    "dots3_note": "its 42 layers each have a configuration of their own",
    "qwen4_exp": "its n-gram tables have no tiny form",
    "qwen4_exp_text": "its n-gram tables have no tiny form",
    "musicgen": "is loaded by its own class alone",
    "musicgen_melody": "is loaded by its own class alone",
}
"""Architectures of which no tiny model can be built here, with the reason."""
MOST_USED = {
    "text-classification": (
        *("albert", "bloom", "deberta", "distilbert", "electra", "falcon", "gemma2", "gemma3_text", "gpt_neox"),
        *("llama", "mistral", "mpnet", "opt", "phi3", "qwen2", "qwen3", "roberta", "xlm-roberta"),
    ),
    "causal-lm": (
        *("bloom", "cohere", "deepseek_v2", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_oss"),
        *("gptj", "granite", "llama", "mistral", "mixtral", "mpt", "olmo", "olmo2", "opt", "phi", "qwen2", "qwen2_moe"),
        *("qwen3", "smollm3", "stablelm", "starcoder2"),
    ),
}
"""Tried in the slower tier; `make thorough` tries the others besides."""


_READS_PADDING = "a row's answer depends on the rows beside it: the model reads the padding of a batch"
_NO_TEXT_CLASS = "transformers' automatic classes do not know the configuration of its language model alone"
REFUSED_LATER: Mapping[str, Mapping[str, str]] = {
    "text-classification": dict.fromkeys(
        ("canine", "convbert", "nystromformer", "yoso", "t5gemma", "t5gemma2"), _READS_PADDING
    ),
    "causal-lm": {
        "prophetnet": _READS_PADDING,
        **dict.fromkeys(("emu3", "mllama", "trocr"), _NO_TEXT_CLASS),
        "reformer": "a training step runs on inputs of one length alone, the product of axial_pos_shape",
    },
}
"""Architectures that are refused with their weights loaded, before anything trains, and why; padding shows in some."""


CANNOT_WRITE = ("xlm",)
"""Language models that train and are scored, but that this version of transformers does not let write."""


def marks(task: str, model_type: str, fast: Collection[str]) -> tuple[pytest.MarkDecorator, ...]:
    """Return the tier in which an architecture is tried: each run of the tests, the slower one, or the thorough one."""
    if model_type in fast:
        return ()
    return (pytest.mark.slow,) if model_type in MOST_USED[task] else (pytest.mark.thorough,)


def architectures(task: str) -> tuple[str, ...]:
    """Return the model types that transformers builds for a task."""
    return tuple(TASKS[task])


def make_config(task: str, model_type: str) -> Any:
    """Return a tiny configuration of an architecture, as a checkpoint made for the task has it."""
    decoder = {"is_decoder": True} if task == "causal-lm" and model_type in _DECODERS else {}
    decoder = {"causal": True} if (task, model_type) == ("causal-lm", "xlm") else decoder
    return _shrink(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}) | decoder)


def _shrink(config_class: Any, overrides: dict[str, Any]) -> Any:
    """Make a configuration with the tiny values of `SIZES`, those of the configurations inside of it too."""
    known = inspect.signature(config_class.__init__).parameters.keys() | _default(config_class).keys()
    values: dict[str, Any] = {name: value for name, value in SIZES.items() if name in known}
    inner = getattr(config_class, "sub_configs", {})
    for name, inner_class in inner.items():
        if name in overrides:
            continue
        if inner_class is transformers.AutoConfig:
            kind = _default(config_class).get(name)
            if not isinstance(kind, dict) or "model_type" not in kind:
                continue
            inner_class = CONFIG_MAPPING[kind["model_type"]]
        below = {key.removeprefix(f"{name}."): v for key, v in overrides.items() if key.startswith(f"{name}.")}
        values[name] = _shrink(inner_class, below)
    if "qk_rope_head_dim" in known:
        values.pop("head_dim", None)  # there it is the size of what has a position
        values |= {"num_key_value_heads": 4} if "num_key_value_heads" in known else {}
    values |= {key: value for key, value in overrides.items() if "." not in key}
    return config_class(**values)


@cache
def _default(config_class: Any) -> dict[str, Any]:
    return dict(config_class().to_dict())


def save_model(task: str, model_type: str, folder: Path) -> str:
    """Save a tiny model of an architecture with random weights and a tokenizer, and return its folder."""
    torch.manual_seed(0)
    model = AUTO_CLASSES[task].from_config(make_config(task, model_type))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def make_tokenizer() -> Any:
    """Return a tokenizer of whole words for the vocabulary of the tiny models."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    words = [*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.decoder = tokenizers.decoders.Fuse()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_rows(n_rows: int = 24) -> list[dict[str, Any]]:
    """Return rows of a few words, of different lengths, with a label that a word tells."""
    return [
        {"text": " ".join(f"w{(7 * row + 3 * place) % 80}" for place in range(3 + row % 4)), "label": row % 2}
        for row in range(n_rows)
    ]
