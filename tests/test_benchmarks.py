"""The benchmarks over all techniques: every technique has a row, the best rate is found, and a killed run goes on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autopeft.errors import SpaceError
from autopeft.spec.block import block_kinds
from autopeft.spec.design import Design
from autopeft.spec.yaml_file import read_yaml

FOLDER = Path(__file__).parents[1] / "studies" / "benchmarks"


class Valley:
    """Stands for a model: the loss is lowest at one rate, and training diverges far above it."""

    def __init__(self, lowest: float) -> None:
        self.lowest = lowest
        self.n_runs = 0
        self.setting = SimpleNamespace(name="valley", describe=lambda: {"model": "valley"})
        self.meta = SimpleNamespace(summary=SimpleNamespace(new_modules=()))

    def refusal(self, design: Design) -> str:
        return ""

    def run(self, design: Design, rates: dict[str, float]) -> dict[str, Any]:
        self.n_runs += 1
        (rate,) = (value for name, value in rates.items() if name != "head")
        away = math.log10(rate / self.lowest)
        if away > 1:
            return {"status": "diverged", "scores": {}, "seconds": 0.0}
        return {"status": "done", "scores": {"loss": 1 + away**2}, "seconds": 0.0}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Return the benchmarks, which import each other as scripts of one folder."""
    from importlib import import_module

    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: import_module(name) for name in ("designs", "short_runs", "learning_rates")}


def test_every_technique_that_stands_alone_has_a_design(modules: dict[str, ModuleType]) -> None:
    designs = modules["designs"]
    assert set(designs.kind_designs()) == set(block_kinds()) - designs.NEEDS_MORE
    assert {kind for design in designs.all_designs().values() for kind in design.kinds} >= set(designs.kind_designs())


@pytest.mark.parametrize("lowest", [1e-5, 3e-4, 1e-3, 3e-3])
def test_the_best_rate_is_found_and_written(modules: dict[str, ModuleType], tmp_path: Path, lowest: float) -> None:
    benchmark, runner = modules["learning_rates"], Valley(lowest)
    runs = modules["short_runs"].RunFile(path=tmp_path / "runs.json", minutes=1)
    assert list(benchmark.measure_all([runner], runs, ["lora"])) == [("lora", "valley", lowest)]
    table = tmp_path / "table.yaml"
    table.write_text("# kept\nbest:\n  ia3: {other: 3e-3}\n  lora: {other: 1e-3}\n")
    benchmark.write_table(table, {"lora": {"valley": lowest}})
    assert table.read_text().startswith("# kept\n")
    best = read_yaml(table.read_text(), name="table", error=SpaceError).plain()["best"]
    assert best == {"ia3": {"other": 3e-3}, "lora": {"other": 1e-3, "valley": lowest}}


def test_a_killed_benchmark_repeats_nothing(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    path, make = tmp_path / "runs.json", modules["short_runs"].RunFile
    first, second = Valley(1e-3), Valley(1e-3)
    found = list(modules["learning_rates"].measure_all([first], make(path=path, minutes=1), ["lora"]))
    record = json.loads(path.read_text())
    assert len(record["runs"]) == first.n_runs >= 3
    path.write_text(json.dumps(record | {"runs": record["runs"][:2]}))
    assert list(modules["learning_rates"].measure_all([second], make(path=path, minutes=1), ["lora"])) == found
    assert second.n_runs == first.n_runs - 2


def test_no_run_starts_when_the_time_is_over(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    runner = Valley(1e-3)
    runs = modules["short_runs"].RunFile(path=tmp_path / "runs.json", minutes=0)
    assert list(modules["learning_rates"].measure_all([runner], runs, ["lora"])) == []
    assert runner.n_runs == 0


def test_published_runs_are_read_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a smaller model than theirs, from files of the form that theirs have."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import published

    size = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    monkeypatch.setattr(
        published, "LLAMA_3B", {**published.LLAMA_3B, **size, "intermediate_size": 64, "vocab_size": 99}
    )
    training = {"model_id": "meta-llama/Llama-3.2-3B", "dtype": "bfloat16", "optimizer_type": "AdamW", "batch_size": 2}
    off = {"use_gc": False, "use_amp": False, "compile": False, "max_seq_length": 8}
    lora = {"r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False, "init_lora_weights": True}
    configs = {
        "lora": {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], **lora},
        "lora-odd": {"peft_type": "LORA", "target_modules": ["q_proj"], **lora, "init_lora_weights": "pissa"},
        "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
        "unknown": {"peft_type": "BOFT", "target_modules": ["q_proj"]},
    }
    for name, config in configs.items():
        info = {"train_config": {**training, **off}, "peft_config": config}
        outcome = {"num_trainable_params": 3 * 2 * (32 + 32 + 32 + 16), "accelerator_memory_max": 10**7 + len(name)}
        (tmp_path / f"{name}.json").write_text(json.dumps({"run_info": info, "train_info": outcome}))
    (tmp_path / "table.json").write_text("[]")
    found = list(published.read_runs(tmp_path))
    assert [run for run in found if isinstance(run, str)] == ["lora-odd", "table", "unknown"]
    compared = [published.compare(published.build_llama(), run, 8) for run in found if not isinstance(run, str)]
    assert [each.name for each in compared] == ["lora", "prompt"]
    assert [each.params for each in compared] == [compared[0].measured_params, 3 * 32]
    assert [each.alike for each in compared] == [True, False]
    assert all(each.base_bytes < each.peak_bytes < each.reserved_bytes for each in compared)
    other = replace(compared[1], reserved_bytes=2 * compared[1].reserved_bytes)
    assert "2 runs; trainable parameters differ in 1" in published.summary([compared[0], other])
