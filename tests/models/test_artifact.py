import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import HEAD, design, logits, perturb

from autopeft.errors import ArtifactError, ModelError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.spec.design import Design

LORA = {"lora": {"rank": 4, "roles": ["attention_output", "mlp_up"], "layers": [0, 2]}}
ADAPTER = {"adapter": {"size": 3, "mode": "parallel", "at": ["attention", "mlp"], "scaling": 2}}
PREFIX = {"prefix": {"length": 5}}
DESIGNS = {
    "head": design(),
    "lora": design(LORA, {"lora": {"rank": 3, "alpha": 1, "roles": ["mlp_down"]}}),
    "dora": design({"lora": {"rank": 2, "dora": True}}),
    "rslora": design({"lora": {"rank": 4, "rslora": True}}),
    "adapter": design(ADAPTER),
    "prefix": design(PREFIX),
    "some-prefix": design({"prefix": {"length": 5, "layers": [1]}}),
    "hybrid": design(LORA, ADAPTER, PREFIX),
}
STOCK = {"lora", "dora", "rslora", "prefix"}
ARCHITECTURES = ("bert", "roberta", "llama", "gpt2", "distilbert")

OPEN_IN_A_NEW_PROCESS = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from safetensors.torch import load_file, save_file
import torch
from autopeft.models.artifact import load
root = Path(sys.argv[1])
text = load_file(root / "text.safetensors")
answers = {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    model, tokenizer = load(folder)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        answers[folder.name] = model(**text).logits
save_file(answers, root / "answers.safetensors")
"""


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def export(base: Base, made: Design, folder: Path, text: dict[str, torch.Tensor] | None = None) -> torch.Tensor | None:
    with attach(base, made, seed=5) as attached:
        perturb(attached)
        write(pack(attached, metadata={"scores": {"accuracy": 0.75}}), folder)
        return None if text is None else logits(base.model, text)


@pytest.mark.slow
def test_every_export_opens_in_a_new_process_with_the_same_logits(
    bases: dict[str, Base], text: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    expected = {}
    for name in ARCHITECTURES:
        for which, made in DESIGNS.items():
            expected[f"{name}-{which}"] = export(bases[name], made, tmp_path / f"{name}-{which}", text)
    safetensors.torch.save_file(text, tmp_path / "text.safetensors")
    subprocess.run([sys.executable, "-c", OPEN_IN_A_NEW_PROCESS, str(tmp_path)], check=True, env={**os.environ})
    answers = safetensors.torch.load_file(tmp_path / "answers.safetensors")
    assert answers.keys() == expected.keys()
    for key, answer in answers.items():
        torch.testing.assert_close(answer, expected[key], atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("which", sorted(STOCK))
def test_stock_folders_open_in_peft_alone(
    bases: dict[str, Base],
    folders: dict[str, str],
    text: dict[str, torch.Tensor],
    tmp_path: Path,
    name: str,
    which: str,
) -> None:
    expected = export(bases[name], DESIGNS[which], tmp_path / "adapter", text)
    stock = (tmp_path / "adapter" / "adapter_config.json").is_file()
    if (name, which) == ("distilbert", "prefix"):
        assert not stock  # DistilBERT takes no cache, so peft cannot open a prefix on it
        return
    assert stock
    torch.manual_seed(99)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            folders[name], num_labels=2, pad_token_id=1
        )
        model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(model, text), expected, atol=1e-5, rtol=1e-5)


def test_a_new_pooler_travels_with_a_stock_adapter(
    folders: dict[str, str], text: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "no-pooler"
    shutil.copytree(folders["bert"], folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("pooler.")}
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    base = load_base(str(folder), HEAD)
    for which in ("lora", "prefix", "adapter"):
        expected = export(base, DESIGNS[which], tmp_path / which, text)
        model, _ = load(tmp_path / which)
        torch.testing.assert_close(logits(model, text), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", ["head", "lora", "prefix", "hybrid"])
def test_quantized_designs_on_real_weights(minilm: str, tmp_path: Path, which: str) -> None:
    base = load_base(minilm, HEAD, quantization="nf4")
    ids = torch.randint(1000, 2000, (4, 12))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made = dataclasses.replace(DESIGNS[which], quantization="nf4")
    expected = export(base, made, tmp_path / "adapter", text)
    model, tokenizer = load(tmp_path / "adapter")
    torch.testing.assert_close(logits(model, text), expected, atol=1e-5, rtol=1e-5)
    assert tokenizer("good film").input_ids == [101, 2204, 2143, 102]
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("which", ["head", "lora", "prefix", "hybrid"])
def test_the_dtype_is_honoured(
    bases: dict[str, Base], text: dict[str, torch.Tensor], tmp_path: Path, which: str
) -> None:
    expected = export(bases["llama"], DESIGNS[which], tmp_path / "adapter", text)
    assert expected is not None
    model, _ = load(tmp_path / "adapter", dtype="bfloat16", device_map="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    answer = logits(model, text).float()
    assert 0 < (answer - expected).abs().max() < 0.1 * expected.abs().max()
    assert load(tmp_path / "adapter", dtype=torch.float64)[0].dtype == torch.float64
    for dtype in ("int8", "float23"):
        with pytest.raises(ArtifactError, match="dtype"):
            load(tmp_path / "adapter", dtype=dtype)


def test_the_description_says_what_it_is(bases: dict[str, Base], tmp_path: Path) -> None:
    export(bases["bert"], DESIGNS["hybrid"], tmp_path / "adapter")
    description = json.loads((tmp_path / "adapter" / "autopeft.json").read_text())
    assert Design.from_dict(description["design"]) == DESIGNS["hybrid"]
    assert description["base_model"]["fingerprint"] == bases["bert"].summary.fingerprint
    assert description["base_model"]["labels"] == ["negative", "positive"]
    assert (description["schema_version"], description["format"]) == (1, "autopeft")
    assert description["metadata"] == {"scores": {"accuracy": 0.75}}


def test_the_base_may_have_moved_but_not_changed(folders: dict[str, str], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folders["bert"], moved)
    base = load_base(str(moved), HEAD)
    for which in ("lora", "adapter"):
        export(base, DESIGNS[which], tmp_path / which)
    shutil.rmtree(moved)
    for which in ("lora", "adapter"):
        with pytest.raises(ModelError, match="no folder is"):
            load(tmp_path / which)
        load(tmp_path / which, base_model=folders["bert"])
        for other in ("roberta", "llama"):
            with pytest.raises(ArtifactError, match="fits only the base model"):
                load(tmp_path / which, base_model=folders[other])


def test_damaged_folders_are_refused(bases: dict[str, Base], tmp_path: Path) -> None:
    def damaged(which: str, name: str, content: bytes | None) -> Path:
        folder = tmp_path / f"{which}-{len(list(tmp_path.iterdir()))}"
        export(bases["bert"], DESIGNS[which], folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        return folder

    half = pack_bytes(bases["bert"])
    cases = [
        (damaged("adapter", "autopeft.json", None), "must have autopeft.json"),
        (damaged("lora", "autopeft.json", None), "peft.PeftModel.from_pretrained"),
        (damaged("adapter", "autopeft.json", b"{"), "damaged"),
        (damaged("adapter", "autopeft.json", b'{"schema_version": 1}'), "damaged"),
        (damaged("adapter", "autopeft.json", b'{"schema_version": 99}'), "schema_version.*99"),
        (damaged("adapter", "adapter.safetensors", None), "must have its tensors"),
        (damaged("adapter", "adapter.safetensors", half), "damaged"),
        (damaged("adapter", "adapter.safetensors", safetensors.torch.save({"x": torch.ones(1)})), "state must hold"),
        (damaged("lora", "adapter_model.safetensors", half), "damaged"),
        (damaged("lora", "adapter_model.safetensors", None), "must have its tensors"),
        (damaged("lora", "adapter_config.json", None), "must have adapter_config.json"),
    ]
    for folder, message in cases:
        with pytest.raises(ArtifactError, match=message):
            load(folder)
    with pytest.raises(ArtifactError, match="no folder"):
        load(tmp_path / "nowhere")


def pack_bytes(base: Base) -> bytes:
    with attach(base, DESIGNS["adapter"]) as attached:
        return pack(attached, metadata={})["adapter.safetensors"][:100]


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("exploded",))


def test_a_pickle_is_never_read(bases: dict[str, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(_Bomb())
    for which in ("lora", "adapter"):
        folder = tmp_path / which
        export(bases["bert"], DESIGNS[which], folder)
        tensors = next(folder.glob("*.safetensors"))
        for name in ("adapter_model.bin", "adapter.bin", "pytorch_model.bin"):
            (folder / name).write_bytes(bomb)
        tensors.unlink()
        with pytest.raises(ArtifactError, match="must have its tensors"):
            load(folder)
        tensors.write_bytes(bomb)
        with pytest.raises(ArtifactError, match="damaged"):
            load(folder)
    assert not (tmp_path / "exploded").exists()
