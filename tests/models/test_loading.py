"""Models that do not do what a task asks for are refused in one line, before anything is loaded."""

from pathlib import Path

import pytest
import transformers
from tiny_models import BERT_LIKE, CONFIGS, HEAD, LANGUAGE_HEAD

from autopeft.errors import ModelError
from autopeft.models.base import build_meta
from autopeft.spec.model import Head


@pytest.mark.parametrize(
    ("config", "head", "message"),
    [
        (
            "t5",
            LANGUAGE_HEAD,
            r"must build the model as AutoModelForCausalLM, but .* is 't5', which it builds as .*Seq2",
        ),
        (
            "llama",
            Head(auto_class="AutoModelForMaskedLM"),
            r"is 'llama', which it builds as .*AutoModelForCausalLM; take",
        ),
        ("vit", HEAD, r"is 'vit', which it builds as no class that reads text; take another model"),
        ("t5", HEAD, r"a classifier must read each row alone, but that of .* \(t5\) gathers the end tokens"),
        ("bert", LANGUAGE_HEAD, r"a model that writes must see earlier tokens only, .* \(bert\) is an encoder"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_one_line(config: str, head: Head, message: str, tmp_path: Path) -> None:
    CONFIGS[config]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message) as refused:
        build_meta(str(tmp_path), head, needs_weights=False)
    assert "\n" not in str(refused.value)


def test_an_encoder_that_was_made_a_decoder_writes(tmp_path: Path) -> None:
    transformers.BertConfig(**BERT_LIKE, is_decoder=True).save_pretrained(tmp_path)
    assert build_meta(str(tmp_path), LANGUAGE_HEAD, needs_weights=False).summary.is_decoder
