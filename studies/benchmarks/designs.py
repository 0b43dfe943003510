"""A sensible design of each technique and variant, for benchmarks over all of them.

Sizes are such that most train about the same number of parameters on a small model. A technique without a row here is
benchmarked with its size field at `UNKNOWN_SIZE`.
"""

from autopeft.spec.block import block_class, block_kinds
from autopeft.spec.design import Design

UNKNOWN_SIZE = 8
QV = ["query", "value"]
NEEDS_MORE = {"fusion"}
"""Kinds that need something of an earlier study, such as adapters to fuse."""

ROWS: dict[str, list[dict[str, dict[str, object]]]] = {
    "lora": [{"lora": {"rank": 8, "roles": QV}}],
    "lora, all roles": [{"lora": {"rank": 8}}],
    "lora, rslora": [{"lora": {"rank": 8, "roles": QV, "rslora": True}}],
    "lora, dora": [{"lora": {"rank": 8, "roles": QV, "dora": True}}],
    "lora, LoRA-FA": [{"lora": {"rank": 8, "roles": QV, "freeze_a": True}}],
    "lora, LoRA+": [{"lora": {"rank": 8, "roles": QV, "b_rate_ratio": 16}}],
    "adalora": [{"adalora": {"rank": 8, "roles": QV}}],
    "vera": [{"vera": {"rank": 64}}],
    "loha": [{"loha": {"rank": 4, "roles": QV}}],
    "lokr": [{"lokr": {"rank": 8}}],
    "oft": [{"oft": {"block_size": 16, "roles": QV}}],
    "miss": [{"miss": {"rank": 8, "roles": QV}}],
    "shira": [{"shira": {"rank": 8, "roles": QV}}],
    "adapter": [{"adapter": {"size": 32, "at": ["mlp"]}}],
    "adapter, Houlsby": [{"adapter": {"size": 16, "at": ["attention", "mlp"]}}],
    "adapter, parallel": [{"adapter": {"size": 32, "mode": "parallel", "at": ["mlp"], "scaling": 4}}],
    "adapter, AdaMix": [{"adapter": {"size": 16, "at": ["mlp"], "experts": 4}}],
    "compacter": [{"compacter": {"size": 32}}],
    "ia3": [{"ia3": {}}],
    "prompt": [{"prompt": {"length": 16}}],
    "prompt, P-tuning (MLP)": [{"prompt": {"length": 16, "encoder": "mlp"}}],
    "prompt, P-tuning (LSTM)": [{"prompt": {"length": 16, "encoder": "lstm"}}],
    "prefix": [{"prefix": {"length": 16}}],
    "prefix, projection": [{"prefix": {"length": 16, "projection": True, "projection_size": 128}}],
    "bitfit": [{"bitfit": {}}],
    "norms": [{"norms": {}}],
    "full": [{"full": {}}],
    "MAM": [
        {"adapter": {"size": 32, "mode": "parallel", "at": ["mlp"], "scaling": 4}},
        {"prefix": {"length": 16}},
    ],
    "UniPELT": [
        {"lora": {"rank": 8, "roles": QV, "gate": True}},
        {"prefix": {"length": 8, "gate": True}},
        {"adapter": {"size": 16, "at": ["mlp"], "gate": True}},
    ],
}
QUANTIZED = {"lora, int8": "int8", "lora, nf4": "nf4", "lora, nf4 twice": "nf4-dq", "lora, fp4": "fp4"}


def kind_designs() -> dict[str, Design]:
    """Return a design of each registered kind that stands alone, by kind."""
    return {
        kind: Design.from_dict({"blocks": ROWS.get(kind) or [{kind: _settings(kind)}]})
        for kind in block_kinds()
        if kind not in NEEDS_MORE
    }


def all_designs() -> dict[str, Design]:
    """Return every design by its row's name: the head alone, each technique and variant, and LoRA over each base."""
    designs = {"head alone": Design(), **{name: Design.from_dict({"blocks": blocks}) for name, blocks in ROWS.items()}}
    for name, quantization in QUANTIZED.items():
        designs[name] = Design.from_dict({"quantization": quantization, "blocks": ROWS["lora"]})
    return {**designs, **{kind: design for kind, design in kind_designs().items() if kind not in designs}}


def _settings(kind: str) -> dict[str, object]:
    field = block_class(kind).size_field
    return {} if field is None else {field: UNKNOWN_SIZE}
