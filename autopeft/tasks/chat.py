"""Conversations as a tokenizer's chat template writes them, and which characters of them the assistant says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd
from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from autopeft.errors import DataError
from autopeft.spec.messages import first_line
from autopeft.tasks.conversations import Turn, is_learned

TODAY = datetime(2024, 7, 26)
"""What a chat template that writes the date is told: an example is the same in every run and every process."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_CLOCK = re.compile(r"\bstrftime_now\s*\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)")
_MARK = "~~90417~{}~~"
"""Put behind what is said, to see whether it is written; without letters, which a template may change."""

_NOT_SAID = {"role", "content", "weight"}
"""Fields that are not looked for one by one: the first two are always written, the last never."""
_LINKS = {"tool_call_id", "name"}
"""Fields by which a tool's answer names its call, which stands before it; many templates go by the order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversation:
    """One row.

    Attributes:
        place: Where it is in the data, for messages.
        tools: Tools that the template is to offer.
    """

    turns: list[Turn]
    place: str
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatText:
    """A conversation as text.

    Attributes:
        targets: Start and stop of each stretch of characters that is to be learned.
    """

    text: str
    targets: list[tuple[int, int]]


class ChatTemplate:
    """The chat template of a tokenizer, as transformers renders it, with a clock that stands still."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "columns.messages needs a tokenizer with a chat template, but this one has none; take an "
                "instruction-tuned model, save a chat_template.jinja beside the tokenizer, or give columns.prompt and "
                "columns.completion"
            )
        self._tokenizer = tokenizer

    def note(self) -> str | None:
        """Say what people should know of the template; None where there is nothing."""
        if "strftime_now" not in self._source(tools=None):
            return None
        return (
            f"the chat template writes the date: {TODAY:%Y-%m-%d} stands for it in every example, so that all runs see "
            f"the same data"
        )

    def prompt(self, conversation: Conversation) -> str:
        """Return what the assistant is to answer: the conversation, and how the template begins an answer."""
        self._check_written(conversation, self._render(conversation, conversation.turns)[0])
        return self._render(conversation, conversation.turns, add_generation_prompt=True)[0]

    def write(self, conversation: Conversation) -> ChatText:
        """Return the whole conversation; the assistant's turns of it are targets, but for those of weight 0.

        What a turn adds is what the template marks as `generation`. Where it marks nothing, it is what the template
        adds to the conversation before it, its end mark included.

        Raises:
            DataError: The template refuses the conversation, leaves out a part of it, or writes it so that what the
                assistant says cannot be told apart.
        """
        text, marked = self._render(conversation, conversation.turns)
        is_marked = bool(_GENERATION.search(self._source(conversation.tools)))
        targets = self._marked(conversation, marked) if is_marked else self._added(conversation, text)
        self._check_written(conversation, text)
        return ChatText(text=text, targets=targets)

    def _marked(self, conversation: Conversation, marked: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        answers = [turn for turn in conversation.turns if turn["role"] == "assistant"]
        if all(is_learned(turn) for turn in answers):
            return list(marked)
        if len(marked) != len(answers):
            raise DataError(
                f"a chat template must mark each assistant's turn once as generation, for weights to be honoured, but "
                f"in {conversation.place} it marks {len(marked)} of {len(answers)}; leave out the weights, or the turns"
            )
        return [span for span, turn in zip(marked, answers, strict=True) if is_learned(turn)]

    def _added(self, conversation: Conversation, text: str) -> list[tuple[int, int]]:
        turns, targets = conversation.turns, []
        for number, turn in enumerate(turns):
            if not is_learned(turn):
                continue
            before, _ = self._render(conversation, turns[:number], add_generation_prompt=True)
            after = self._render(conversation, turns[: number + 1])[0] if number + 1 < len(turns) else text
            if not (text.startswith(after) and after.startswith(before) and len(after) > len(before)):
                if self._render(conversation, turns)[0] != text:
                    raise DataError(
                        f"a chat template must write the same each time, but this tokenizer's does not for "
                        f"{conversation.place}; take out what is random in it"
                    )
                raise DataError(
                    f"a chat template must write a conversation so that it begins with its own earlier turns, but this "
                    f"tokenizer's does not at turn {number + 1} of {conversation.place}, so that what the assistant "
                    f"says cannot be told apart; give every assistant's turn but the last the weight 0 (and a row of "
                    f"its own, where it ends the conversation), or give columns.prompt and columns.completion"
                )
            targets.append((len(before), len(after)))
        return targets

    def _check_written(self, conversation: Conversation, text: str) -> None:
        """Refuse what the template leaves out: the content of a turn, another field of it, the tools."""
        turns, place = conversation.turns, conversation.place
        spoken = {number: _MARK.format(number) for number, turn in enumerate(turns) if turn.get("content", "").strip()}
        marked = [
            {**turn, "content": turn["content"] + spoken[number]} if number in spoken else turn
            for number, turn in enumerate(turns)
        ]
        written = self._try(conversation, marked)
        for number, mark in spoken.items():
            if written is not None and mark not in written:
                what = f"the content of turn {number + 1} ({turns[number]['role']})"
                raise DataError(_left_out(what, place, "drop that turn, or say it in another one"))
        for number, turn in enumerate(turns):
            for name in sorted(turn.keys() - _NOT_SAID - (_LINKS if turn["role"] == "tool" else set())):
                less = [*turns[:number], {k: v for k, v in turn.items() if k != name}, *turns[number + 1 :]]
                if self._try(conversation, less) == text:
                    raise DataError(_left_out(f"{name} of turn {number + 1} ({turn['role']})", place, "remove it"))
        if conversation.tools and self._try(replace(conversation, tools=None), turns) == text:
            raise DataError(_left_out("the tools", place, "remove them, or take a model that is made for tools"))

    def _try(self, conversation: Conversation, turns: list[Turn]) -> str | None:
        """Return the text, or None where the template refuses these turns: then it looks at what was changed."""
        try:
            return self._render(conversation, turns)[0]
        except DataError:
            return None

    def _source(self, tools: list[dict[str, Any]] | None) -> str:
        try:
            source: str = self._tokenizer.get_chat_template(None, tools)
        except ValueError as error:  # several templates, none of which is the default
            raise DataError(f"the tokenizer must have a default chat template: {first_line(error)}") from None
        return source

    def _render(
        self, conversation: Conversation, turns: list[Turn], *, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the stretches of it that the template marks as generation."""
        source = self._source(conversation.tools)
        said = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]
        try:
            texts, marked = render_jinja_template(
                conversations=[said],
                tools=conversation.tools,
                chat_template=_stop_clock(source),
                return_assistant_tokens_mask=bool(_GENERATION.search(source)),
                add_generation_prompt=add_generation_prompt,
                **self._tokenizer.special_tokens_map,
            )
        except TemplateSyntaxError as error:
            raise DataError(
                f"a chat template must be valid, but this tokenizer's is not: {first_line(error)}; correct it, or take "
                f"that of the model's authors"
            ) from None
        except Exception as error:  # templates raise what they like
            raise DataError(
                f"the chat template must take every conversation, but it refuses {conversation.place}: "
                f"{first_line(error)}; change the conversation, or drop the row"
            ) from None
        (text,) = texts
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text must be valid Unicode, but {conversation.place} has {text[error.start]!a}, a half of a "
                f"surrogate pair, after {text[max(0, error.start - 20) : error.start]!r}; correct the text or drop "
                f"the row"
            ) from None
        return text, list(marked[0]) if marked else []


def chat_notes(tables: Mapping[str, pd.DataFrame], tokenizer: Any) -> list[str]:
    """Return what people should know of the chat template, where the data has conversations."""
    note = ChatTemplate(tokenizer).note() if "messages" in tables["train"] else None
    return [note] if note else []


def _left_out(what: str, place: str, way: str) -> str:
    return (
        f"a chat template must write all that a conversation holds, but this tokenizer's leaves out {what} of "
        f"{place}; {way}"
    )


def _stop_clock(source: str) -> str:
    """Return a template in which a macro stands before the clock of transformers."""
    if "strftime_now" not in source:
        return source
    formats = dict.fromkeys(match["format"] for match in _CLOCK.finditer(source))
    cases = "".join(f"{{% elif format == {each!r} %}}{TODAY.strftime(each)}" for each in formats)
    macro = f"{{% macro strftime_now(format) %}}{{% if false %}}{cases}{{% else %}}{TODAY:%Y-%m-%d}{{% endif %}}"
    return f"{macro}{{% endmacro %}}\n{source}"  # the newline goes: transformers trims the one after a block
