"""A language model through the worker: segments, scores against an oracle, the base alone, and what it writes."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autopeft.models.attach import attach
from autopeft.models.base import load_base
from autopeft.models.losses import IGNORED
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.training import Splits, Training
from autopeft.spec.trial import Segment, SegmentStatus
from autopeft.tasks.base import PreparedData
from autopeft.tasks.causal_lm import TASK
from autopeft.tasks.examples import Examples
from autopeft.tasks.prepare import prepare
from autopeft.tasks.writing import write_samples
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.worker import Worker, WorkerSetup
from tests.tasks.generated_language import FORMS, save_tiny_llama, sentences
from tests.token_rows import token_rows

LORA = Design.from_dict({"blocks": [{"lora": {"rank": 4, "roles": "all"}}]})
DESIGNS: dict[str, list[dict[str, Any]]] = {
    "lora": [{"lora": {"rank": 4}}],
    "adapter": [{"adapter": {"size": 8, "mode": "serial", "at": ["attention", "mlp"]}}],
    "prefix": [{"prefix": {"length": 3}}],
    "prefix in one layer": [{"prefix": {"length": 3, "layers": [1]}}],
    "hybrid": [
        {"lora": {"rank": 2, "layers": [0]}},
        {"adapter": {"size": 4}},
        {"prefix": {"length": 2, "layers": [1]}},
    ],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny Llama with its tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def make(llama: str, training: Training) -> Callable[[str], Worker]:
    """Return a function that makes a worker on 90 training, 40 validation and 50 test examples of a form."""

    def worker(form: str = "completion", **changes: Any) -> Worker:
        changed = training.model_copy(update=changes)
        splits = Splits(train=90, validation=40, test=50)
        data = prepare(sentences(180, form=form), model=llama, task="causal-lm", splits=splits, training=changed)
        return Worker(WorkerSetup(model=llama, training=changed, data=data))

    return worker


def segment(**changes: Any) -> Segment:
    settings = {"trial": 0, "design": LORA, "learning_rates": {"lora": 1e-2}, "seed": 7}
    return Segment(**{**settings, **changes})


@pytest.mark.parametrize(("form", "precision"), [*((form, "fp32") for form in FORMS), ("text", "bf16")])
def test_segments_equal_one_run(make: Callable[..., Worker], form: str, precision: str) -> None:
    worker = make(form, precision=precision)
    whole = worker.run(segment())
    assert whole.status is SegmentStatus.DONE, whole.error
    first = worker.run(segment(stop=40))
    rest = worker.run(segment(start=first.examples, checkpoint=first.checkpoint))
    assert tuple(itertools.chain(first.losses, rest.losses)) == whole.losses
    assert (rest.scores, rest.predictions, rest.checkpoint) == (whole.scores, whole.predictions, whole.checkpoint)
    assert len(set(whole.losses)) == 30
    assert np.mean(whole.losses[-5:]) < 0.8 * np.mean(whole.losses[:5])


def one_by_one(model: torch.nn.Module, split: Examples) -> list[list[float]]:
    """The oracle: each example alone, without padding; negative log-likelihood and right tokens, token by token."""
    rows = []
    for tokens, targets in zip(token_rows(split), token_rows(split, "labels"), strict=True):
        ids, labels = tokens.tolist(), targets.tolist()
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        row = [0.0, 0.0]
        for at in range(1, len(ids)):
            if labels[at] != IGNORED:
                row[0] -= float(scores[at - 1, ids[at]])
                row[1] += float(int(scores[at - 1].argmax()) == ids[at])
        rows.append(row)
    return rows


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_those_of_plain_torch_token_by_token(make: Callable[..., Worker], llama: str, form: str) -> None:
    worker = make(form)
    result = worker.run(segment(design=Design(), learning_rates={}, full=225))
    split = worker.setup.data.validation
    rows = np.array(one_by_one(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), split))
    assert np.allclose(np.array(result.predictions), rows, rtol=1e-4)
    n_targets = sum(int((row != IGNORED).sum()) for row in token_rows(split, "labels"))
    loss = rows[:, 0].sum() / n_targets
    assert result.scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert result.scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert result.scores["token_accuracy"] == pytest.approx(rows[:, 1].sum() / n_targets)
    assert set(result.standard_errors) == set(result.scores)


def test_the_first_loss_of_a_training_is_the_mean_over_target_tokens(make: Callable[..., Worker], llama: str) -> None:
    """LoRA starts as nothing, so the first step sees the base model."""
    worker = make("completion", batch_size=90, epochs=1)
    result = worker.run(segment())
    split = worker.setup.data.train
    rows = np.array(one_by_one(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), split))
    assert result.losses[0] == pytest.approx(rows[:, 0].sum() / split.targets.sum(), rel=1e-5)


def test_a_design_without_parameters_is_complete_at_once(make: Callable[..., Worker]) -> None:
    worker = make()
    result = worker.run(segment(design=Design(), learning_rates={}, stop=225, full=225))
    assert (result.status, result.examples, result.error) == (SegmentStatus.DONE, 225, "")
    assert (result.losses, dict(result.artifact), result.measured.n_steps) == ((), {}, 0)
    tested = worker.run(segment(design=Design(), full=225, stage="test", checkpoint=result.checkpoint))
    assert tested.status is SegmentStatus.DONE, tested.error
    assert len(tested.predictions) == 50
    assert len(tested.samples) == 4


def test_a_design_without_parameters_keeps_to_the_deadline(make: Callable[..., Worker]) -> None:
    worker = make()
    worker.run(segment(design=Design(), full=225))  # an evaluation has been timed
    late = worker.run(segment(design=Design(), full=225, deadline_seconds=0.0))
    stopped = worker.run(segment(design=Design(), full=225), lambda: True)
    for result in (late, stopped):
        assert (result.status, result.examples, result.scores) == (SegmentStatus.INTERRUPTED, 0, {})


def greedy(model: Any, ids: list[int], n_tokens: int, end: int) -> list[int]:
    """The oracle: the whole text again for every token, alone, without padding or cache."""
    written: list[int] = []
    while len(written) < n_tokens and end not in written:
        with torch.no_grad():
            written.append(int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
    return [token for token in written if token != end]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DESIGNS)
def test_samples_are_greedy_continuations(make: Callable[..., Worker], llama: str, name: str, kernel: str) -> None:
    """With a cache, in a batch with padding on the left, for prompts of different lengths."""
    worker, design = make(kernel=kernel), Design.from_dict({"blocks": DESIGNS[name]})
    rates = dict.fromkeys(design.kinds, 0.02)
    trained = worker.run(segment(design=design, learning_rates=rates))
    tested = worker.run(segment(design=design, full=225, stage="test", checkpoint=trained.checkpoint))
    assert tested.status is SegmentStatus.DONE, tested.error
    tokenizer, prompts = AutoTokenizer.from_pretrained(llama), TASK.prompts(worker.setup.data.test, 4)
    assert len({len(prompt.prompt) for prompt in prompts}) > 1
    base = load_base(llama, Head(auto_class="AutoModelForCausalLM"), kernel=kernel)
    with attach(base, design) as attached:
        attached.load_state(Checkpoint.from_bytes(trained.checkpoint).adapter)
        for sample, prompt in zip(tested.samples, prompts, strict=True):
            expected = greedy(attached.model, prompt.prompt.tolist(), 48, tokenizer.eos_token_id)
            text = tokenizer.decode(expected, skip_special_tokens=True).strip()
            assert sample.output == text + (" …" if len(expected) == 48 else "")
            assert sample.prompt == tokenizer.decode(prompt.prompt)
            assert sample.reference == tokenizer.decode(prompt.reference, skip_special_tokens=True).strip()


def test_an_end_token_of_the_model_ends_the_answer(llama: str, training: Training, make: Callable[..., Worker]) -> None:
    """Chat models name several: the end of a turn besides that of a text."""
    base = load_base(llama, Head(auto_class="AutoModelForCausalLM"))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    prompts = TASK.prompts(make().setup.data.test, 4)
    written = [greedy(base.model, p.prompt.tolist(), 48, tokenizer.eos_token_id) for p in prompts]
    end = written[0][-1]
    base.model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    with attach(base, Design()) as attached:
        samples = write_samples(attached, prompts, tokenizer, training, lambda: False)
    for sample, tokens in zip(samples, written, strict=True):
        until = tokens[: tokens.index(end)] if end in tokens else tokens
        text = tokenizer.decode(until, skip_special_tokens=True).strip()
        assert sample.output == text + (" …" if len(until) == 48 else "")
    assert "…" not in samples[0].output


def test_writing_stops_when_asked_and_the_scores_stay(make: Callable[..., Worker]) -> None:
    worker = make()
    done = worker.run(segment(design=Design(), full=225))
    n_batches = 4  # of the test split, each of which asks once
    asked = itertools.count()
    tested = worker.run(
        segment(design=Design(), full=225, stage="test", checkpoint=done.checkpoint),
        lambda: next(asked) > n_batches + 5,
    )
    assert tested.status is SegmentStatus.DONE
    assert tested.scores
    assert tested.samples == ()
    assert next(asked) < n_batches + 20


def test_a_prompt_as_long_as_the_model_takes_leaves_room_to_write(llama: str, training: Training) -> None:
    data: PreparedData = prepare(
        sentences(30, form="text").assign(text=lambda rows: rows["text"] * 40), model=llama, task="causal-lm"
    )
    base = load_base(llama, Head(auto_class="AutoModelForCausalLM"))
    prompts = [replace(p, prompt=np.concatenate([p.prompt, p.reference])) for p in TASK.prompts(data.test, 2)]
    assert len(prompts[0].prompt) == base.summary.n_positions
    with attach(base, Design()) as attached:
        samples = write_samples(attached, prompts, AutoTokenizer.from_pretrained(llama), training, lambda: False)
    assert len(samples) == 2


def test_gradients_are_needed_from_the_lowest_adapted_layer_upwards_only(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path, n_layers=4)
    base = load_base(folder, Head(auto_class="AutoModelForCausalLM"))
    design = Design.from_dict({"blocks": [{"lora": {"rank": 2, "layers": [2]}}]})
    needed = []
    hooks = [
        layer.register_forward_hook(lambda _module, _args, output: needed.append(output.requires_grad))
        for layer in base.model.model.layers
    ]
    with attach(base, design) as attached:
        attached.model.train()
        ids = torch.randint(5, 300, (2, 9))
        TASK.loss(attached.model(input_ids=ids), ids).backward()
        assert all(parameter.grad is not None for parameter in attached.groups["lora"])
    for hook in hooks:
        hook.remove()
    assert needed == [False, False, True, True]
    assert base.model.get_input_embeddings().weight.grad is None
