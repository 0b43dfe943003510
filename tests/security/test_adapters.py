"""Adapter folders that nobody vouches for: refused with an error of our own, before the base model is loaded."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, note, settings
from hypothesis import strategies as st

import autopeft
from autopeft.errors import AutopeftError, DesignError
from autopeft.models import artifact
from autopeft.models.artifact import DESCRIPTION_FILE, TENSOR_FILE, pack
from autopeft.models.attach import attach
from autopeft.models.base import load_base
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from tests.security.mutation import mutate, mutate_bytes

HEAD = Head(auto_class="AutoModelForSequenceClassification", labels=("bad", "good"))
DESIGNS = {
    "lora": [{"lora": {"rank": 2, "roles": ["query"]}}],
    "adapter": [{"adapter": {"size": 2, "mode": "serial", "at": ["mlp"]}}],
    "hybrid": [{"lora": {"rank": 2, "roles": ["query"]}}, {"prefix": {"length": 2, "layers": [0]}}],
    "shira": [{"shira": {"rank": 2, "roles": ["query"]}}],
}
METADATA = {"task": "text-classification", "max_length": 16, "columns": {"text": "text", "label": "label"}}
WORDS = ("rank", "size", "lora", "adapter", "full", "fusion", "AutoModel", "AutoConfig", "peft", "autopeft", "merged")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, vocab_size=20, max_position_embeddings=20)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exports(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return exported adapters by name, which nothing writes to."""
    base, root = load_base(str(base_folder), HEAD), tmp_path_factory.mktemp("exports")
    for name, blocks in DESIGNS.items():
        (root / name).mkdir()
        with attach(base, Design.from_dict({"blocks": blocks})) as attached:
            for file, content in pack(attached, metadata=METADATA).items():
                (root / name / file).write_bytes(content)
    return {name: root / name for name in DESIGNS}


@pytest.fixture
def adapter(exports: dict[str, Path], tmp_path: Path) -> Path:
    """Return an exported adapter that a test may damage."""
    return Path(shutil.copytree(exports["adapter"], tmp_path / "adapter"))


