"""What a trained adapter says of new data: read as a search reads it, tokenized as in training, rows in their order."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from autopeft.errors import ArtifactError, DataError, ModelError
from autopeft.models.artifact import load, read_description
from autopeft.spec.design import Design
from autopeft.spec.messages import echo, listed, one_of
from autopeft.spec.task import DEFAULT_TASK, task_names
from autopeft.study.address import local_export
from autopeft.tasks.base import Answer, Question, Task, find_task
from autopeft.tasks.checks import by_role
from autopeft.tasks.columns import find_columns
from autopeft.tasks.data import read
from autopeft.tasks.schema import find_form
from autopeft.tasks.table import Table

OnProgress = Callable[[int, int], None]
"""Called with how many rows are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What an adapter was trained for, as its `autopeft.json` says.

    Attributes:
        labels: Class names in index order.
        max_length: Longest input in tokens.
        columns: Column by role in the data that it was trained on.
        design: What it is.
    """

    task: Task
    labels: tuple[str, ...]
    max_length: int
    columns: Mapping[str, str]
    design: Design

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "Purpose":
        """Read it from a description. Raises ArtifactError."""
        try:
            metadata = description["metadata"]
            return cls(
                task=find_task(metadata["task"]),
                labels=tuple(description["base_model"]["labels"]),
                max_length=int(metadata["max_length"]),
                columns=dict(metadata.get("columns") or {}),
                design=Design.from_dict(description["design"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"autopeft.json must name the task and the max_length of the training, but {error!r}; predict with "
                "the autopeft that wrote it, or export the adapter again"
            ) from error


def predict(
    adapter: str | Path | tuple[torch.nn.Module, Any],
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    probabilities: bool = False,
    max_new_tokens: int = 64,
    base_model: str | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> pd.DataFrame:
    """Predict with a trained adapter: the class of each text, or what a language model writes after each prompt.

    Inputs that are longer than those of the training are truncated as they were there, with a warning
    that says how many. A language model writes greedily, up to its end token.

    Args:
        adapter: An exported folder or the address of one, or the model and the tokenizer that `autopeft.load` returned.
        data: As in `autopeft.search`; labels are not needed. A language model goes on from `text` or `prompt`, or
            answers the last question in `messages`.
        columns: Column by role, such as `{"text": "review"}`, where it is neither the one of the training
            nor obvious.
        split: Which split, where the data has several.
        limit: Only the first rows.
        batch_size: Rows at a time; rows of about the same length go together.
        probabilities: Whether to add the probability of every class.
        max_new_tokens: How much a language model writes at most.
        base_model: Where the base model is now, if not where it was.
        device: Such as `cpu` or `cuda`; a GPU where there is one by default.
        on_progress: Called after each batch.

    Returns:
        The rows of the data in their order, with all their columns and their index as they were (of a csv or tsv file
        every value is the text that stands there), then `prediction` (the class, or the text that
        was written); of a class `probability` (the model's own), and `probability_<class>` where asked for.

    Raises:
        DataError: The data cannot be read, lacks a column, or has one that the answer would overwrite.
        ArtifactError: The folder is no export, is damaged, or the base model is another one.
        ModelError: The base model or the device cannot be used.
        StorageError: There is nothing at the address, or it cannot be reached.
    """
    with local_export(adapter) if isinstance(adapter, str | Path) else nullcontext(adapter) as found:
        description = _description(found)
        _check_task(description.get("metadata", {}))
        purpose = Purpose.of(description)
        table, rows = _rows(data, purpose, columns, split, limit)
        _check_new(table.rows, purpose.task.answer_columns(purpose.labels, probabilities=probabilities))
        opened = None if isinstance(found, Path) else found
        model, tokenizer = opened or load(str(found), base_model, device_map=_device(device))
    if tokenizer is None:
        raise ModelError(
            "text needs the tokenizer of the base model, but its folder has none; save one there with "
            "tokenizer.save_pretrained, or give base_model"
        )
    question = Question(
        rows=rows,
        model=model,
        tokenizer=tokenizer,
        labels=purpose.labels,
        max_length=purpose.max_length,
        n_added_tokens=sum(block.n_input_tokens for block in purpose.design.blocks),
        batch_size=batch_size,
        probabilities=probabilities,
        max_new_tokens=max_new_tokens,
        on_progress=lambda done: None if on_progress is None else on_progress(done, len(rows)),
    )
    with torch.inference_mode():
        answer = purpose.task.answer(question)
    for said in (*table.notes, *_truncation(answer, len(rows))):
        warnings.warn(said, stacklevel=2)
    return pd.concat([table.rows, answer.columns.set_axis(table.rows.index)], axis="columns")


def _description(adapter: str | Path | tuple[torch.nn.Module, Any]) -> Mapping[str, Any]:
    if isinstance(adapter, str | Path):
        return read_description(Path(adapter))
    known: Any = getattr(getattr(adapter[0], "config", None), "autopeft", None)
    if not isinstance(known, Mapping):
        raise ArtifactError(
            f"a model must be one that autopeft.load returned, but this {type(adapter[0]).__name__} is not; give the "
            "folder of the adapter"
        )
    return known


def _check_task(metadata: Mapping[str, Any]) -> None:
    """Refuse an adapter of a task that is not installed here."""
    name = metadata.get("task", DEFAULT_TASK)
    if name not in task_names():
        package = metadata.get("task_package", "what brings it")
        raise ArtifactError(
            f"this adapter needs the task {name!r}, which autopeft does not know here; run pip install {package}, if "
            "you trust it"
        )


def _rows(
    data: Any, purpose: Purpose, columns: Mapping[str, str] | None, split: str | None, limit: int | None
) -> tuple[Table, pd.DataFrame]:
    """Return the data as it is, and its checked inputs with columns named by role."""
    parts = read(data)
    if split is None and len(parts) > 1:
        raise DataError(f"one split is predicted at a time, but the data has {listed(parts)}; name one as split")
    name = split or next(iter(parts))
    if name not in parts:
        raise DataError(f"split {one_of(parts, name)}")
    if limit is not None and limit < 1:
        raise DataError(f"limit >= 1 must hold, but got {limit}")
    table = replace(parts[name], rows=parts[name].rows.head(limit) if limit else parts[name].rows)
    header = [str(column) for column in table.rows.columns]
    chosen = _find_inputs(header, purpose, columns)
    return table, by_role(table, chosen, split=name, answered=False)


def _find_inputs(header: list[str], purpose: Purpose, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the column of each input: as given, else as in training, else as it is obvious."""
    task = purpose.task
    targets = (*task.targets, "group")
    forms = [tuple(role for role in form if role not in targets) for form in task.forms]
    optional = [role for role in task.optional if role not in targets]
    trained = {role: column for role, column in purpose.columns.items() if role not in targets}
    known = {role: column for role, column in trained.items() if column in header}
    form = find_form(header, columns or known, forms=forms, optional=optional)
    required = [role for role in (*form, *optional) if role in trained] or list(form)
    given = {role: column for role, column in known.items() if role in required} | dict(columns or {})
    return find_columns(header, given, required=required, optional=[] if trained else optional)


def _check_new(rows: pd.DataFrame, new: Sequence[str]) -> None:
    """Refuse data with a column that the answer would overwrite, before the model is loaded."""
    taken = [column for column in new if column in rows]
    if taken:
        raise DataError(f"predictions go to new columns, but the data has {echo(taken[0])}; rename or drop that one")


def _device(wanted: str | None) -> str:
    if wanted is None or wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise ModelError(f"device must be such as cpu, cuda or cuda:1, but got {wanted!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device must be there, but torch sees no CUDA device for {wanted!r}; take cpu")
    return wanted


def _truncation(answer: Answer, n_rows: int) -> list[str]:
    """Say what truncation did; nothing where there was none."""
    if not answer.n_truncated:
        return []
    cut = f"{answer.n_truncated} of {n_rows} inputs were truncated to {answer.n_read} tokens, as in training"
    return [f"{cut}; the longest has {answer.longest}"]
