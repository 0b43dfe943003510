import numpy as np
import torch
from transformers import AutoTokenizer

from autopeft.tasks.batches import collate, padded_length
from autopeft.tasks.examples import Examples, Ragged
from autopeft.tasks.prepare import prepare
from tests.tasks.generated import reviews
from tests.token_rows import make_examples, token_rows


def test_padding_is_what_the_tokenizer_would_make(tiny_bert: str) -> None:
    data = prepare(reviews(60), model=tiny_bert)
    indices = np.array([5, 0, 17, 3])
    names = ("input_ids", "token_type_ids")
    rows = {name: [token_rows(data.train, name)[i].tolist() for i in indices] for name in names}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, padding_side="right")
    expected = tokenizer.pad(rows, padding="max_length", max_length=40, return_tensors="pt")
    inputs = collate(data.train, indices, 40, torch.device("cpu"))
    assert inputs.forward.keys() == expected.keys()
    for name, tensor in inputs.forward.items():
        assert torch.equal(tensor, expected[name])
    assert inputs.labels.tolist() == data.train.labels[indices].tolist()


def test_an_example_without_tokens_is_one_token_of_padding() -> None:
    """Attention to nothing would be a mean over the batch's padding."""
    examples = make_examples([[], [5, 6, 7]], [0, 1], fill=9)
    for rows, n_tokens in (([0], padded_length(0, 512)), ([0, 1], 3)):
        inputs = collate(examples, np.array(rows), n_tokens, torch.device("cpu"))
        seen = inputs.forward["attention_mask"].bool()
        assert seen.sum(dim=1).tolist() == [1, 3][: len(rows)]
        assert inputs.forward["input_ids"][0][seen[0]].tolist() == [9]


def test_columns_are_tokens_numbers_and_arrays_of_any_shape() -> None:
    """What is read beside the text, and what is written, has lengths and shapes of its own."""
    pixels = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    examples = Examples(
        inputs={
            "input_ids": Ragged.of([[1], [2, 3], [4, 5, 6]], fill=7),
            "pixel_values": pixels,
            "decoder_input_ids": Ragged.of([[1, 2], [3], [4]], fill=8),
        },
        labels=np.array([0.5, 1.5, 2.5], dtype=np.float32),
    )
    inputs = collate(examples, np.array([2, 0]), 8, torch.device("cpu"))
    assert inputs.forward["input_ids"].tolist() == [[4, 5, 6, 7, 7, 7, 7, 7], [1, 7, 7, 7, 7, 7, 7, 7]]
    assert inputs.forward["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert inputs.forward["decoder_input_ids"].tolist() == [[4, 8], [1, 2]]
    assert torch.equal(inputs.forward["pixel_values"], torch.from_numpy(pixels[[2, 0]]))
    assert inputs.labels.tolist() == [2.5, 0.5]
    assert inputs.labels.dtype == torch.float32
    images = Examples(inputs={"pixel_values": pixels}, labels=np.array([0, 1, 0]))
    assert images.lengths.tolist() == [1, 1, 1]
    assert collate(images, np.array([1]), 8, torch.device("cpu")).forward.keys() == {"pixel_values"}
