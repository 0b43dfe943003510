"""Predicted against published: trainable parameters and GPU memory of PEFT runs on Llama-3.2-3B.

Reads the results that huggingface/peft keeps of its method comparison (method_comparison/MetaMathQA/results, one JSON
file a run), from a folder that the reader gives; nothing of them is in this repository. Each run whose technique
autopeft has is estimated on the shape of Llama-3.2-3B as their script trains it: weights in bf16 without autocast,
adapters in fp32, AdamW, transformers' own loss (logits in fp32), and a batch of their size at their longest length.

Measured is `accelerator_memory_max`, the highest `torch.cuda.max_memory_reserved` of the whole run. Their script
empties the cache every 10 steps and sorts 20 batches at a time from long to short, so that the longest batches find
an almost empty cache, as the replay's do.

The length is their `max_seq_length`, at which their script cuts: an upper bound, because which length the longest of
the 20,000 examples really has is not published. Nothing here is fitted. `--tokens` shows what another length gives.

Not modelled: generation during their evaluations, the temporaries of AdamW's `foreach` form. Where their runs do
something else than autopeft does, the difference stays in the figures, beside those of the other runs alone:

    LoRA-FA        their script switches adapters off and on before it trains, whereupon peft lets A train again
                   (`BaseTunerLayer.enable_adapters`) and keeps what A's gradient needs: what LoRA-FA is there to save
    prompt tuning  peft computes logits and a loss at the prompt's positions too, autopeft at the text's alone
    prefix tuning  peft hands prefixes over in a cache, which keeps all keys and values until the step is over
    SHiRA          peft adds the update to a copy of the weight in bf16; autopeft multiplies by it alone, in fp32

    python studies/benchmarks/published.py --results peft/method_comparison/MetaMathQA/results
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from scipy.stats import spearmanr
from transformers.loss.loss_utils import ForCausalLMLoss

from autopeft.costs.allocator import replay
from autopeft.costs.cuda import CUBLAS_WORKSPACES
from autopeft.costs.estimator import stored_bytes
from autopeft.costs.simulated_step import Machine, SimulatedStep
from autopeft.errors import AutopeftError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, build_meta
from autopeft.spec.design import Design
from autopeft.tasks.causal_lm import CausalLM

GIB = 2**30
LLAMA_3B = {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "architectures": ["LlamaForCausalLM"],
}
"""The shape of meta-llama/Llama-3.2-3B; how it scales its rotary frequencies changes no size."""
ROLE = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention_output",
    "up_proj": "mlp_up",
    "gate_proj": "mlp_gate",
    "down_proj": "mlp_down",
}


OTHERWISE = frozenset({"prompt", "prefix", "shira"})
"""Kinds that their runs train in another way than autopeft does; so they do LoRA-FA."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A published run that autopeft has a design for.

    Attributes:
        n_tokens: Where their script cuts examples.
        measured_params: Trainable parameters.
        measured_bytes: Highest reserved memory of the run.
    """

    name: str
    design: Design
    batch_size: int
    n_tokens: int
    measured_params: int
    measured_bytes: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predicted against measured.

    Attributes:
        peak_bytes: Predicted peak of tensors.
        reserved_bytes: Predicted peak of what the allocator reserves; `measured_bytes` is to equal it.
        alike: Whether the run does what autopeft does.
    """

    name: str
    params: int
    measured_params: int
    peak_bytes: int
    reserved_bytes: int
    measured_bytes: int
    base_bytes: int
    alike: bool

    @property
    def error(self) -> float:
        """Return the relative error of the reserved bytes; above 0 where too much was predicted."""
        return self.reserved_bytes / self.measured_bytes - 1

    @property
    def error_above_base(self) -> float:
        """Return the relative error of the part above the base weights."""
        return (self.reserved_bytes - self.base_bytes) / (self.measured_bytes - self.base_bytes) - 1


class TheirLoss(CausalLM):
    """The loss is transformers' own: logits in fp32, and what cross-entropy keeps and makes of them."""

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        logits = outputs.logits
        loss: torch.Tensor = ForCausalLMLoss(
            logits[:, -labels.shape[1] :], labels, logits.shape[-1], num_items_in_batch=labels.numel()
        )
        return loss


