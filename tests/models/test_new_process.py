"""Every technique leaves the process that trained it: all exports are opened by one new process, with the same logits.

What is said to be stock is opened there by `PeftModel.from_pretrained` too, on a plain model of transformers.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows import BY_NAME, ROWS
from safetensors.torch import load_file, save_file
from tiny_models import HEADS, inputs_for, logits, perturb

from autopeft.models.artifact import pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.spec.design import Design

ARCHITECTURES = ("bert", "llama", "t5", "vit")
HYBRIDS = (
    ("lora", "adapter, serial", "prefix"),
    ("lora, dora", "adapter, parallel", "prefix, projection", "ia3", "norms"),
    ("adalora", "compacter", "prefix, gated", "full"),
    ("oft", "miss", "shira", "vera", "lokr", "loha"),
    ("lora, gated", "adapter, gated", "prompt, lstm", "bitfit"),
    ("lora", "deep_prompt", "adapter, experts"),
    ("fusion", "lora", "prefix"),
)
STORED = ("int8", "nf4", "nf4-dq", "fp4")

OPEN_ALL = """
import json, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file, save_file
import autopeft

root = Path(sys.argv[1])
inputs = {file.stem: load_file(file) for file in (root / "inputs").iterdir()}
answers = {}

def answer(model, folder):
    with torch.no_grad():
        return model.eval()(**inputs[folder.name.split("+")[0]]).logits

folders = sorted(path for path in (root / "exports").iterdir())
for folder in folders:
    model, _ = autopeft.load(folder)
    answers[f"{folder.name}/autopeft"] = answer(model, folder)
# What peft and torch notice of peft's own classes is no failure of an export.
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
import peft
for folder in folders:
    if "+none+" in folder.name and (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "autopeft.json").read_text())["base_model"]
        settings = {"num_labels": len(base["labels"])} if base["labels"] else {}
        plain = getattr(transformers, base["auto_class"]).from_pretrained(base["name"], **settings)
        answers[f"{folder.name}/peft"] = answer(peft.PeftModel.from_pretrained(plain, str(folder)), folder)
save_file({name: tensor.contiguous() for name, tensor in answers.items()}, root / "answers.safetensors")
"""


def cases(bases: dict[str, Base], folders: dict[str, str]) -> list[tuple[str, Base, tuple[str, ...]]]:
    """Return architecture, base and rows of every export: each row, hybrids, and hybrids on quantized bases."""
    singles = [(row.name,) for row in ROWS]
    found = [
        (architecture, bases[architecture], names)
        for architecture in ARCHITECTURES
        for names in (*singles, *HYBRIDS)
        if not any(architecture in BY_NAME[name].refused_on for name in names)
    ]
    for stored in STORED:
        base = load_base(folders["bert"], HEADS["bert"], quantization=stored)  # type: ignore[arg-type]
        found += [("bert", base, names) for names in (("lora",), HYBRIDS[0], HYBRIDS[3])]
    return found


@pytest.mark.slow
def test_every_technique_opens_in_a_new_process_with_the_same_logits(
    bases: dict[str, Base], folders: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "inputs").mkdir()
    for architecture in ARCHITECTURES:
        save_file(inputs_for(architecture), tmp_path / "inputs" / f"{architecture}.safetensors")
    expected: dict[str, torch.Tensor] = {}
    n_stock = 0
    for architecture, base, names in cases(bases, folders):
        made = Design(blocks=tuple(BY_NAME[name].make(base) for name in names), quantization=base.quantization)
        key = "+".join([architecture, base.quantization, *names]).replace(" ", "_")
        folder = tmp_path / "exports" / key
        folder.mkdir(parents=True)
        with attach(base, made, seed=5) as attached:
            perturb(attached)
            for name, written in pack(attached, metadata={}).items():
                (folder / name).write_bytes(written)
            answer = logits(base.model, inputs_for(architecture))
        expected[f"{key}/autopeft"] = answer
        assert made.exports_to_peft(base.summary) == (folder / "adapter_config.json").is_file()
        # over 4 bits, bitsandbytes itself fails on a CPU where maps are as narrow as these
        if made.exports_to_peft(base.summary) and base.quantization == "none":
            n_stock += 1
            expected[f"{key}/peft"] = answer
    subprocess.run([sys.executable, "-c", OPEN_ALL, str(tmp_path)], check=True, env={**os.environ})
    answers = load_file(tmp_path / "answers.safetensors")
    assert answers.keys() == expected.keys()
    assert n_stock > 40
    far = {
        key: float((answers[key] - answer).abs().max())
        for key, answer in expected.items()
        if not torch.allclose(answers[key], answer, atol=1e-5, rtol=1e-5)
    }
    assert not far
