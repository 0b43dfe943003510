"""From a data set as users have it to tokenized splits, with every mistake found before a model is trained."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModel

from autopeft.errors import DataError, ModelError, StudyError
from autopeft.models.loading import read_tokenizer
from autopeft.models.model_files import locate
from autopeft.models.padding import pad_token_id
from autopeft.models.summary import n_positions
from autopeft.spec.messages import first_line, listed, one_of
from autopeft.spec.training import Splits, Training
from autopeft.tasks.base import Encoded, PreparedData, Task, find_task, fingerprint
from autopeft.tasks.checks import by_role
from autopeft.tasks.columns import TEXT_ROLES, find_columns
from autopeft.tasks.data import read
from autopeft.tasks.schema import find_form
from autopeft.tasks.splits import NAMES, find_sources, make_splits
from autopeft.tasks.vocabulary import check_tokens, fit, unknown_tokens

DEFAULT_MAX_LENGTH = 512
"""Tokens; used where the study gives none and the model allows as many."""
N_TWICE = 64
"""Examples that are tokenized twice, to see whether the same comes."""


def prepare(
    data: Any,
    *,
    model: str,
    task: str = "text-classification",
    metric: str | None = None,
    columns: Mapping[str, str] | None = None,
    splits: Splits | None = None,
    training: Training | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreparedData:
    """Read, check, split and tokenize a data set for a model.

    Args:
        data: See `autopeft.tasks.data.read`.
        model: Hub id or folder whose tokenizer is used.
        task: See `autopeft.tasks.base.find_task`.
        metric: What designs are compared on; None takes the task's default.
        columns: Column by role (`text`, `text_pair`, `label`, `group`), where it cannot be guessed.
        splits: Where the splits come from; None takes what the data has and makes the rest.
        training: Gives `max_length`.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether to run Python code that the model brings.

    Raises:
        DataError: The data cannot be read or used as asked; the message names the key, the value and the way out.
        ModelError: The model has no configuration or no tokenizer, or cannot read what its tokenizer writes.
        StudyError: There is no such task or metric.
    """
    found = find_task(task)
    metric = _metric(found, metric)
    tables, chosen, names, notes = _split(data, found, columns, splits or Splits())
    folder = locate(model, revision=revision, trust_remote_code=trust_remote_code, needs_weights=False)
    tokenizer = _load_tokenizer(model, folder, trust_remote_code=trust_remote_code)
    bare = _bare_model(model, folder, trust_remote_code=trust_remote_code)
    max_length = _max_length((training or Training()).max_length, _position_limit(bare, tokenizer))
    labels, padding = found.labels(tables, names), pad_token_id(tokenizer)
    if padding is None:
        raise DataError(f"the tokenizer of {model!r} must have a padding or end token, but has neither; add one to it")
    check_tokens(np.array([padding]), tokenizer, bare.config)

    def encode(table: pd.DataFrame) -> Encoded:
        made = found.encode(table, tokenizer, max_length=max_length, labels=labels)
        return replace(made, split=fit(made.split, tokenizer, bare.config))

    _check_repeatable(encode, tables["train"])
    encoded = {role: encode(table) for role, table in tables.items()}
    tokenized = {role: part.split for role, part in encoded.items()}
    unknown = unknown_tokens(list(tokenized.values()), tokenizer)
    return PreparedData(
        task=found.name,
        metric=metric,
        labels=labels,
        train=tokenized["train"],
        validation=tokenized["validation"],
        test=tokenized["test"],
        fingerprint=fingerprint([tokenized[role] for role in NAMES], task=found.name, labels=labels, pad=padding),
        notes=(
            *notes,
            *found.notes(tables, tokenizer, labels),
            *unknown,
            *_overlap(tables),
            *_lengths(encoded, max_length),
        ),
        max_length=max_length,
        columns=chosen,
    )


def _metric(task: Task, metric: str | None) -> str:
    if metric is None:
        return task.default_metric
    if metric not in task.metrics:
        raise StudyError(f"metric of {task.name} {one_of(tuple(task.metrics), metric)}")
    return metric


def _split(
    data: Any, task: Task, columns: Mapping[str, str] | None, splits: Splits
) -> tuple[dict[str, pd.DataFrame], dict[str, str], tuple[str, ...] | None, list[str]]:
    """Return checked tables, the column of each role, the classes that the data declares, how splits were made."""
    parts = read(data)
    sources = find_sources(list(parts), splits)
    header = [str(column) for column in parts[sources.pool].rows.columns]
    form = find_form(header, columns, forms=task.forms, optional=task.optional)
    implied = {other: other for role in form for other in task.implied.get(role, ()) if other in header}
    columns = {**implied, **(columns or {})}
    chosen = find_columns(header, columns, required=form, optional=task.optional)
    pool = by_role(parts[sources.pool], chosen, split=sources.pool)
    rows = make_splits(pool, sources.made, seed=splits.seed)
    tables = {role: pool.iloc[indices] for role, indices in rows.items()}
    needed = {role: column for role, column in chosen.items() if role != "group"}
    for role, name in sources.given.items():
        tables[role] = by_role(parts[name], needed, split=name, instead=f"splits.{role}: 0.15")
    notes = [f"columns: {', '.join(f'{role} = {column}' for role, column in chosen.items())}"]
    if len(rows) > 1:
        made = ", ".join(f"{role} {len(rows[role]):,}" for role in NAMES if role in rows)
        how = "stratified by label" if "label" in chosen else "at random"
        how = f"no {chosen['group']} in two splits" if "group" in chosen else how
        notes.append(f"splits were made from {len(pool):,} rows, {how}, seed {splits.seed}: {made}")
    given = ", ".join(f"{role} from {sources.given[role]!r}" for role in NAMES if role in sources.given)
    if given:
        notes.append(f"splits of the data itself: {given}")
    unused = [name for name in parts if name not in (sources.pool, *sources.given.values())]
    if unused:
        notes.append(f"splits of the data that are not used: {listed(unused)}")
    notes += dict.fromkeys(note for name in parts if name not in unused for note in parts[name].notes)
    declared = parts[sources.pool].names.get(chosen.get("label", ""))
    return {role: tables[role] for role in NAMES}, chosen, declared, notes


def _overlap(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say how many held-out texts the training split has too: their scores flatter the design."""
    columns = [column for column in (*TEXT_ROLES, "messages") if column in tables["train"]]
    texts = {
        role: [repr(row) for row in zip(*(table[column] for column in columns), strict=True)]
        for role, table in tables.items()
    }
    seen = set(texts["train"])
    notes = []
    for role in ("validation", "test"):
        shared = sum(text in seen for text in texts[role])
        if shared:
            notes.append(f"{shared} of {len(texts[role])} {role} texts occur in training too")
    return notes


