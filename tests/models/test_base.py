import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, HEAD, HEADS, SOUND_HEAD, SPEECH_HEAD, TARGET_HEAD, content

from autopeft.errors import ModelError
from autopeft.models.base import Base, build_meta, load_base
from autopeft.spec.model import Head

HEADS_OF_A_BASE = [
    ("t5", TARGET_HEAD, ()),
    ("whisper", SPEECH_HEAD, ()),
    ("whisper", SOUND_HEAD, ("projector", "classifier")),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_meta_base_has_the_same_summary_without_weights(
    bases: dict[str, Base], folders: dict[str, str], name: str
) -> None:
    meta = build_meta(folders[name], HEADS[name])
    assert meta.summary == bases[name].summary
    assert all(tensor.is_meta for tensor in meta.model.parameters())
    assert meta.device.type == "meta"


def test_real_weights(real_base: Base, minilm: str) -> None:
    summary = real_base.summary
    assert (summary.n_layers, summary.hidden_size, summary.n_heads, summary.n_positions) == (6, 384, 12, 512)
    assert summary.new_modules == ("classifier",)
    assert summary.n_parameters == 22_713_216  # the model card's 22.7 M
    assert summary.n_head_parameters == 384 * 2 + 2
    stored = load_file(Path(minilm) / "model.safetensors")
    loaded = dict(real_base.model.bert.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items() if name in loaded)
    assert loaded.keys() <= stored.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everything_is_frozen_and_evaluating(folders: dict[str, str], name: str) -> None:
    model = load_base(folders[name], HEADS[name]).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    config = model.config
    assert getattr(config, "pad_token_id", 1) == 1
    assert not HEADS[name].labels or config.id2label == {0: "negative", 1: "positive"}


def test_loading_leaves_the_random_numbers_alone(folders: dict[str, str]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_base(folders["bert"], HEAD)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_says_nothing(folders: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    load_base(folders["bert"], HEAD)
    assert capfd.readouterr() == ("", "")


def test_the_kernel_is_what_was_asked_for_or_what_there_is(folders: dict[str, str]) -> None:
    assert load_base(folders["bert"], HEAD, kernel="eager").kernel == "eager"
    assert load_base(folders["bert"], HEAD).kernel == "sdpa"
    assert load_base(folders["deberta"], HEAD).kernel == "eager"


def test_verify_sees_writes_and_replacements(folders: dict[str, str]) -> None:
    base = load_base(folders["bert"], HEAD)
    base.verify()
    weight = base.model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        base.model.classifier.weight.zero_()  # a new module may change
        base.verify()
        weight[3, 3] += 1
    with pytest.raises(ModelError, match="word_embeddings"):
        base.verify()
    base = load_base(folders["bert"], HEAD)
    layer = base.model.bert.encoder.layer[0]
    layer.output.dense.weight = torch.nn.Parameter(layer.output.dense.weight.clone(), requires_grad=False)
    with pytest.raises(ModelError, match=r"output\.dense\.weight"):
        base.verify()


@pytest.mark.parametrize(("name", "head", "new"), HEADS_OF_A_BASE, ids=str)
def test_the_head_of_a_model_whose_base_is_no_module_of_its_own(
    folders: dict[str, str], name: str, head: Head, new: tuple[str, ...]
) -> None:
    base = load_base(folders[name], head)
    assert base.summary.new_modules == new
    assert base.summary == build_meta(folders[name], head).summary
    loaded = {path.rpartition("encoder.")[2]: tensor for path, tensor in base.model.named_parameters()}
    stored = load_file(Path(folders[name]) / "model.safetensors")
    kept = {path.removeprefix("encoder."): tensor for path, tensor in stored.items() if path.startswith("encoder.")}
    assert kept
    assert all(torch.equal(loaded[path], tensor) for path, tensor in kept.items())


def test_a_hole_in_such_a_base_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(folders["t5"], tmp_path / "t5")
    tensors = load_file(tmp_path / "t5" / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("decoder.block.1.layer.0.")}
    save_file(kept, tmp_path / "t5" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 5, such as decoder\.block\.1"):
        load_base(str(tmp_path / "t5"), TARGET_HEAD)


def test_a_head_of_the_checkpoint_is_replaced_whatever_its_size(folders: dict[str, str], tmp_path: Path) -> None:
    load_base(folders["bert"], Head(auto_class=HEAD.auto_class, labels=("a", "b", "c"))).model.save_pretrained(tmp_path)
    for labels in (("a", "b", "c"), ("x", "y")):
        base = load_base(str(tmp_path), Head(auto_class=HEAD.auto_class, labels=labels))
        assert base.summary.new_modules == ("classifier",)
        assert base.model.classifier.out_features == len(labels)


def test_a_missing_pooler_is_new_and_other_missing_weights_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    for name, hole in (("pooler", "pooler."), ("broken", "encoder.layer.1.output.")):
        folder = tmp_path / name
        shutil.copytree(folders["bert"], folder)
        tensors = load_file(folder / "model.safetensors")
        kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(hole)}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    base = load_base(str(tmp_path / "pooler"), HEAD)
    assert base.summary.new_modules == ("bert.pooler", "classifier")
    assert base.summary == build_meta(str(tmp_path / "pooler"), HEAD).summary
    for load in (load_base, build_meta):
        with pytest.raises(ModelError, match=r"lacks 4, such as bert\.encoder\.layer\.1\.output"):
            load(str(tmp_path / "broken"), HEAD)


def test_the_fingerprint_is_of_the_content(folders: dict[str, str], bases: dict[str, Base], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["bert"], copy)
    original = bases["bert"].summary.fingerprint
    assert build_meta(str(copy), HEAD).summary.fingerprint == original
    tensors = load_file(copy / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert build_meta(str(copy), HEAD).summary.fingerprint != original


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_bad_folders_are_refused_early(folders: dict[str, str], tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        shutil.copytree(folders["bert"], tmp_path / name)
        return tmp_path / name

    no_weights, no_config, remote, unknown, damaged, pickled = map(broken, "abcdef")
    (no_weights / "model.safetensors").unlink()
    (no_config / "config.json").unlink()
    _config(remote, model_type="homemade", auto_map={"AutoModel": "modeling.Homemade"})
    _config(unknown, model_type="homemade")
    (damaged / "model.safetensors").write_bytes(b"not tensors")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cases = {
        str(tmp_path / "nowhere"): "no folder is",
        "./nowhere": "no folder is",
        "nobody/nothing": "hub",
        str(no_weights): "must have weights",
        str(no_config): "config.json",
        str(remote): "trust_remote_code",
        str(unknown): "homemade",
        str(damaged): "must be whole, but model.safetensors",
        str(pickled): "pytorch_model.bin",
    }
    for name, message in cases.items():
        for load in (load_base, build_meta):
            with pytest.raises(ModelError, match=message):
                load(name, HEAD)


def test_loading_twice_gives_the_same_base(folders: dict[str, str], bases: dict[str, Base]) -> None:
    again = content(load_base(folders["llama"], HEAD).model)
    assert {k: v for k, v in again.items() if "score" not in k} == {
        k: v for k, v in content(bases["llama"].model).items() if "score" not in k
    }
