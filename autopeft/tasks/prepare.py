"""From a data set as users have it to tokenized splits, with every mistake found before a model is trained."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from autopeft.errors import DataError, ModelError, StudyError
from autopeft.models.summary import n_positions
from autopeft.spec.messages import first_line, one_of
from autopeft.spec.training import Splits, Training
from autopeft.tasks.base import Encoded, PreparedData, Task, find_task, fingerprint
from autopeft.tasks.data import TEXT_ROLES, by_role, find_columns, read
from autopeft.tasks.forms import find_form
from autopeft.tasks.splits import NAMES, find_sources, make_splits

DEFAULT_MAX_LENGTH = 512
"""Tokens; used where the study gives none and the model allows as many."""


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
        ModelError: The model has no configuration.
        StudyError: There is no such task or metric.
    """
    found = find_task(task)
    metric = _metric(found, metric)
    tables, chosen, names, notes = _split(data, found, columns, splits or Splits())
    tokenizer = _load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    limit = _position_limit(model, tokenizer, revision=revision, trust_remote_code=trust_remote_code)
    max_length = _max_length((training or Training()).max_length, limit)
    labels = found.labels(tables, names)
    encoded = {
        role: found.encode(table, tokenizer, max_length=max_length, labels=labels) for role, table in tables.items()
    }
    tokenized = {role: part.split for role, part in encoded.items()}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise DataError(f"the tokenizer of {model!r} must have a padding or end token, but has neither; add one to it")
    return PreparedData(
        task=found.name,
        metric=metric,
        labels=labels,
        train=tokenized["train"],
        validation=tokenized["validation"],
        test=tokenized["test"],
        pad_token_id=int(pad),
        # A decoder counts positions from the left: padding there would move them.
        padding_side="right" if tokenized["train"].per_token else tokenizer.padding_side,
        fingerprint=fingerprint([tokenized[role] for role in NAMES], task=found.name, labels=labels, pad=int(pad)),
        notes=(*notes, *_overlap(tables), *_lengths(encoded, max_length)),
        max_length=max_length,
        columns=chosen,
    )


def _metric(task: Task, metric: str | None) -> str:
    if metric is None:
        return task.default_metric
    if metric not in task.metrics:
        raise StudyError(f"metric of {task.name} {one_of(task.metrics, metric)}")
    return metric


def _split(
    data: Any, task: Task, columns: Mapping[str, str] | None, splits: Splits
) -> tuple[dict[str, pd.DataFrame], dict[str, str], tuple[str, ...] | None, list[str]]:
    """Return checked tables, the column of each role, the classes that the data declares, how splits were made."""
    parts = read(data)
    sources = find_sources(list(parts), splits)
    header = [str(column) for column in parts[sources.pool].rows.columns]
    form = find_form(header, columns, forms=task.forms, optional=task.optional)
    chosen = find_columns(header, columns, required=form, optional=task.optional)
    pool = by_role(parts[sources.pool], chosen, split=sources.pool)
    rows = make_splits(pool, sources.made, seed=splits.seed)
    tables = {role: pool.iloc[indices] for role, indices in rows.items()}
    needed = {role: column for role, column in chosen.items() if role != "group"}
    for role, name in sources.given.items():
        tables[role] = by_role(parts[name], needed, split=name)
    notes = [f"columns: {', '.join(f'{role} = {column}' for role, column in chosen.items())}"]
    if len(rows) > 1:
        made = ", ".join(f"{role} {len(rows[role]):,}" for role in NAMES if role in rows)
        how = "stratified by label" if "label" in chosen else "at random"
        how = f"no {chosen['group']} in two splits" if "group" in chosen else how
        notes.append(f"splits were made from {len(pool):,} rows, {how}, seed {splits.seed}: {made}")
    given = ", ".join(f"{role} from {sources.given[role]!r}" for role in NAMES if role in sources.given)
    if given:
        notes.append(f"splits of the data itself: {given}")
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


def _load_tokenizer(model: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # anything from a missing file to a missing optional package
        reason = first_line(error)
        raise DataError(
            f"model must have a tokenizer, but none could be loaded from {model!r} ({reason}); save one beside the "
            f"weights, or check the name"
        ) from None


def _position_limit(model: str, tokenizer: Any, *, revision: str | None, trust_remote_code: bool) -> int:
    """Return the longest input that tokenizer and model take; tokenizers without a limit say about 1e30."""
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{model!r} must have a configuration, but none could be read: {reason}; check the name"
        ) from None
    with torch.device("meta"):
        bare = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    positions = n_positions(bare)
    return min(int(tokenizer.model_max_length), positions if positions and positions > 0 else 2**31)


def _max_length(wanted: int | None, limit: int) -> int:
    if wanted is None:
        return min(limit, DEFAULT_MAX_LENGTH)
    if wanted > limit:
        raise DataError(f"training.max_length <= {limit} must hold for this model, but got {wanted}; lower it")
    return wanted
