import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import ArtifactError
from autopeft.training.checkpoint import Checkpoint


def make() -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    return Checkpoint(
        design="abc",
        seed=3,
        examples=64,
        full=128,
        adapter={
            "a.weight": torch.randn(3, 4, generator=generator),
            "b": torch.randn(5, generator=generator).bfloat16(),
        },
        optimizer={"lora/0/step": torch.tensor(2.0), "lora/0/exp_avg": torch.randn(3, 4, generator=generator).T},
    )


def test_round_trip() -> None:
    before = make()
    content = before.to_bytes()
    after = Checkpoint.from_bytes(content)
    assert (after.design, after.seed, after.examples, after.full) == ("abc", 3, 64, 128)
    for part in ("adapter", "optimizer"):
        old, new = getattr(before, part), getattr(after, part)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old)
    assert after.to_bytes() == content


CONTENT = make().to_bytes()


@given(at=st.integers(0, len(CONTENT) - 1), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(at: int, flip: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[at] ^= flip
    with pytest.raises(ArtifactError):
        Checkpoint.from_bytes(bytes(damaged))


@pytest.mark.parametrize("content", [b"", b"x", CONTENT[:40], CONTENT[:-1], CONTENT + b"x"])
def test_torn_files_are_found(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        Checkpoint.from_bytes(content)


@pytest.mark.parametrize("change", [{"design": "x"}, {"seed": 4}, {"full": 99}, {"examples": 32}])
def test_a_checkpoint_of_another_trial_is_refused(change: dict[str, object]) -> None:
    own = {"design": "abc", "seed": 3, "full": 128, "examples": 64}
    make().check(**own)
    with pytest.raises(ArtifactError, match=next(iter(change))):
        make().check(**{**own, **change})
