"""What is known of a task by its name alone, before its code is imported."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a study and an estimate need of a task that they do not run.

    Attributes:
        auto_class: Class of transformers that has the head.
        classes: Classes that an estimate assumes where no data says which; empty where the task has none.
        default_metric: The quality that designs are compared on where nothing is said.
    """

    auto_class: str
    classes: tuple[str, ...]
    default_metric: str


TASKS: Mapping[str, TaskFacts] = {
    "text-classification": TaskFacts(
        auto_class="AutoModelForSequenceClassification", classes=("0", "1"), default_metric="accuracy"
    ),
    "causal-lm": TaskFacts(auto_class="AutoModelForCausalLM", classes=(), default_metric="perplexity"),
}
"""Every task by name."""

DEFAULT_TASK = "text-classification"
