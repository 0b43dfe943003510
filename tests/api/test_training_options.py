"""Optimizer and gradient checkpointing as a user sees them: in the study, on resuming, and refused early."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import autopeft
from autopeft.errors import ModelError, StudyMismatchError


def test_a_study_keeps_its_optimizer_and_its_checkpointing(study: dict[str, Any]) -> None:
    chosen = {**study["training"], "optimizer": "sgd", "checkpointing": True}
    autopeft.search(**{**study, "n_trials": 1, "training": chosen})
    resolved = json.loads((Path(study["output_dir"]) / "tiny" / "study.json").read_text(encoding="utf-8"))
    assert (resolved["training"]["optimizer"], resolved["training"]["checkpointing"]) == ("sgd", True)
    with pytest.raises(StudyMismatchError, match=r"the training it began with.*was \{'optimizer': 'sgd', 'check"):
        autopeft.search(**study)


def test_a_study_from_before_these_options_goes_on(study: dict[str, Any]) -> None:
    autopeft.search(**{**study, "n_trials": 1})
    file = Path(study["output_dir"]) / "tiny" / "study.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    for training in (values["training"], values["fingerprints"]["training"]):
        for option in ("optimizer", "checkpointing"):
            del training[option]
    file.write_text(json.dumps(values), encoding="utf-8")
    autopeft.search(**{**study, "n_trials": 1})


def test_a_model_that_cannot_be_checkpointed_is_refused_before_a_trial(study: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "mpnet"
    config = transformers.MPNetConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
    )
    transformers.MPNetModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(study["model"]).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"MPNet\w+ has none; set training.checkpointing to false"):
        autopeft.search(**{**study, "model": str(folder), "training": {**study["training"], "checkpointing": True}})
    assert not (Path(study["output_dir"]) / "tiny" / "study.journal").exists()
