from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from autopeft.tasks.base import PreparedData, TokenizedSplit
from autopeft.training.batches import collate
from autopeft.training.plan import padded_length


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_what_the_tokenizer_would_make(tiny_bert: str, data: PreparedData, side: str) -> None:
    indices = np.array([5, 0, 17, 3])
    split = data.train
    rows = {
        name: [array[split.offsets[i] : split.offsets[i + 1]].tolist() for i in indices]
        for name, array in (("input_ids", split.input_ids), ("token_type_ids", split.token_type_ids))
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, padding_side=side)
    expected = tokenizer.pad(rows, padding="max_length", max_length=40, return_tensors="pt")
    inputs = collate(split, indices, 40, replace(data, padding_side=side), torch.device("cpu"))
    assert inputs.forward.keys() == expected.keys()
    for name, tensor in inputs.forward.items():
        assert torch.equal(tensor, expected[name])
    assert inputs.labels.tolist() == split.labels[indices].tolist()


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_example_without_tokens_is_one_token_of_padding(data: PreparedData, side: str) -> None:
    """Attention to nothing would be a mean over the batch's padding."""
    split = TokenizedSplit(
        input_ids=np.array([5, 6, 7], dtype=np.int32), offsets=np.array([0, 0, 3]), labels=np.array([0, 1])
    )
    padding = replace(data, padding_side=side)
    for rows, n_tokens in (([0], padded_length(0, 512)), ([0, 1], 3)):
        inputs = collate(split, np.array(rows), n_tokens, padding, torch.device("cpu"))
        seen = inputs.forward["attention_mask"].bool()
        assert seen.sum(dim=1).tolist() == [1, 3][: len(rows)]
        assert inputs.forward["input_ids"][0][seen[0]].tolist() == [data.pad_token_id]
