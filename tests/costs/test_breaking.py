"""A design that breaks on an architecture that nobody tried is refused, so that a search goes on without it."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from autopeft.costs.costing import Costing
from autopeft.costs.estimator import Estimator
from autopeft.errors import DesignError
from autopeft.models.base import build_meta
from autopeft.models.technique import Site, Technique
from autopeft.spec import block as blocks
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from tests.architectures.tiny import save_model

N_FORWARDS = []


class BreaksOnAttaching(Technique):
    kind: ClassVar[str] = "test_attaching"
    size_field: ClassVar[str] = "strength"
    strength: int = 1

    def attach(self, site: Site) -> None:
        site.add(site.summary.layers[0].roles["no such role"].path, "test", site.model)


class BreaksInForward(Technique):
    kind: ClassVar[str] = "test_forward"
    size_field: ClassVar[str] = "strength"
    strength: int = 1

    def attach(self, site: Site) -> None:
        site.train(f"{site.summary.layers[0].roles['value'].path}.weight")
        site.hook(site.linear(0, "value"), self.fail)

    def fail(self, _module: Any, _args: Any, output: Any) -> Any:
        N_FORWARDS.append(1)
        return output[:, 1:] + output


@pytest.fixture
def estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Estimator:
    blocks.block_kinds()
    for technique in (BreaksOnAttaching, BreaksInForward):
        monkeypatch.setitem(blocks._REGISTRY, technique.kind, technique)
    base = build_meta(save_model("causal-lm", "opt", tmp_path), Head(auto_class="AutoModelForCausalLM"))
    workload = Workload.uniform(batch_size=2, n_tokens=8)
    return Estimator(base, workload=workload, precision="fp32", kernel="sdpa", device="cpu")


def test_a_design_that_breaks_is_refused_with_the_reason(estimator: Estimator) -> None:
    costing = Costing(estimator, limits={"peak_memory": 10**9})
    attaching, forward = (Design.from_dict({"blocks": [{kind: {}}]}) for kind in ("test_attaching", "test_forward"))
    message = "test_attaching must fit the model, but .* OPTForCausalLM ends in KeyError: 'no such role'; take"
    for ask in (costing, costing.trainable_params, costing.lower_bound):
        with pytest.raises(DesignError, match=message):
            ask(attaching)
    with pytest.raises(DesignError, match=r"must run on its model, but .* ends on OPTForCausalLM in .*; take it out"):
        costing(forward)
    n_forwards = len(N_FORWARDS)
    with pytest.raises(DesignError, match="must run on its model"):
        costing(forward)
    assert len(N_FORWARDS) == n_forwards, "what broke once is not tried again"
    assert costing(Design.from_dict({"blocks": [{"lora": {"rank": 2}}]})).trainable_params > 0


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_writing_after_a_prompt_is_estimated_where_positions_are_learned(estimator: Estimator, kind: str) -> None:
    """OPT's table counts the tokens of the mask, which holds the prompt once and not twice."""
    design = Design.from_dict({"blocks": [{kind: {"length": 3}}]})
    with_design, without = estimator.generation(design), estimator.generation(Design())
    assert with_design is not None
    assert without is not None
    assert with_design.flops > without.flops