@pytest.fixture
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loading the weights of a base an error: what is refused must be refused before."""
    open_checkpoint = artifact.open_checkpoint

    def guarded(*arguments: Any, device_map: Any, **others: Any) -> Any:
        assert device_map == {"": "meta"}, "the base model was loaded"
        return open_checkpoint(*arguments, device_map=device_map, **others)

    monkeypatch.setattr(artifact, "open_checkpoint", guarded)


def describe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / DESCRIPTION_FILE).read_text())
    change(values)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(values))


def header(entries: Any, data: bytes = b"") -> bytes:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(content)) + content + data


def test_an_untouched_export_opens(exports: dict[str, Path]) -> None:
    for folder in exports.values():
        model, _ = autopeft.load(folder)
        assert not model.training


DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a class that is no model": (lambda v: v["base_model"].update(auto_class="AutoTokenizer"), "auto_class"),
    "a path as a class": (lambda v: v["base_model"].update(auto_class="os.system"), "auto_class"),
    "labels that are no texts": (lambda v: v["base_model"].update(labels=[1, 2]), "labels"),
    "a label twice": (lambda v: v["base_model"].update(labels=["a", "a"]), "labels"),
    "many labels": (lambda v: v["base_model"].update(labels=[str(i) for i in range(100_000)]), "shape"),
    "a null byte in the base": (lambda v: v["base_model"].update(name="a\0b"), "name"),
    "a base somewhere else": (lambda v: v["base_model"].update(name="../../nowhere"), "no folder is"),
    "a home that is not": (lambda v: v["base_model"].update(name="~nobody-here/x"), "no folder is"),
    "a long base": (lambda v: v["base_model"].update(name="/" + "x" * 4000), "no folder is"),
    "no fingerprint": (lambda v: v["base_model"].update(fingerprint=""), "fingerprint"),
    "another format": (lambda v: v.update(format="pickle"), "format"),
    "a merged model without weights": (lambda v: v.update(format="merged"), "config.json"),
    "a list as a design": (lambda v: v.update(design=[]), "damaged"),
    "an unknown technique": (lambda v: v.update(design={"blocks": [{"evil": {}}]}), "does not know"),
    "a package with a command": (
        lambda v: v.update(design={"blocks": [{"evil": {}}]}, packages={"evil": "x; rm -rf ~"}),
        "import the module",
    ),
    "a huge size": (lambda v: v["design"]["blocks"][0]["adapter"].update(size=10**15), "size <= hidden_size"),
    "another size": (lambda v: v["design"]["blocks"][0]["adapter"].update(size=16), "shape"),
    "a number that no float holds": (lambda v: v["design"]["blocks"][0]["adapter"].update(scaling=10**400), "damaged"),
    "many experts": (lambda v: v["design"]["blocks"][0]["adapter"].update(experts=10**9), "experts"),
    "a version that is a list": (lambda v: v.update(schema_version=[1]), "schema_version"),
    "metadata that is deep": (lambda v: v.update(metadata=json.loads("[" * 100 + "]" * 100)), "levels deep"),
}


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("attack", DESCRIPTIONS)
def test_a_description_that_lies_is_refused(adapter: Path, attack: str) -> None:
    change, message = DESCRIPTIONS[attack]
    describe(adapter, change)
    with pytest.raises(AutopeftError, match=message):
        autopeft.load(adapter)
    with pytest.raises(AutopeftError):
        autopeft.predict(adapter, [{"text": "a film"}])
    with pytest.raises(AutopeftError):
        autopeft.merge(adapter, adapter.parent / "merged")
    assert not (adapter.parent / "merged").exists()


TEXTS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "a key twice": b'{"schema_version": 1, "schema_version": 1}',
    "a long number": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "large": b'{"x": "' + b"a" * (5 * 2**20) + b'"}',
}


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("attack", TEXTS)
def test_a_description_that_is_none_is_refused(adapter: Path, attack: str) -> None:
    (adapter / DESCRIPTION_FILE).write_bytes(TEXTS[attack])
    with pytest.raises(AutopeftError):
        autopeft.load(adapter)
    with pytest.raises(DesignError):
        Design.from_dict({"blocks": [{"fusion": {"adapters": [str(adapter)]}}]})


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TENSOR_FILES = {
    "empty": b"",
    "a header that is longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "a header of 2^64 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a large header": header(b'{"x": "' + b" " * (17 * 2**20) + b'"}'),
    "a deep header": header(b"[" * 100_000),
    "a tensor twice": header(b'{"x": %s, "x": %s}' % ((json.dumps(F32).encode(),) * 2), b"0000"),
    "a huge shape": header({"x": {**F32, "shape": [2**40, 2**40]}}, b"0000"),
    "a negative shape": header({"x": {**F32, "shape": [-1]}}, b"0000"),
    "an unknown dtype": header({"x": {**F32, "dtype": "F8_E4M3"}}, b"0000"),
    "another length": header({"x": {**F32, "shape": [2]}}, b"0000"),
    "offsets past the end": header({"x": {**F32, "data_offsets": [0, 2**40]}}, b"0000"),
    "the same bytes twice": header({"x": F32, "y": F32}, b"00000000"),
    "a path as a name": header({"../../x": F32}, b"0000"),
    "a long name": header({"x" * 10_000: F32}, b"0000"),
    "a pickle": b"\x80\x04\x95.",
}


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("attack", TENSOR_FILES)
@pytest.mark.parametrize("which", ["adapter", "lora"])
def test_a_tensor_file_that_lies_is_refused(exports: dict[str, Path], tmp_path: Path, which: str, attack: str) -> None:
    folder = Path(shutil.copytree(exports[which], tmp_path / which))
    next(folder.glob("*.safetensors")).write_bytes(TENSOR_FILES[attack])
    if (which, attack) in (("lora", "a path as a name"),):
        pytest.skip("peft reads the names of a stock adapter, after the base is there: see below")
    with pytest.raises(AutopeftError):
        autopeft.load(folder)


@pytest.mark.parametrize("which", ["adapter", "lora"])
def test_tensors_besides_those_of_the_design_are_refused(exports: dict[str, Path], tmp_path: Path, which: str) -> None:
    folder = Path(shutil.copytree(exports[which], tmp_path / which))
    file = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    for name in ("../../x", "base_model.model.bert.embeddings.word_embeddings.weight", "x"):
        safetensors.torch.save_file({**tensors, name: torch.ones(1)}, file)
        with pytest.raises(AutopeftError, match=r"has no place for|size mismatch"):
            autopeft.load(folder)
    missing = dict(sorted(tensors.items())[1:])
    safetensors.torch.save_file(missing, file)
    with pytest.raises(AutopeftError, match="lacks"):
        autopeft.load(folder)


@pytest.mark.usefixtures("no_base")
def test_numbers_in_the_place_of_others_are_refused(adapter: Path) -> None:
    tensors = safetensors.torch.load_file(adapter / TENSOR_FILE)
    for change in (lambda t: t.to(torch.int32), lambda t: t.reshape(-1)[:1], lambda t: t.unsqueeze(0)):
        safetensors.torch.save_file({n: change(t).contiguous() for n, t in tensors.items()}, adapter / TENSOR_FILE)
        with pytest.raises(AutopeftError, match=r"shape|dtype"):
            autopeft.load(adapter)


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("megatron_config", {"x": 1}),
        ("megatron_core", "os"),
        ("auto_mapping", {"parent_library": "os", "base_model_class": "system"}),
        ("target_modules", "(a+)+$"),
        ("target_modules", ["(a+)+$"]),
        ("rank_pattern", {"(a+)+$": 2}),
        ("rank_pattern", {"query": 10**9}),
        ("r", 10**9),
        ("layer_replication", [[0, 10**6]]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "XLORA"),
        ("peft_type", None),
        ("no_such_setting", 1),
    ],
)
def test_settings_that_peft_would_act_on_are_refused(
    exports: dict[str, Path], tmp_path: Path, name: str, value: Any
) -> None:
    folder = Path(shutil.copytree(exports["lora"], tmp_path / "lora"))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(AutopeftError, match=name if name != "peft_type" else "peft_type"):
        autopeft.load(folder)


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("name", [DESCRIPTION_FILE, TENSOR_FILE])
def test_links_out_of_the_folder_are_refused(adapter: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (adapter / name).rename(outside)
    (adapter / name).symlink_to(outside)
    with pytest.raises(AutopeftError, match="link that leads out"):
        autopeft.load(adapter)
    with pytest.raises(DesignError, match="link that leads out"):
        Design.from_dict({"blocks": [{"fusion": {"adapters": [str(adapter)]}}]})
    (adapter / name).unlink()
    (adapter / name).symlink_to(name)
    with pytest.raises(AutopeftError):
        autopeft.load(adapter)
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    with pytest.raises(AutopeftError, match="plain file"):
        autopeft.load(adapter)


def test_the_cache_of_the_hub_may_link_to_its_own_files(adapter: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in adapter.iterdir():
        shutil.copy(file, blobs / f"{len(file.name)}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{len(file.name)}")
    autopeft.load(snapshot)


@pytest.mark.slow
@settings(max_examples=1000)
@given(seed=st.integers(0, 2**62))
def test_any_change_to_a_folder_is_refused_or_opens(
    exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Values changed in the JSON files, bytes changed anywhere."""
    rng = random.Random(seed)
    name = rng.choice(sorted(exports))
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exports[name], folder)
    file = rng.choice(sorted(folder.iterdir()))
    if file.suffix == ".json" and rng.random() < 0.8:
        changed = mutate(json.loads(file.read_text()), rng, words=WORDS)
        note(f"{name}: {file.name}: {changed!r}"[:2000])
        file.write_text(json.dumps(changed))
    else:
        note(f"{name}: {file.name}: bytes")
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    try:
        export = artifact.read_export(folder)
        artifact.rehearse(export, export.find_base())
    except AutopeftError as error:
        note(str(error))
