"""What each technique reaches on two models, in one table: score, trainable parameters, peak memory, seconds.

Every technique and variant of designs.py trains once on MiniLM (accuracy on held-out reviews) and once on SmolLM2
(perplexity of held-out reviews), with the learning rates of search_spaces/learning_rates.yaml. Score: on the
validation split, one seed: differences within two standard errors (MiniLM: about 3 points of accuracy at 75 %) are
noise. Peak memory: the highest sum of live tensor bytes in a training or evaluation step, base included. Seconds: in
training steps.

Every run is written down at once, and a run that is there is not repeated.

    python studies/benchmarks/techniques.py --minutes 20
"""

import argparse
from pathlib import Path
from typing import Any

from designs import all_designs
from short_runs import RunFile, Runner, minilm, quiet, smollm2

from autopeft.spec.block import Block
from autopeft.spec.cost import format_cost
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import default_learning_rate

RESULT = Path(__file__).parent / "results" / "techniques.json"


def measure(name: str, design: Design, runner: Runner, runs: RunFile) -> dict[str, Any] | None:
    """Return a row of the table for one model, or why there is none; None where the time is over."""
    reason = runner.refusal(design)
    if reason:
        return {"refused": reason}
    rates = {block.kind: rate_of(block) for block in design.blocks}
    key = {**runner.setting.describe(), "technique": name, "design": design.key, "rates": rates}
    run = runs.get(key, lambda: {"trainable_params": runner.n_trainable(design), **runner.run(design, rates)})
    if run is not None:
        score = run["scores"].get(runner.setting.score)
        print(f"{runner.setting.name}  {name:<26} {runner.setting.score} {score}  {run['seconds']} s", flush=True)
    return run


def rate_of(block: Block) -> float:
    """Return the table's rate, which is of the plain technique, as a variant wants it."""
    if getattr(block, "projection", False) or getattr(block, "encoder", "none") != "none":
        return default_learning_rate("adapter")  # what trains is a small network, and not the prompt itself
    return default_learning_rate(block.kind) / getattr(block, "b_rate_ratio", 1.0) ** 0.5  # LoRA+: between A's and B's


def markdown(rows: dict[str, list[dict[str, Any] | None]], runners: list[Runner]) -> str:
    """Return the table: a technique a row, four columns a model."""
    head = ["technique"]
    for runner in runners:
        head += [f"{runner.setting.name}: {runner.setting.score}", "trainable", "peak memory", "seconds"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, row in rows.items():
        cells = [name]
        for runner, run in zip(runners, row, strict=True):
            cells += cells_of(run, runner)
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells_of(run: dict[str, Any] | None, runner: Runner) -> list[str]:
    if run is None:
        return ["not run", "", "", ""]
    if "refused" in run:
        return ["not on this model", "", "", ""]
    score = run["scores"].get(runner.setting.score)
    written = "diverged" if score is None else f"{score:.1%}" if runner.setting.score == "accuracy" else f"{score:.1f}"
    memory = format_cost("peak_memory", run["peak_memory"]) if run["peak_memory"] else ""
    return [written, f"{run['trainable_params']:,}", memory, f"{run['train_seconds']:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="no run starts after this long")
    parser.add_argument("--only", nargs="*", default=[], help="techniques by the start of their names; all by default")
    parser.add_argument("--models", nargs="*", default=["minilm", "smollm2"], choices=["minilm", "smollm2"])
    parser.add_argument("--minilm-rows", type=int, default=600)
    parser.add_argument("--smollm2-rows", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()

    quiet()
    settings = {
        "minilm": minilm(n_train=arguments.minilm_rows, n_validation=min(600, arguments.minilm_rows)),
        "smollm2": smollm2(n_train=arguments.smollm2_rows, n_validation=arguments.smollm2_rows // 2),
    }
    runners = [Runner(settings[name]) for name in arguments.models]
    runs = RunFile(path=arguments.output, minutes=arguments.minutes)
    chosen = {
        name: design
        for name, design in all_designs().items()
        if not arguments.only or name.startswith(tuple(arguments.only))
    }
    rows = {name: [measure(name, design, runner, runs) for runner in runners] for name, design in chosen.items()}
    print()
    print(markdown(rows, runners))
    print(f"\n{len(runs.runs)} runs in {arguments.output}")
    if runs.time_is_over:
        print("time is over: the same command goes on from here")


if __name__ == "__main__":
    main()