def block_of(peft: dict[str, Any], optimizer: str) -> dict[str, Any] | None:
    """Return the block that a peft configuration means, or None where autopeft has no such technique or variant."""
    targets = peft.get("target_modules") or []
    roles = sorted(ROLE.get(target, target) for target in targets) if isinstance(targets, list) else []
    if peft["peft_type"] == "LORA":
        known = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "init_lora_weights")
        if not isinstance(peft["init_lora_weights"], bool) or _others(peft, known):
            return None
        variant = {"rslora": peft["use_rslora"], "dora": peft["use_dora"], "freeze_a": optimizer == "lora-fa"}
        return {"lora": {"rank": peft["r"], "alpha": peft["lora_alpha"], "roles": roles, **variant}}
    if optimizer != "AdamW":
        return None
    match peft["peft_type"]:
        case "ADALORA":
            return {"adalora": {"rank": peft["target_r"], "initial_rank": peft["init_r"], "roles": roles}}
        case "VERA":
            return {"vera": {"rank": peft["r"], "roles": roles}}
        case "LOHA" | "SHIRA" as kind:
            return {kind.lower(): {"rank": peft["r"], "roles": roles}}
        case "LOKR":
            return {"lokr": {"rank": peft["r"], "factor": peft["decompose_factor"], "roles": roles}}
        case "MISS" if peft["init_weights"] is True:
            return {"miss": {"rank": peft["r"], "roles": roles}}
        case "OFT":
            size = peft["oft_block_size"] or LLAMA_3B["hidden_size"] // peft["r"]
            return {"oft": {"block_size": size, "exact": not peft["use_cayley_neumann"], "roles": roles}}
        case "IA3" if set(targets) == {"k_proj", "v_proj", "down_proj"}:
            return {"ia3": {}}
        case "LN_TUNING":
            return {"norms": {"outer": True}}
        case "PREFIX_TUNING" if not peft["prefix_projection"]:
            return {"prefix": {"length": peft["num_virtual_tokens"]}}
        case "PROMPT_TUNING":
            return {"prompt": {"length": peft["num_virtual_tokens"]}}
        case "P_TUNING" if peft["encoder_reparameterization_type"] == "MLP":
            inner = peft["encoder_hidden_size"]
            return {"prompt": {"length": peft["num_virtual_tokens"], "encoder": "mlp", "encoder_hidden_size": inner}}
    return None


def _others(peft: dict[str, Any], known: tuple[str, ...]) -> list[str]:
    """Return the settings, besides those, that switch something on."""
    about = ("peft_type", "task_type", "peft_version", "base_model_name_or_path", "megatron_core", "qalora_group_size")
    off = (None, False, {}, [], "none")
    return [name for name, value in peft.items() if value not in off and name not in {*known, *about}]


def read_runs(folder: Path) -> Iterator[Run | str]:
    """Yield the runs of a folder; the name alone where autopeft has no design for one."""
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or not {"run_info", "train_info"} <= result.keys():
            yield path.stem  # no result of theirs
            continue
        settings, outcome = result["run_info"], result["train_info"]
        training, peft = settings["train_config"], settings["peft_config"]
        block = block_of(peft, training["optimizer_type"]) if peft else None
        plain = training["dtype"] == "bfloat16" and not any(training[name] for name in ("use_gc", "use_amp", "compile"))
        if block is None or not plain or "3.2-3B" not in training["model_id"]:
            yield path.stem
            continue
        yield Run(
            name=path.stem.replace("--llama-3.2-3B", ""),
            design=Design.from_dict({"blocks": [block]}),
            batch_size=training["batch_size"],
            n_tokens=training["max_seq_length"],
            measured_params=outcome["num_trainable_params"],
            measured_bytes=outcome["accelerator_memory_max"],
        )