def _lengths(encoded: Mapping[str, Encoded], max_length: int) -> list[str]:
    """Say what the limit on the length did."""
    n_truncated, n_cut = (sum(getattr(part, name) for part in encoded.values()) for name in ("n_truncated", "n_cut"))
    n_examples = sum(len(part.split) for part in encoded.values())
    longest = max(part.longest for part in encoded.values())
    share = f"{n_truncated / n_examples:.1%}"
    notes = [f"{n_truncated} inputs ({share}) were truncated to {max_length} tokens; the longest has {longest}"]
    if n_cut:
        notes = [
            f"{n_cut} texts were longer than {max_length} tokens and cut into several examples, {n_examples} in all; "
            f"nothing is lost; the longest has {longest}"
        ]
    return notes


def _check_repeatable(encode: Callable[[pd.DataFrame], Encoded], table: pd.DataFrame) -> None:
    """Refuse tokenizers with dropout, and chat templates that write something random: every run would learn others."""
    first = table.head(N_TWICE)
    if fingerprint([encode(first).split]) != fingerprint([encode(first).split]):
        raise ModelError(
            "an example must become the same tokens each time, but here it does not; switch off what is random in the "
            "tokenizer (dropout in tokenizer.json, sampling) or in its chat template"
        )


def _load_tokenizer(model: str, folder: Path, *, trust_remote_code: bool) -> Any:
    tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        raise ModelError(
            f"the model must have a tokenizer, but the folder of {model!r} has none that its model type reads; save "
            f"one there with tokenizer.save_pretrained"
        )
    return tokenizer


def _bare_model(model: str, folder: Path, *, trust_remote_code: bool) -> Any:
    """Return the model without a head and without storage."""
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # what a wrong configuration leads to is no list of types
        raise ModelError(
            f"config.json must describe a model that transformers knows, but that of {model!r} does not: "
            f"{first_line(error)}; check it, or install a newer transformers"
        ) from error


def _position_limit(bare: Any, tokenizer: Any) -> int:
    """Return the longest input that tokenizer and model take; tokenizers without a limit say about 1e30."""
    positions = n_positions(bare)
    return min(int(tokenizer.model_max_length), positions if positions and positions > 0 else 2**31)


def _max_length(wanted: int | None, limit: int) -> int:
    if wanted is None:
        return min(limit, DEFAULT_MAX_LENGTH)
    if wanted > limit:
        raise DataError(f"training.max_length <= {limit} must hold for this model, but got {wanted}; lower it")
    return wanted
