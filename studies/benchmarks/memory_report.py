"""What the runs of the memory benchmark say: a line for each, a table, a JSON file and a plot."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name_with_units
from memory_settings import MODELS
from scipy.stats import spearmanr

from autopeft.costs.estimator import Estimator

Run = dict[str, Any]
BAND = 0.05
"""How far a prediction may be off at most where it is too low, and in 95 of 100 settings."""


def error_of(run: Run) -> float:
    """Return the relative error of a prediction: above zero where it is too high."""
    return float(run["predicted"] / run["measured"] - 1)


def error_above_base(run: Run) -> float:
    """Return the error relative to what is measured above the base weights."""
    return float((run["predicted"] - run["measured"]) / (run["measured"] - run["base"]))


def line_of(run: Run) -> str:
    """Return a run on one line; memory in MiB."""
    setting = run["setting"]
    memory = "checkpointing" if setting["checkpointing"] else ""
    what = (
        f"{setting['model']:8}{setting['technique'][:40]:41}{setting['quantization']:5}{setting['precision']:5}"
        f"{setting['kernel']:6}{setting['batch_size']:>3} x {setting['length']:<4}{setting['threads']}t {memory:13} "
    )
    if "failed" in run:
        return f"{what} failed: {run['failed'].strip().splitlines()[-1]}"
    if "refused" in run:
        return f"{what} refused: {run['refused']}"
    measured, predicted = (run[name] / 2**20 for name in ("measured", "predicted"))
    return f"{what}{measured:9.2f}{predicted:9.2f}{error_of(run):+9.2%}{error_above_base(run):+9.2%}"


def report(runs: Sequence[Run], path: Path) -> None:
    """Print the table, and write it and every run as JSON beside the runs' file, with the plot."""
    counted = [run for run in runs if "measured" in run]
    if not counted:
        print("nothing has been measured yet")
        return
    parts = {
        "model": lambda run: [f"{m.name} ({m.weights})" for m in MODELS if m.name == run["setting"]["model"]],
        "quantization": lambda run: [run["setting"]["quantization"]],
        "precision": lambda run: [run["setting"]["precision"]],
        "kernel": lambda run: [run["setting"]["kernel"]],
        "checkpointing": lambda run: ["yes" if run["setting"]["checkpointing"] else "no"],
        "threads": lambda run: [str(run["setting"]["threads"])],
        "technique": lambda run: run["setting"]["technique"].split(" + "),
    }
    table = {"all": {"": summary(counted)}, **{name: _by(counted, names_of) for name, names_of in parts.items()}}
    print(markdown(table))
    print("\nmost too high, most too low:")
    for run in (max(counted, key=error_of), min(counted, key=error_of)):
        print(line_of(run))
    record = {
        "schema_version": 1,
        **circumstances(),
        "estimator": Estimator.version,
        "table": table,
        "runs": [{**run, "error": error_of(run), "error_above_base": error_above_base(run)} for run in counted],
        "refused": [run for run in runs if "refused" in run],
    }
    done = [run["setting"] for run in counted]
    failed = [run for run in runs if "failed" in run and run["setting"] not in done]
    if failed:
        print(f"\n{len(failed)} failed; the same command tries them again:")
    for run in failed:
        print(line_of(run))
    written = path.with_suffix(".json")
    written.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plot(counted, path.with_suffix(".png"))
    print(f"\nwritten: {written.name} and {written.with_suffix('.png').name} in {path.parent}")


def circumstances() -> dict[str, dict[str, str]]:
    """Return what measured peaks depend on: the machine and the versions of what computes."""
    packages = ("autopeft", "torch", "transformers", "peft", "bitsandbytes")
    return {
        "machine": {"cpu": cpu_name_with_units()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """Return what the issue of a benchmark is judged by."""
    errors, above = (np.array([function(run) for run in runs]) for function in (error_of, error_above_base))
    measured, predicted = (np.array([run[name] for run in runs]) for name in ("measured", "predicted"))
    return {
        "n": len(runs),
        "median": float(np.median(np.abs(errors))),
        "p95": float(np.quantile(np.abs(errors), 0.95)),
        "highest": float(errors.max()),
        "lowest": float(errors.min()),
        "median_above_base": float(np.median(np.abs(above))),
        "p95_above_base": float(np.quantile(np.abs(above), 0.95)),
        "spearman": float(spearmanr(measured, predicted).statistic) if len(runs) > 2 else float("nan"),
        # what guessing the median of the measured ones would score: the bar that any estimate must clear
        "constant_guess_median": float(np.median(np.abs(np.median(measured) / measured - 1))),
    }


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the summaries as one table."""
    heads = ["", "n", "median", "p95", "worst high", "worst low", "above base: median", "p95", "Spearman"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for part, rows in table.items():
        for name, row in rows.items():
            shares = [f"{row[key]:.2%}" for key in ("median", "p95")]
            shares += [f"{row[key]:+.2%}" for key in ("highest", "lowest")]
            shares += [f"{row[key]:.2%}" for key in ("median_above_base", "p95_above_base")]
            lines.append([f"{part}: {name}" if name else part, str(row["n"]), *shares, f"{row['spearman']:.4f}"])
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw measured against predicted, with the band that the errors must stay in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    for model in MODELS:
        of_model = [run for run in runs if run["setting"]["model"] == model.name]
        x, y = ([run[name] / 2**20 for run in of_model] for name in ("measured", "predicted"))
        axes.scatter(x, y, s=14, alpha=0.7, label=f"{model.name} ({model.weights})")
    ends = np.array([0.9 * min(run["measured"] for run in runs), 1.1 * max(run["measured"] for run in runs)]) / 2**20
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, (1 - BAND) * ends, (1 + BAND) * ends, color="grey", alpha=0.2, label=f"within {BAND:.0%}")
    axes.set(xscale="log", yscale="log", xlabel="measured peak (MiB)", ylabel="predicted before training (MiB)")
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=150)


def _by(runs: Iterable[Run], names_of: Callable[[Run], list[str]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        for name in names_of(run):
            groups.setdefault(name, []).append(run)
    return {name: summary(group) for name, group in groups.items()}
