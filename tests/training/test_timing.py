"""What is timed, and what it leaves behind; not how long it takes."""

import time
from pathlib import Path

import pytest
import torch

from autopeft.models.base import Base, load_base
from autopeft.models.random_weights import with_weights
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.training import Training
from autopeft.tasks.base import task_of
from autopeft.tasks.batches import Inputs
from autopeft.tasks.inputs import fill_at_random
from autopeft.training.timing import MAX_ROUNDS, Run, seconds_of, time_in_turns

CLASSES = Head(auto_class="AutoModelForSequenceClassification", labels=("no", "yes"))
# What a step is made of: several losses, a penalty, a part of the model without gradients.
DESIGNS = [
    Design.from_dict({"blocks": blocks})
    for blocks in ([{"lora": {"rank": 2}}], [{"adalora": {"rank": 2}}], [{"prompt": {"length": 2}}])
]


@pytest.fixture(scope="module")
def base(tiny_bert: str) -> Base:
    return load_base(tiny_bert, CLASSES)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_run_is_timed_in_every_round_and_nothing_stays(base: Base, precision: str):
    training = Training(batch_size=2, precision=precision, kernel="sdpa", device="cpu")
    before, modules = torch.get_rng_state(), [type(module) for module in base.model.modules()]
    runs = [*(Run(design=design) for design in DESIGNS), Run(design=Design(), trains=False)]
    started = time.perf_counter()
    times = time_in_turns(base, runs, training, n_tokens=4)
    elapsed = time.perf_counter() - started
    n_rounds = len(times[0].forwards)
    assert 1 <= n_rounds <= MAX_ROUNDS
    assert [len(taken.forwards) for taken in times] == [n_rounds] * 4
    assert [len(taken.steps) for taken in times] == [n_rounds] * 3 + [0]
    every = [seconds for taken in times for seconds in (*taken.forwards, *taken.steps)]
    assert min(every) > 0
    assert sum(every) < elapsed
    base.verify()
    assert [type(module) for module in base.model.modules()] == modules
    assert torch.equal(before, torch.get_rng_state())


def test_a_base_that_writes_has_no_step_without_a_design(llama_config: str):
    head = Head(auto_class="AutoModelForCausalLM")
    with with_weights(llama_config, head) as folder:
        base = load_base(folder, head)
    training = Training(batch_size=2, precision="fp32", kernel="sdpa", device="cpu")
    alone, tuned = time_in_turns(
        base, [Run(design=Design()), Run(design=DESIGNS[0], answers=False)], training, n_tokens=4
    )
    assert (alone.steps, tuned.forwards) == ([], [])
    assert len(alone.forwards) == len(tuned.steps) > 0


def at_random(base: Base, *, batch_size: int, n_tokens: int) -> Inputs:
    batch = task_of(base.head).example_batch(base, batch_size=batch_size, n_tokens=n_tokens, device=base.device)
    return fill_at_random(batch, base)


def test_inputs_are_in_the_vocabulary_and_without_padding(base: Base):
    inputs = at_random(base, batch_size=50, n_tokens=8)
    ids = inputs.forward["input_ids"]
    assert ids.shape == (50, 8)
    assert 0 <= ids.min() < ids.max() < base.summary.vocabulary_size
    assert len(ids.unique()) > 50
    assert inputs.forward["attention_mask"].all()
    assert set(inputs.labels.tolist()) == {0, 1}


def test_images_and_sound_are_numbers(tmp_path: Path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4
    )
    config.save_pretrained(tmp_path)
    head = Head(auto_class="AutoModelForImageClassification", labels=("no", "yes"))
    with with_weights(str(tmp_path), head) as folder:
        base = load_base(folder, head)
    pixels = at_random(base, batch_size=2, n_tokens=1).forward["pixel_values"]
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.isfinite().all()
    assert pixels.std() > 0.5


def test_what_takes_a_while_is_timed_in_seconds():
    assert seconds_of(lambda: time.sleep(0.01), torch.device("cpu")) >= 0.01
