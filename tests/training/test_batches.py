from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from autopeft.tasks.base import PreparedData
from autopeft.training.batches import collate


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_that_of_the_tokenizer(tiny_bert: str, data: PreparedData, side: str) -> None:
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
