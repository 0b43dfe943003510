"""Objectives: every metric that a search can optimise, with its unit and direction."""

from dataclasses import dataclass
from typing import Literal

from autopeft.errors import StudyError
from autopeft.spec.messages import one_of
from autopeft.spec.task import load_task, task_names


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric with unit and direction.

    Attributes:
        kind: `quality` is learned from training; `cost` is known from the design alone.
        best: The ideal value where there is one (1.0 for accuracy).
        worst: The value of a useless model where there is one, the hypervolume's fallback reference.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    kind: Literal["quality", "cost"]
    unit: str = ""
    label: str = ""
    best: float | None = None
    worst: float | None = None

    def better(self, a: float, b: float) -> bool:
        """Return whether `a` is strictly better than `b`."""
        return a > b if self.direction == "maximize" else a < b

    def loss(self, value: float) -> float:
        """Return `value` with the sign that makes smaller better."""
        return -value if self.direction == "maximize" else value


_ALL = (
    Objective(name="accuracy", direction="maximize", kind="quality", label="accuracy", best=1.0, worst=0.0),
    Objective(name="macro_f1", direction="maximize", kind="quality", label="macro F1", best=1.0, worst=0.0),
    Objective(name="matthews", direction="maximize", kind="quality", label="Matthews correlation", best=1.0, worst=0.0),
    Objective(name="loss", direction="minimize", kind="quality", label="loss", best=0.0),
    Objective(name="perplexity", direction="minimize", kind="quality", label="perplexity", best=1.0),
    Objective(name="token_accuracy", direction="maximize", kind="quality", label="token accuracy", best=1.0, worst=0.0),
    Objective(name="trainable_params", direction="minimize", kind="cost", label="trainable parameters"),
    Objective(name="peak_memory", direction="minimize", kind="cost", unit="B", label="peak memory"),
    Objective(name="train_flops", direction="minimize", kind="cost", unit="FLOP", label="training compute"),
    Objective(
        name="inference_flops", direction="minimize", kind="cost", unit="FLOP", label="inference compute per example"
    ),
    Objective(name="adapter_bytes", direction="minimize", kind="cost", unit="B", label="adapter size on disk"),
)
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ALL}
"""Every objective by name that autopeft knows without importing a task."""
COSTS: tuple[str, ...] = tuple(o.name for o in _ALL if o.kind == "cost")
"""Names of the objectives that an `Estimate` answers, in the order of tables."""


def find_objective(name: str) -> Objective:
    """Return the objective called `name`.

    Raises:
        StudyError: There is none.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    of_tasks: dict[str, Objective] = {
        each: metric.objective for task in task_names() for each, metric in load_task(task).metrics.items()
    }
    if name not in of_tasks:
        raise StudyError(f"an objective {one_of([*OBJECTIVES, *of_tasks], name)}")
    return of_tasks[name]
