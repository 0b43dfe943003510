"""Visual prompts, deep and shallow, against the layers run by hand."""

import pytest
import torch
from tiny_models import design, inputs_for, logits, perturb

from autopeft.errors import DesignError
from autopeft.models.attach import attach
from autopeft.models.base import Base

IMAGES = ("vit", "dinov2")
LENGTH = 5
SHALLOW = design({"prompt": {"length": LENGTH}})


def classify(base: Base, hidden: torch.Tensor) -> torch.Tensor:
    """Answer from what the last layer of a vision model writes, as each architecture's head reads it."""
    model = base.model
    hidden = model.base_model.layernorm(hidden)
    if model.config.model_type == "dinov2":
        return model.classifier(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1))
    return model.classifier(hidden[:, 0])


@pytest.mark.parametrize("name", IMAGES)
def test_beside_an_image_it_is_shallow_visual_prompt_tuning(bases: dict[str, Base], name: str) -> None:
    """Jia et al., eq. 4 and 5: one prompt goes through all layers; the head reads the class token and the patches."""
    base, inputs = bases[name], inputs_for(name)
    with attach(base, SHALLOW) as attached, torch.no_grad():
        answer = logits(base.model, inputs)
        (tokens,) = attached.groups["prompt"]
        assert tokens.abs().max() <= (6 / (3 * 4 * 4 + 32)) ** 0.5
        layers = [base.model.get_submodule(layer.path) for layer in base.summary.layers]
        parts = base.model.base_model.embeddings(**inputs).split([1, 16], 1)
        hidden = torch.cat([parts[0], tokens.expand(3, -1, -1), parts[1]], 1)
        for layer in layers:
            hidden = layer.forward(hidden)  # without the hooks
        hidden = torch.cat([hidden[:, :1], hidden[:, 1 + LENGTH :]], 1)
        torch.testing.assert_close(answer, classify(base, hidden), atol=1e-5, rtol=1e-5)
    assert SHALLOW.serving(base.summary) == "autopeft"


@pytest.mark.parametrize("name", IMAGES)
def test_a_deep_prompt_is_deep_visual_prompt_tuning_with_a_length_for_each_group(
    bases: dict[str, Base], name: str
) -> None:
    """Jia et al., eq. 6, and groups of layers with lengths of their own, as NOAH searches them."""
    base, inputs = bases[name], inputs_for(name)
    blocks = [{"deep_prompt": {"length": 4, "layers": [0]}}, {"deep_prompt": {"length": 2, "layers": [2]}}]
    with attach(base, design(*blocks)) as attached, torch.no_grad():
        perturb(attached)
        answer = logits(base.model, inputs)
        prompts = {len(p): p for p in attached.groups["deep_prompt"]}
        hidden = base.model.base_model.embeddings(**inputs)
        for index, length in enumerate((4, 0, 2)):
            layer = base.model.get_submodule(base.summary.layers[index].path)
            own = [prompts[length].expand(3, -1, -1)] if length else []
            written = layer.forward(torch.cat([hidden[:, :1], *own, hidden[:, 1:]], 1))
            hidden = torch.cat([written[:, :1], written[:, 1 + length :]], 1)
        torch.testing.assert_close(answer, classify(base, hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_a_shallow_and_a_deep_prompt_go_through_one_layer_and_each_is_taken_off(
    bases: dict[str, Base], name: str
) -> None:
    base, inputs = bases[name], inputs_for(name)
    blocks = [{"prompt": {"length": LENGTH}}, {"deep_prompt": {"length": 2, "layers": [0, 2]}}]
    with attach(base, design(*blocks)) as attached, torch.no_grad():
        perturb(attached)
        answer = logits(base.model, inputs)
        first, last = attached.groups["deep_prompt"]
        parts = base.model.base_model.embeddings(**inputs).split([1, 16], 1)
        hidden = torch.cat([parts[0], attached.groups["prompt"][0].expand(3, -1, -1), parts[1]], 1)
        for layer, own in zip(base.summary.layers, (first, first[:0], last), strict=True):
            read = torch.cat([own.expand(3, -1, -1), hidden], 1)
            hidden = base.model.get_submodule(layer.path).forward(read)[:, len(own) :]
        hidden = torch.cat([hidden[:, :1], hidden[:, 1 + LENGTH :]], 1)
        torch.testing.assert_close(answer, classify(base, hidden), atol=1e-5, rtol=1e-5)


def test_deep_prompts_that_cannot_be_are_refused(bases: dict[str, Base]) -> None:
    with pytest.raises(DesignError, match="needs a vision model, but BertForSequenceClassification reads text"):
        attach(bases["bert"], design({"deep_prompt": {"length": 2}}))
    with pytest.raises(DesignError, match="one deep prompt, but layer 1 has two"):
        attach(
            bases["vit"],
            design({"deep_prompt": {"length": 2, "layers": [0, 1]}}, {"deep_prompt": {"length": 3, "layers": [1]}}),
        )
