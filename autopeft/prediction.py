"""What a trained adapter says of new data: read as a search reads it, tokenized as in training, rows in their order."""

import itertools
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import ArtifactError, DataError, ModelError
from autopeft.models.artifact import load, read_description
from autopeft.models.padding import Padding
from autopeft.spec.design import Design
from autopeft.spec.messages import echo, listed, one_of
from autopeft.study.address import local_export
from autopeft.tasks.base import Task, find_task
from autopeft.tasks.checks import by_role
from autopeft.tasks.columns import find_columns
from autopeft.tasks.data import read
from autopeft.tasks.forms import find_form
from autopeft.tasks.sequences import prompts_of
from autopeft.tasks.table import Table
from autopeft.tasks.vocabulary import check_tokens, fit
from autopeft.training.batches import collate
from autopeft.training.evaluate import batches_by_length
from autopeft.training.sampling import end_tokens, go_on

OnProgress = Callable[[int, int], None]
"""Called with how many rows are done, and how many there are."""
PROBABILITY_DIGITS = 6
"""Decimals that a probability is rounded to: more would be noise of the arithmetic."""
TARGETS = ("label", "completion", "group")
"""Column roles that only training and scoring need."""


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
        purpose = Purpose.of(_description(found))
        table, rows = _rows(data, purpose, columns, split, limit)
        _check_new(table.rows, [f"probability_{label}" for label in purpose.labels] if probabilities else [])
        opened = None if isinstance(found, Path) else found
        model, tokenizer = opened or load(str(found), base_model, device_map=_device(device))
    if tokenizer is None:
        raise ModelError(
            "text needs the tokenizer of the base model, but its folder has none; save one there with "
            "tokenizer.save_pretrained, or give base_model"
        )
    work = _Work(model=model, tokenizer=tokenizer, purpose=purpose, batch_size=batch_size, on_progress=on_progress)
    with torch.inference_mode():
        answers, note = _classify(work, rows, probabilities) if purpose.labels else _write(work, rows, max_new_tokens)
    for said in (*table.notes, *([note] if note else [])):
        warnings.warn(said, stacklevel=2)
    return pd.concat([table.rows, answers.set_axis(table.rows.index)], axis="columns")


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
    forms = [tuple(role for role in form if role not in TARGETS) for form in purpose.task.forms]
    optional = [role for role in purpose.task.optional if role not in TARGETS]
    trained = {role: column for role, column in purpose.columns.items() if role not in TARGETS}
    known = {role: column for role, column in trained.items() if column in header}
    form = find_form(header, columns or known, forms=forms, optional=optional)
    required = [role for role in (*form, *optional) if role in trained] or list(form)
    given = {role: column for role, column in known.items() if role in required} | dict(columns or {})
    return find_columns(header, given, required=required, optional=[] if trained else optional)


def _check_new(rows: pd.DataFrame, more: list[str]) -> None:
    """Refuse data with a column that the answer would overwrite, before the model is loaded."""
    taken = [column for column in ("prediction", "probability", *more) if column in rows]
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What both kinds of prediction need."""

    model: Any
    tokenizer: Any
    purpose: Purpose
    batch_size: int
    on_progress: OnProgress | None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def report(self, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total)

    def note(self, n_truncated: int, total: int, kept: int, longest: int) -> str:
        """Say what truncation did; nothing where there was none."""
        if not n_truncated:
            return ""
        cut = f"{n_truncated} of {total} inputs were truncated to {kept} tokens, as in training"
        return f"{cut}; the longest has {longest}"


def _classify(work: _Work, rows: pd.DataFrame, probabilities: bool) -> tuple[pd.DataFrame, str]:
    """Return the answer as columns, and what truncation did."""
    purpose, tokenizer = work.purpose, work.tokenizer
    encoded = purpose.task.encode(rows, tokenizer, max_length=purpose.max_length, labels=purpose.labels)
    encoded = replace(encoded, split=fit(encoded.split, tokenizer, work.model.config))
    padding = Padding.of(tokenizer)
    if padding is None:
        raise ModelError("the tokenizer must have a padding or end token, but has neither; add one to it")
    shares, done = np.empty((len(rows), len(purpose.labels))), 0
    for indices, n_tokens in batches_by_length(encoded.split, work.batch_size, purpose.max_length):
        inputs = collate(encoded.split, indices, n_tokens, padding, work.device)
        logits = work.model(**inputs.forward).logits
        shares[indices] = logits.double().softmax(dim=-1).cpu().numpy().round(PROBABILITY_DIGITS)
        done += len(indices)
        work.report(done, len(rows))
    if not np.isfinite(shares).all():
        raise ArtifactError("a trained model's outputs must be finite, but some are not; was this adapter trained?")
    classes = np.asarray(purpose.labels, dtype=object)[shares.argmax(axis=1)]
    answers: dict[str, Any] = {"prediction": classes, "probability": shares.max(axis=1)}
    if probabilities:
        answers |= {f"probability_{label}": shares[:, index] for index, label in enumerate(purpose.labels)}
    return pd.DataFrame(answers), work.note(encoded.n_truncated, len(rows), purpose.max_length, encoded.longest)


def _write(work: _Work, rows: pd.DataFrame, max_new_tokens: int) -> tuple[pd.DataFrame, str]:
    """Return what a language model writes, and what truncation did; prompts of about the same length go together."""
    tokenizer, ends = work.tokenizer, set(end_tokens(work.model, work.tokenizer))
    room = _room(work.model, work.purpose, max_new_tokens)
    asked = prompts_of(rows, tokenizer)
    check_tokens(np.concatenate(asked), tokenizer, work.model.config)
    prompts = [_last(prompt, room, begin=tokenizer.bos_token_id) for prompt in asked]
    answers = go_on(
        work.model,
        prompts,
        tokenizer,
        n_new=max_new_tokens,
        device=work.device,
        batch_size=work.batch_size,
        on_progress=lambda done: work.report(done, len(prompts)),
    )
    kept = (list(itertools.takewhile(lambda token: token not in ends, answer)) for answer in answers)
    texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in kept]
    n_truncated = sum(len(prompt) > room for prompt in asked)
    return pd.DataFrame({"prediction": texts}), work.note(n_truncated, len(asked), room, max(map(len, asked)))


def _room(model: Any, purpose: Purpose, max_new_tokens: int) -> int:
    """Return how long a prompt may be: as in training, and such that the answer has room in the model's positions."""
    if max_new_tokens < 1:
        raise DataError(f"max_new_tokens >= 1 must hold, but got {max_new_tokens}")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    before = sum(block.n_input_tokens for block in purpose.design.blocks)
    room = purpose.max_length if positions is None else min(purpose.max_length, positions - before - max_new_tokens)
    if room < 1:
        raise DataError(
            f"max_new_tokens < positions of the model must hold, but got max_new_tokens={max_new_tokens}, "
            f"positions={positions}" + (f", of which the adapter's prompt takes {before}" if before else "")
        )
    return room


def _last(prompt: NDArray[np.int32], n_tokens: int, *, begin: int | None) -> NDArray[np.int32]:
    """Return the end of a prompt, after the token that every sequence begins with, where there is one."""
    if len(prompt) <= n_tokens:
        return prompt
    first = prompt[:1] if begin is not None and prompt[0] == begin and n_tokens > 1 else prompt[:0]
    return np.concatenate([first, prompt[len(prompt) - n_tokens + len(first) :]])
