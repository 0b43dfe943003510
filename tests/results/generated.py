"""A study as a search leaves it, generated: designs, scores from real predictions, costs, and the files beside them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.metrics import METRICS
from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design
from autopeft.spec.state import StudyState, TestScore
from autopeft.spec.study import make_study
from autopeft.spec.training import Training
from autopeft.spec.trial import Outcome, RungScore, Sample, TrialRecord
from tests.conftest import make_summary

FULL = 4000
N_EXAMPLES = {"validation": 600, "test": 800}
LIMITS = {"trainable_params": 450_000, "peak_memory": 600 * 2**20}
HEAD = 148_610
MODEL = replace(make_summary(), name="sentence-transformers/all-MiniLM-L6-v2", n_head_parameters=HEAD)


def lora(rank: int, layers: Any = "all") -> dict[str, Any]:
    return {"lora": {"rank": rank, "alpha": 2 * rank, "roles": ["query", "value"], "layers": layers}}


def adapter(size: int, layers: Any = "all") -> dict[str, Any]:
    return {"adapter": {"size": size, "mode": "parallel", "at": ["mlp"], "layers": layers}}


def prefix(length: int, layers: Any = "all") -> dict[str, Any]:
    return {"prefix": {"length": length, "layers": layers}}


@dataclass(kw_only=True)
class Builder:
    """Makes trials one by one, with predictions on disk for those that trained in full."""

    folder: Path
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    trials: list[TrialRecord] = field(default_factory=list)
    tests: dict[int, TestScore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels = {split: self.rng.integers(2, size=n) for split, n in N_EXAMPLES.items()}
        # How hard each example is: what designs share, so that pairing has something to take out.
        self.ease = {split: self.rng.random(n) for split, n in N_EXAMPLES.items()}
        for split, labels in self.labels.items():
            self._write(f"predictions/{split}-labels.json", labels.tolist())

    def add(
        self,
        *blocks: dict[str, Any],
        params: int,
        skill: float | None = None,
        outcome: Outcome = Outcome.COMPLETE,
        quantization: str = "none",
        memory_mib: float = 300.0,
        tested: bool = False,
        share: float = 1.0,
        **fields: Any,
    ) -> TrialRecord:
        number = len(self.trials)
        design = Design.from_dict({"quantization": quantization, "blocks": list(blocks)})
        scores, errors = self._score("validation", number, skill, save=outcome is Outcome.COMPLETE)
        estimate = make_estimate(design, params, memory_mib)
        excess = {name: estimate.cost(name) / limit - 1 for name, limit in LIMITS.items()}
        trained = share * FULL if outcome is not Outcome.INFEASIBLE else 0
        record = TrialRecord(
            number=number,
            design=design,
            learning_rates={"head": 1e-3, **dict.fromkeys(design.kinds, 0.002)},
            seed=number,
            outcome=outcome,
            estimate=estimate,
            excess=excess,
            scores=scores,
            standard_errors=errors,
            rungs=self._rungs(skill, trained),
            measured=self._measured(memory_mib, trained),
            examples=round(trained),
            **fields,
        )
        if outcome is Outcome.COMPLETE:
            described = {"schema_version": 1, "design": design.to_dict(), "format": "autopeft", "metadata": {}}
            self._write(f"adapters/{number}/autopeft.json", described)
            self._write(f"adapters/{number}/adapter_model.safetensors", "not read here")
        if tested:
            test_scores, test_errors = self._score(
                "test", number, None if skill is None else skill - self.rng.uniform(0, 0.02), save=True
            )
            self.tests[number] = TestScore(scores=test_scores, standard_errors=test_errors)
        self.trials.append(record)
        return record

    def predict(self, split: str, skill: float) -> np.ndarray:
        noisy = self.ease[split] + 0.15 * self.rng.normal(size=len(self.ease[split]))
        right = noisy < np.quantile(noisy, skill)
        return np.where(right, self.labels[split], 1 - self.labels[split])

    def state(self, **changes: Any) -> StudyState:
        values = {"model": MODEL.name, "data": "reviews.csv", "study_name": self.folder.name}
        base = StudyState(
            folder=self.folder,
            spec=make_study({**values, "output_dir": "runs", "budget": {"trainable_params": "2%"}, "timeout": "10m"}),
            model=MODEL,
            training=Training(precision="bf16", kernel="eager", device="cpu", max_length=128),
            metric="accuracy",
            limits=LIMITS,
            n_full_examples=FULL,
            trials=tuple(self.trials),
            n_refused={"trainable_params": 7, "peak_memory": 3, "requirement": 2},
            tests=self.tests,
            notes=("Splits were made by group film: 9,000 / 600 / 800.", "12 of 10,400 texts were cut at 128 tokens."),
            facts={
                "labels": ["bad", "good"],
                "n_train": 9000,
                "step_seconds": 0.1234567,
                "versions": {"torch": "2.13.0"},
            },
        )
        return replace(base, **changes)

    def _score(
        self, split: str, number: int, skill: float | None, *, save: bool
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        if skill is None:
            return {}, {}
        predictions = self.predict(split, skill)
        if save:
            self._write(f"predictions/{split}-{number}.json", predictions.astype(float).tolist())
        results = {name: metric.score(self.labels[split], predictions) for name, metric in METRICS.items()}
        return {name: value for name, (value, _) in results.items()}, {name: se for name, (_, se) in results.items()}

    def _rungs(self, skill: float | None, trained: float) -> tuple[RungScore, ...]:
        if skill is None:
            return ()
        reached = [(i, f) for i, f in enumerate((0.25, 0.5)) if f * FULL <= trained]
        return tuple(
            RungScore(rung=i, examples=round(f * FULL), scores={"accuracy": skill - 0.08 * (1 - f)}) for i, f in reached
        )

    def _measured(self, memory_mib: float, trained: float) -> Measured:
        if not trained:
            return Measured()
        peak = round(memory_mib * 2**20 * (1 + 0.02 * self.rng.normal()))
        return Measured(
            peak_memory=peak, train_seconds=trained / 110, evaluation_seconds=2.0, n_steps=round(trained / 32)
        )

    def _write(self, name: str, values: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


def make_estimate(design: Design, params: int, memory_mib: float = 300.0) -> Estimate:
    quantized = design.quantization != "none"
    return Estimate(
        trainable_params=params,
        head_params=HEAD,
        adapter_bytes=4 * params,
        base_bytes=4 * MODEL.n_parameters // (3 if quantized else 1),
        peak_memory=round(memory_mib * 2**20),
        train_flops=10**12 + 9 * params,
        inference_flops=10**9 + params,
        serving="autopeft" if quantized or len(design.kinds) > 1 or "adapter" in design.kinds else "merge",
        version="test",
    )


def fill(build: Builder) -> Builder:
    """Twenty-two trials as a search leaves them: every outcome, two chains, both baselines."""
    add = build.add
    add(lora(8), params=222_338, skill=0.800, memory_mib=420, tested=True, baseline="yardstick")
    add(params=HEAD, skill=0.700, memory_mib=180, tested=True, baseline="head")
    add(lora(1, [5]), params=150_146, skill=0.752, memory_mib=260, tested=True)
    add(lora(4, [4, 5]), params=160_898, skill=0.787, memory_mib=290, tested=True)
    add(lora(2), adapter(4, [5]), params=170_900, skill=0.797, memory_mib=390, tested=True)
    add(prefix(8, [4, 5]), params=160_900, skill=0.71, memory_mib=350)
    add(adapter(16), params=225_000, skill=0.805, memory_mib=405, tested=True)
    add(lora(16), params=296_066, skill=0.803, memory_mib=430)
    add(lora(16), prefix(4), params=305_000, skill=0.815, memory_mib=460, tested=True)
    add(lora(32), params=443_522, skill=0.812, memory_mib=440, quantization="nf4")
    early = {"outcome": Outcome.STOPPED, "reason": "not among the best of its cost at 25%", "share": 0.25}
    add(prefix(16), params=185_500, skill=0.66, **early)
    add(prefix(2, [5]), params=150_150, skill=0.61, **early)
    stopped = add(adapter(64, [3, 4, 5]), params=299_000, skill=0.74, **early)
    add(adapter(4), params=168_000, skill=0.70, outcome=Outcome.STOPPED, share=0.5, reason="not among the best")
    over = Outcome.INFEASIBLE
    add(lora(32), adapter(64), params=743_000, memory_mib=520, outcome=over, reason="exceeds the budget")
    add(adapter(256), params=1_340_000, memory_mib=700, outcome=over)
    add(lora(2), params=167_000, outcome=Outcome.FAILED, share=0.1, reason="FloatingPointError: the loss is not finite")
    add(lora(8), adapter(64), params=372_000, outcome=Outcome.OUT_OF_MEMORY, share=0.0, reason="needed 1.2 GiB more")
    continued = add(
        adapter(64, [3, 4, 5]), params=299_000, skill=0.822, memory_mib=400, tested=True, continues=stopped.number
    )
    broken_off = add(lora(1), params=157_826, outcome=Outcome.INTERRUPTED, share=0.4, reason="the search was killed")
    add(lora(1), params=157_826, skill=0.79, memory_mib=380, tested=True, continues=broken_off.number)
    add(
        lora(4),
        adapter(16),
        params=263_000,
        outcome=Outcome.INTERRUPTED,
        share=0.3,
        reason="the time limit was reached",
    )
    assert continued.continues == stopped.number
    return build


PROMPTS = (
    ("Review of a slow film:", "A patient film that rewards the patient."),
    ("Review of <b>a sequel</b>:", "More of the same & less of it."),
    ("Review of a debut:", ""),
    ("Review of a remake:", "Nobody asked, and here it is."),
)


def language_model(build: Builder) -> StudyState:
    """A study of a language model: perplexity, no head, the base model as it is, and samples."""
    fill(build)
    base = build.add(params=0, skill=0.5, baseline="base", memory_mib=150, tested=True)
    state = build.state()
    values = {"objectives": ("perplexity", "trainable_params"), "task": "causal-lm", "data": "reviews.jsonl"}
    says = {
        0: "It is a film. <script>alert(1)</script>",
        base.number: "film film film film",
        18: "Tender, and a little too long.",
        20: "A good film.",
        3: "Fine.",
    }
    return replace(
        state,
        spec=state.spec.model_copy(update=values),
        metric="perplexity",
        limits={"trainable_params": 450_000},
        trials=tuple(_with_perplexity(trial) for trial in build.trials),
        tests={
            number: TestScore(scores=_perplexity(test.scores), standard_errors={"perplexity": 0.4})
            for number, test in build.tests.items()
        },
        samples={
            number: tuple(
                Sample(prompt=prompt, output=" ".join([words] * (index + 1)), reference=reference)
                for index, (prompt, reference) in enumerate(PROMPTS)
            )
            for number, words in says.items()
        },
    )


def _with_perplexity(trial: TrialRecord) -> TrialRecord:
    """The same trial with a perplexity in place of its scores: 20 to 60, falling with accuracy."""
    scores = _perplexity(trial.scores)
    return replace(
        trial,
        scores=scores,
        standard_errors=dict.fromkeys(scores, 0.4),
        rungs=tuple(replace(rung, scores=_perplexity(rung.scores)) for rung in trial.rungs),
        excess={"trainable_params": trial.excess["trainable_params"]},
        **({"learning_rates": {}, "examples": 0, "measured": Measured()} if trial.baseline == "base" else {}),
    )


def _perplexity(scores: Mapping[str, float]) -> dict[str, float]:
    return {"perplexity": 20 + 130 * (0.85 - scores["accuracy"])} if scores else {}


def many(build: Builder, n_trials: int) -> StudyState:
    """A study of many random trials, of which the rank of LoRA, where it is used, decides nearly everything.

    Half of the trials have no LoRA. The adapter's size decides a little; learning rates and the prefix decide nothing.
    """
    rng = np.random.default_rng(7)
    for index in range(n_trials):
        uses = rng.random(3) < 0.5
        rank, size, length = 2 ** int(rng.integers(0, 6)), 4 ** int(rng.integers(1, 4)), int(rng.integers(1, 32))
        layers = tuple(range(int(rng.integers(0, 6)), 6))
        blocks = [
            block
            for used, block in zip(uses, (lora(rank), adapter(size, layers), prefix(length, layers)), strict=True)
            if used
        ]
        skill = 0.70 + (0.03 * np.log2(rank) if uses[0] else 0.0) + (0.002 * size**0.5 if uses[1] else 0.0)
        params = (
            HEAD + int(uses[0]) * 9216 * rank + int(uses[1]) * 768 * size * len(layers) + int(uses[2]) * 768 * length
        )
        complete = index % 3 != 2
        record = build.add(
            *blocks,
            params=params,
            skill=float(skill + 0.003 * rng.normal()),
            outcome=Outcome.COMPLETE if complete else Outcome.STOPPED,
            share=1.0 if complete else 0.25,
            memory_mib=150 + 20 * len(layers) * int(uses[1]) + 100 * int(uses[0]),
        )
        rates = {name: float(10 ** rng.uniform(-4, -2)) for name in record.learning_rates}
        build.trials[-1] = replace(record, learning_rates=rates)
    return build.state()