def build_llama() -> Base:
    """Return Llama-3.2-3B without weights, in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaConfig(**LLAMA_3B).save_pretrained(folder)
        base = build_meta(folder, CausalLM().example_head, kernel="sdpa", needs_weights=False)
    for parameter in base.model.parameters():  # not the buffers: rotary frequencies stay in fp32
        parameter.data = parameter.data.to(torch.bfloat16)
    return base


def compare(base: Base, run: Run, n_tokens: int) -> Comparison:
    """Return what is predicted for a run."""
    shape = {"batch_size": run.batch_size, "n_tokens": n_tokens}
    with torch.device("meta"):
        attaching = attach(base, run.design)
    with attaching as attached:
        _train_like_peft(attached)
        with SimulatedStep(attached, Machine(device="cuda", precision="fp32", n_threads=1), task=TheirLoss()) as step:
            training, evaluation = step.training_step(**shape), step.evaluation_step(**shape)
        assert evaluation.events is not None
        peaks = replay(training.events, evaluation.events, workspaces=CUBLAS_WORKSPACES)
        return Comparison(
            name=run.name,
            params=attached.n_trainable,
            measured_params=run.measured_params,
            peak_bytes=max(training.peak_bytes, evaluation.peak_bytes),
            reserved_bytes=peaks.reserved_bytes,
            measured_bytes=run.measured_bytes,
            base_bytes=stored_bytes(base),
            alike=not any(block.kind in OTHERWISE or getattr(block, "freeze_a", False) for block in run.design.blocks),
        )


def _train_like_peft(attached: Attached) -> None:
    """Make dtypes meet as peft does without autocast, under which autopeft's techniques rely on it.

    Source: `LNTuningModel._cast_adapter_dtype`, which leaves norms in the base's dtype, and
        `BaseTunerLayer._cast_input_dtype`: what goes into an adapter gets the adapter's dtype.
    """
    for norm in attached.groups.get("norms", []):
        norm.data = norm.data.to(torch.bfloat16)
    for name, module in attached.model.named_modules():
        if name.rpartition(".")[2].startswith("autopeft_"):
            module.register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs))


def summary(compared: list[Comparison]) -> str:
    """Return errors over all runs, beside those of guessing the runs' median."""
    measured = [float(each.measured_bytes) for each in compared]
    guess = [abs(statistics.median(measured) / value - 1) for value in measured]
    wrong = [each for each in compared if each.params != each.measured_params]
    lines = [f"{len(compared)} runs; trainable parameters differ in {len(wrong)}"]
    for title, errors in (
        ("reserved memory", [abs(each.error) for each in compared]),
        ("the part above the base weights", [abs(each.error_above_base) for each in compared]),
        ("one guess for all, the median of the measured", guess),
    ):
        lines.append(f"{title}: median error {statistics.median(errors):.1%}, 95th percentile {_p95(errors):.1%}")
    bias = statistics.median(each.error for each in compared)
    rank = spearmanr([each.reserved_bytes for each in compared], measured).statistic
    return "\n".join([*lines, f"median signed error {bias:+.1%}; rank correlation {rank:.3f}"])


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def main() -> None:
    """Compare, and print one line a run as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of their result files")
    parser.add_argument("--tokens", type=int, help="length of the longest batch; their max_seq_length otherwise")
    parser.add_argument("--only", default="", help="runs with this in their names")
    parser.add_argument("--output", type=Path, help="where to write what is compared, one run a line")
    options = parser.parse_args()
    found = list(read_runs(options.results))
    runs = [run for run in found if isinstance(run, Run) and options.only in run.name]
    if len(runs) < 2:
        parser.error(f"{options.results} must hold at least two result files of known techniques, but has {len(runs)}")
    print("left out:", ", ".join(name for name in found if isinstance(name, str)), flush=True)
    base = build_llama()
    compared: list[Comparison] = []
    same: dict[tuple[str, int, int], Comparison] = {}  # some runs differ in nothing that costs memory
    print(f"{'run':44}{'params':>12}{'published':>12}{'peak':>8}{'reserved':>10}{'published':>11}{'error':>8}  GiB")
    for run in runs:
        n_tokens = options.tokens or run.n_tokens
        key = (run.design.key, run.batch_size, n_tokens)
        try:
            if key not in same:
                same[key] = compare(base, run, n_tokens)
        except AutopeftError as error:
            print(f"{run.name:44}{error}", flush=True)
            continue
        each = replace(same[key], name=run.name, measured_params=run.measured_params, measured_bytes=run.measured_bytes)
        compared.append(each)
        print(
            f"{each.name:44}{each.params:12,}{each.measured_params:12,}{each.peak_bytes / GIB:8.2f}"
            f"{each.reserved_bytes / GIB:10.2f}{each.measured_bytes / GIB:11.2f}{each.error:+8.1%}",
            flush=True,
        )
    if len(compared) > 1:
        print(f"all runs: {summary(compared)}")
    alike = [each for each in compared if each.alike]
    if 1 < len(alike) < len(compared):
        print(f"those that do what autopeft does: {summary(alike)}")
    if options.output:
        options.output.write_text("".join(json.dumps(asdict(each)) + "\n" for each in compared))


if __name__ == "__main__":
    main()
