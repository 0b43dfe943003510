"""What is learned of a conversation: against the tokenizer's own answers, and what templates do to it."""

import datetime
from typing import Any

import pandas as pd
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from autopeft.errors import DataError
from autopeft.models.losses import IGNORED
from autopeft.tasks.chat import TODAY, ChatTemplate
from autopeft.tasks.conversations import read_turns
from autopeft.tasks.sequences import TargetSequence, from_completions, from_conversations, from_texts, prompts_of

PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen split texts: line ends stay together, a blank goes with the word after it."""
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + OPENING
BLANK = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] }}{% else %}"
    "{{ ' ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT: ' }}{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{{ 'TOOLS ' + (tools | tojson) + '\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}{% if m.tool_calls %}"
    "{{ ' CALL ' + (m.tool_calls | tojson) }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + OPENING
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}" + OPENING
)
LAST_THINKS = CHATML.replace(
    "m['content'] +", "('<think>' if loop.last and m['role'] == 'assistant' else '') + m['content'] +"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def says(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """Return a byte-level tokenizer that knows ` Sure` and two line ends as one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\n\n", " Sure", "assistant", "user"] * 50, trainer)
    return tokenizer


def made(words: Tokenizer, template: Any = CHATML) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", chat_template=template)


def table(*rows: Any, tools: list[Any] | None = None) -> pd.DataFrame:
    turns = [read_turns(row, place="x") for row in rows]
    return pd.DataFrame({"messages": turns} | ({} if tools is None else {"tools": tools})).rename_axis("train")


def targets(sequence: TargetSequence, tokenizer: Any) -> str:
    text: str = tokenizer.decode(sequence.labels[sequence.labels != IGNORED])
    return text


@pytest.mark.parametrize("answer", ["Sure", "\nSure", "\n\nSure\n", " Sure", "4"])
@pytest.mark.parametrize("template", [CHATML, BLANK, MARKED])
def test_exactly_the_answer_is_learned_and_predictions_go_on_from_what_stands_before(
    words: Tokenizer, template: str, answer: str
) -> None:
    tokenizer = made(words, template)
    rows = table([user("hi"), says(answer)], [user("a"), says("b"), user("hi"), says(answer)])
    end = {CHATML: "<|im_end|>\n", BLANK: "<|end|>", MARKED: "<|im_end|>"}[template]
    sequences = from_conversations(rows, tokenizer)
    assert [targets(each, tokenizer) for each in sequences] == [answer + end, f"b{end}{answer}{end}"]
    prompts = prompts_of(rows, tokenizer)
    for sequence, prompt, turns in zip(sequences, prompts, rows["messages"], strict=True):
        assert tokenizer.decode(sequence.ids) == tokenizer.apply_chat_template(turns, tokenize=False)
        assert sequence.ids[: len(prompt)].tolist() == prompt.tolist()
        assert sequence.labels[len(prompt)] != IGNORED


def test_a_text_that_does_not_merge_is_tokenized_as_a_whole(words: Tokenizer) -> None:
    tokenizer = made(words)
    turns = [user("hi you"), says("Sure I do")]
    (sequence,) = from_conversations(table(turns), tokenizer)
    assert sequence.ids.tolist() == tokenizer.apply_chat_template(turns)["input_ids"]


@pytest.mark.parametrize("prompt", ["Answer: ", "Answer:", "Answer\n"])
def test_a_completion_begins_where_its_prompt_ends(words: Tokenizer, prompt: str) -> None:
    tokenizer = made(words)
    (sequence,) = from_completions([prompt], ["Sure"], tokenizer)
    assert tokenizer.decode(sequence.ids) == f"{prompt}Sure<|end|>"
    assert targets(sequence, tokenizer) == "Sure<|end|>"
    assert sequence.ids[: (sequence.labels == IGNORED).sum()].tolist() == tokenizer(prompt)["input_ids"]


