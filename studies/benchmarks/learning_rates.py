"""Which learning rate is best for each technique, on two models: writes search_spaces/learning_rates.yaml.

Each technique, in one sensible design (designs.py), trains for a short while at its class's default rate, then at half
decades above it until two in a row are worse than the best or training diverges, and, where none was better, at half
decades below. The rate with the lowest validation
loss wins. The head's rate is measured first, beside a LoRA, and then kept: alone it
would want a far higher one.

Every run is written down at once, and a run that is there is not repeated: a call that was killed, or whose time was
over, goes on where it was. The table is made of all runs in the file.

    python studies/benchmarks/learning_rates.py --minutes 35

Not measured: how the best rate moves with a design's size, the length of training and the batch.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from designs import kind_designs
from short_runs import RunFile, Runner, minilm, quiet, smollm2

from autopeft.spec.block import block_class
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import HEAD, TABLE, UNMEASURED_HEAD_RATE

RESULT = Path(__file__).parent / "results" / "learning_rates.json"
SPACES = Path(__file__).parents[2] / "search_spaces"
GRID = [float(f"{10**exponent * digit:.0e}") for exponent in range(-6, 0) for digit in (1, 3)] + [0.1, 0.3]
"""Half decades, rounded: 1e-6, 3e-6 … 0.3."""
N_WORSE = 2
"""Rates in a row that are worse than the best before no higher one is tried: near the best they differ by noise."""


def losses(kind: str, design: Design, runner: Runner, runs: RunFile, head_rate: float) -> dict[float, float] | None:
    """Return the validation loss by rate, infinite where training diverged; None where the time is over."""
    default = UNMEASURED_HEAD_RATE if kind == HEAD else block_class(kind).default_learning_rate
    start = min(range(len(GRID)), key=lambda i: abs(math.log(GRID[i] / default)))
    found: dict[float, float] = {}

    def measure(rate: float) -> bool:
        key = {**runner.setting.describe(), "kind": kind, "design": design.key, "rate": rate, "head_rate": head_rate}
        rates = {HEAD: rate} if kind == HEAD else {HEAD: head_rate, kind: rate}
        if kind == HEAD:
            rates |= {beside: block_class(beside).default_learning_rate for beside in design.kinds}
        run = runs.get(key, lambda: runner.run(design, rates))
        if run is None:
            return False
        found[rate] = run["scores"].get("loss", math.inf) if run["status"] == "done" else math.inf
        print(
            f"{runner.setting.name}  {kind:<12} {rate:7.0e}  loss {found[rate]:.4f}  {run['seconds']:5.1f} s",
            flush=True,
        )
        return True

    if not measure(GRID[start]):
        return None
    for rate in GRID[start + 1 :] if math.isfinite(found[GRID[start]]) else []:
        if not measure(rate):
            return None
        if len(found) - 1 - list(found).index(best(found)) >= N_WORSE or found[rate] == math.inf:
            break
    for rate in GRID[:start][::-1] if best(found) == GRID[start] else []:
        if not measure(rate):
            return None
        if best(found) != rate and math.isfinite(found[best(found)]):
            break
    return found


def best(found: dict[float, float]) -> float:
    return min(found, key=lambda rate: found[rate])


def measure_all(runners: list[Runner], runs: RunFile, only: list[str]) -> Iterator[tuple[str, str, float]]:
    """Yield kind, model and best rate of all that could be measured, model by model."""
    designs = {kind: design for kind, design in kind_designs().items() if not only or kind in only}
    for runner in runners:
        head_rate = UNMEASURED_HEAD_RATE
        if runner.meta.summary.new_modules:
            found = losses(HEAD, kind_designs()["lora"], runner, runs, 0.0)
            if found is None:
                return
            head_rate = best(found)
            yield HEAD, runner.setting.name, head_rate
        for kind, design in designs.items():
            reason = runner.refusal(design)
            if reason:
                print(f"{runner.setting.name}  {kind:<12} left out: {reason}", flush=True)
                continue
            found = losses(kind, design, runner, runs, head_rate)
            if found is None:
                return
            if math.isfinite(found[best(found)]):
                yield kind, runner.setting.name, best(found)


def write_table(path: Path, rates: dict[str, dict[str, float]]) -> None:
    """Write the table, keeping the rows that were not measured now."""
    from ruamel.yaml import YAML

    yaml = YAML()
    table = yaml.load(path.read_text(encoding="utf-8"))
    known = {kind: dict(row) for kind, row in table["best"].items()}
    for kind, row in rates.items():
        known[kind] = {**known.get(kind, {}), **row}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    lines += ["best:"]
    for kind in sorted(known, key=lambda name: (name != HEAD, name)):
        row = ", ".join(f"{model}: {rate:.0e}" for model, rate in sorted(known[kind].items()))
        lines.append(f"  {kind}: {{{row}}}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=35, help="no run starts after this long")
    parser.add_argument("--only", nargs="*", default=[], help="kinds; all of them by default")
    parser.add_argument("--models", nargs="*", default=["minilm", "smollm2"], choices=["minilm", "smollm2"])
    parser.add_argument("--minilm-rows", type=int, default=500)
    parser.add_argument("--smollm2-rows", type=int, default=48)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--table", type=Path, default=SPACES / TABLE)
    arguments = parser.parse_args()

    quiet()
    settings = {
        "minilm": minilm(n_train=arguments.minilm_rows, n_validation=arguments.minilm_rows // 2),
        "smollm2": smollm2(n_train=arguments.smollm2_rows, n_validation=arguments.smollm2_rows // 2),
    }
    runs = RunFile(path=arguments.output, minutes=arguments.minutes)
    rates: dict[str, dict[str, float]] = {}
    for kind, model, rate in measure_all([Runner(settings[name]) for name in arguments.models], runs, arguments.only):
        rates.setdefault(kind, {})[model] = rate
        write_table(arguments.table, rates)
    print(f"{len(runs.runs)} runs in {arguments.output}; best rates of {len(rates)} techniques in {arguments.table}")
    if runs.time_is_over:
        print("time is over: the same command goes on from here")


if __name__ == "__main__":
    main()