def test_a_completion_has_no_blank_that_the_text_has_not() -> None:
    """Tokenizers of the kind of Llama 2 put a blank before every text, and so before what follows a prompt."""
    alphabet = {piece: index for index, piece in enumerate(["<unk>", "</s>", "▁", "▁a", "b", "▁b", "ab", "\n"])}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split(Regex("▁?[ab]|▁|\n"), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    (joined,) = from_completions(["a"], ["b"], fast)
    assert fast.convert_ids_to_tokens(joined.ids) == ["▁a", "b", "</s>"]
    (merging,) = from_completions(["a "], ["b"], fast)
    assert fast.convert_ids_to_tokens(merging.ids) == ["▁a", "▁", "b", "</s>"]


def test_a_begin_token_that_a_text_has_itself_is_not_doubled(words: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = made(Tokenizer.from_str(words.to_str()))
    tokenizer.bos_token = "<|im_start|>"
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    plain, written = from_texts(["hi", "<|im_start|>hi"], tokenizer)
    assert plain.ids.tolist() == written.ids.tolist()
    assert plain.ids.tolist().count(begin) == 1


def test_the_weight_zero_makes_an_answer_no_target(words: Tokenizer) -> None:
    turns = [user("2+2?"), says("five", weight=0), user("no"), says("four", weight=1)]
    for template, end in ((CHATML, "<|im_end|>\n"), (MARKED, "<|im_end|>")):
        tokenizer = made(words, template)
        (sequence,) = from_conversations(table(turns), tokenizer)
        assert targets(sequence, tokenizer) == f"four{end}"
        assert "five" in tokenizer.decode(sequence.ids)
        assert "weight" not in tokenizer.decode(sequence.ids)


def test_a_template_that_rewrites_earlier_answers_learns_the_last_one(words: Tokenizer) -> None:
    """As the message says: each answer in a row of its own, those before it with the weight 0."""
    tokenizer = made(words, LAST_THINKS)
    with pytest.raises(DataError, match=r"earlier turns, .* turn 2 of row 1 .*of split 'train'.*the weight 0"):
        from_conversations(table([user("a"), says("b"), user("c"), says("d")]), tokenizer)
    rows = table([user("a"), says("b")], [user("a"), says("b", weight=0), user("c"), says("d")])
    found = [targets(each, tokenizer) for each in from_conversations(rows, tokenizer)]
    assert found == ["<think>b<|im_end|>\n", "<think>d<|im_end|>\n"]


def test_calls_and_tools_are_learned_as_the_template_writes_them(words: Tokenizer) -> None:
    tokenizer = made(words, WITH_TOOLS)
    as_text = {**CALL, "function": {**CALL["function"], "arguments": '{"city": "Bern"}'}}
    rows = table(
        [
            user("how warm?"),
            says("I look.", tool_calls=[CALL]),
            {"role": "tool", "tool_call_id": "call_1", "content": "20"},
            says("It is 20."),
        ],
        [user("how warm?"), says("", tool_calls=[as_text])],
        [user("hi"), says("hello", tool_calls=None)],
        tools=[[{"name": "weather"}], '[{"name": "weather"}]', None],
    )
    first, second, third = (targets(each, tokenizer) for each in from_conversations(rows, tokenizer))
    call = 'CALL [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]<|im_end|>\n'
    assert (first, second, third) == (f"I look. {call}It is 20.<|im_end|>\n", f" {call}", "hello<|im_end|>\n")
    asked = [tokenizer.decode(prompt) for prompt in prompts_of(rows, tokenizer)]
    assert [text.startswith('TOOLS [{"name": "weather"}]\n') for text in asked] == [True, True, False]


@pytest.mark.parametrize(
    ("turns", "tools", "message"),
    [
        ([user("hi"), says("x", tool_calls=[CALL])], None, r"leaves out tool_calls of turn 2 \(assistant\) of row 1"),
        ([user("2+2?"), says("4", reasoning_content="count")], None, "leaves out reasoning_content of turn 2"),
        ([user("hi", name="Ann"), says("x")], None, r"leaves out name of turn 1 \(user\) of row 1 .*remove it"),
        ([user("hi"), says("x")], [{"name": "weather"}], "leaves out the tools of row 1"),
        ([user("hi"), says("x", function_call={"name": "f"})], None, "leaves out function_call of turn 2"),
        ([user("hi"), says(None, tool_calls=[CALL])], None, "refuses row 1 .*content"),
        ([user("hi"), says("oh \ud83d")], None, r"Unicode, but row 1 .*has '\\ud83d'"),
    ],
)
def test_what_a_template_leaves_out_is_refused(words: Tokenizer, turns: Any, tools: Any, message: str) -> None:
    rows = table(turns, tools=None if tools is None else [tools])
    with pytest.raises(DataError, match=message):
        from_conversations(rows, made(words))
    if turns[1]["content"] == "x" and not set(turns[1]) - {"role", "content"}:
        with pytest.raises(DataError, match=message):
            prompts_of(rows, made(words))


def test_a_turn_that_a_template_leaves_out_is_refused(words: Tokenizer) -> None:
    ignoring = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + OPENING
    turns = [{"role": "system", "content": "Be brief."}, user("hi"), says("x")]
    with pytest.raises(DataError, match=r"leaves out the content of turn 1 \(system\) of row 1"):
        from_conversations(table(turns), made(words, ignoring))


def test_the_date_of_a_template_stands_still(words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    dated = (
        "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}{% if strftime_now is defined %}{{ '' }}{% endif %}" + CHATML
    )
    tokenizer, rows = made(words, dated), table([user("hi"), says("x")])
    (first,) = from_conversations(rows, tokenizer)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return cls(2042, 1, 1, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert "2042" in tokenizer.apply_chat_template(rows["messages"][0], tokenize=False)
    (second,) = from_conversations(rows, tokenizer)
    assert first.ids.tolist() == second.ids.tolist()
    assert tokenizer.decode(first.ids).startswith("Today: 26 Jul 2024\n<|im_start|>user\nhi")
    assert tokenizer.decode(prompts_of(rows, tokenizer)[0]).startswith("Today: 26 Jul 2024\n")
    assert f"{TODAY:%Y-%m-%d}" in str(ChatTemplate(tokenizer).note())
    assert ChatTemplate(made(words)).note() is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }", "template must be valid, .* is not: "),
        ({"tool_use": CHATML, "rag": CHATML}, "must have a default chat template"),
        (None, "this one has none"),
    ],
)
def test_a_template_that_is_none_is_named(words: Tokenizer, template: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_conversations(table([user("hi"), says("x")]), made(words, template))


def test_of_several_templates_that_for_tools_is_taken_where_there_are_some(words: Tokenizer) -> None:
    tokenizer = made(words, {"default": CHATML, "tool_use": WITH_TOOLS})
    rows = table([user("hi"), says("x")], [user("hi"), says("x")], tools=[None, [{"name": "weather"}]])
    first, second = (tokenizer.decode(each.ids) for each in from_conversations(rows, tokenizer))
    assert ("TOOLS" in first, "TOOLS" in second) == (False, True)
