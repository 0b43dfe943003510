"""What a design costs (known before training), what it cost (measured), and the limits on it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from autopeft.errors import BudgetError
from autopeft.spec.design import Serving
from autopeft.spec.messages import echo, unknown_key
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import COSTS
from autopeft.spec.units import (
    format_bytes,
    format_count,
    format_moment,
    parse_bytes,
    parse_count,
    parse_multiple,
    parse_share,
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The shapes that a full training and its evaluations will make, known once the data is tokenized.

    Attributes:
        batch_size: Examples of the largest batch of a training step.
        evaluation_batch_size: Examples of the largest batch of an evaluation, of any split.
        max_tokens: Length of the longest input after truncation and padding, in any split.
        n_steps: Optimizer steps of a full training.
        n_examples: Examples seen by a full training: epochs x training split.
        n_train_tokens: Tokens of a full training, padding included.
    """

    batch_size: int
    evaluation_batch_size: int
    max_tokens: int
    n_steps: int
    n_examples: int
    n_train_tokens: int

    @classmethod
    def uniform(cls, *, batch_size: int, n_tokens: int, n_steps: int = 1) -> "Workload":
        """Return that of steps and evaluations of equal batches, all of whose examples have the same length."""
        n_examples = n_steps * batch_size
        return cls(
            batch_size=batch_size,
            evaluation_batch_size=batch_size,
            max_tokens=n_tokens,
            n_steps=n_steps,
            n_examples=n_examples,
            n_train_tokens=n_examples * n_tokens,
        )


_NAME_WIDTH = 22
_AT_PEAK = {
    "base": "base",
    "trainable": "adapters and head",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "scratch": "scratch of kernels",
}
_SERVING: Mapping[Serving, str] = {
    "merge": "can be merged into the base",
    "peft": "stock PEFT can load it",
    "autopeft": "autopeft loads it",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a design, known before training.

    Attributes:
        trainable_params: Every parameter that trains, new modules included; exact.
        head_params: The part of `trainable_params` in new modules (head, pooler).
        adapter_bytes: Size of the exported adapter's tensors, new modules included.
        base_bytes: Storage of the frozen base at the design's quantization.
        peak_memory: Highest sum of live storage bytes over a training step and an evaluation step at
            the study's batch size and longest batch, and of a language model over the writing of samples.
        train_flops: Floating-point operations of the full training.
        inference_flops: Floating-point operations of the forward pass for one example of the longest length.
        serving: Who serves the trained design: the base that it is merged into, stock PEFT, or autopeft alone.
        version: Which estimator said so.
        step_flops: Floating-point operations of one training step at the longest length.
        at_peak: Bytes at the peak by what they are for: `base`, `trainable`, `gradients`, `optimizer`, `activations`
            and `scratch` (what a kernel needs while it runs); they sum up to `peak_memory`.
        reserved_memory: Highest bytes that CUDA's caching allocator would hold; None where the device is a CPU.
        base_params: Parameters of the unquantized base; 0 where nobody asked.
        n_tokens: Tokens of the example that `inference_flops` is for; 0 where nobody asked.
        base_inference_flops: The same with nothing attached but the head; 0 where nobody asked.
        predicted_step_seconds: What a training step would take, from its FLOPs and the steps of a small LoRA that were
            timed on the device; None where nothing was timed.
        step_seconds: Measured median time of a training step; None where it was not timed.
        added_latency_seconds: Measured median of what the design adds to the forward pass of a batch, for each of its
            tokens; None as above.
        added_latency_range_seconds: Lowest and highest of the rounds that are behind that median.
        base_latency_seconds: Measured median of the forward pass with nothing attached but the head, a token.
        n_rounds: Rounds in which the design and the base alone were timed in turns.
    """

    trainable_params: int
    head_params: int
    adapter_bytes: int
    base_bytes: int
    peak_memory: int
    train_flops: int
    inference_flops: int
    serving: Serving
    version: str
    step_flops: int = 0
    at_peak: Mapping[str, int] = field(default_factory=dict)
    reserved_memory: int | None = None
    base_params: int = 0
    n_tokens: int = 0
    base_inference_flops: int = 0
    predicted_step_seconds: float | None = None
    step_seconds: float | None = None
    added_latency_seconds: float | None = None
    added_latency_range_seconds: tuple[float, float] | None = None
    base_latency_seconds: float | None = None
    n_rounds: int = 0

    def __str__(self) -> str:
        """Write every cost for people, in lines of a name, an amount and what it means."""
        return "\n".join(
            f"{name:<{_NAME_WIDTH}}{amount:>11}  {meaning}".rstrip() for name, amount, meaning in self._rows()
        )

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        head = f"{self.head_params:,} of them in the head" if self.head_params else "no new head"
        if self.base_params:
            share = f"{self.trainable_params / self.base_params:.2%} of the base's {format_count(self.base_params)}"
            head = f"{share}; {head}"
        yield "trainable parameters", format_count(self.trainable_params), head
        yield "base model", format_bytes(self.base_bytes), "stored, frozen"
        yield "peak memory", format_bytes(self.peak_memory), "the highest of training, evaluating and writing"
        for category, words in _AT_PEAK.items():
            if self.at_peak.get(category):
                yield (
                    f"  {words}",
                    format_bytes(self.at_peak[category]),
                    f"{self.at_peak[category] / self.peak_memory:.1%}",
                )
        if self.reserved_memory is not None:
            yield "reserved memory", format_bytes(self.reserved_memory), "what CUDA's caching allocator holds"
        yield "training step", format_count(self.step_flops), "FLOP"
        yield "inference", format_count(self.inference_flops), f"FLOP an example{self._added_flops()}"
        yield from self._timed_rows()
        yield "adapter on disk", format_bytes(self.adapter_bytes), _SERVING[self.serving]

    def _timed_rows(self) -> Iterator[tuple[str, str, str]]:
        predicted = self.predicted_step_seconds
        if self.step_seconds is not None:
            beside = f"; {format_moment(predicted)} predicted from its FLOP" if predicted is not None else ""
            yield "step time", format_moment(self.step_seconds), f"measured here, median{beside}"
        elif predicted is not None:
            yield "step time", format_moment(predicted), "predicted from its FLOP"
        added, alone, ends = self.added_latency_seconds, self.base_latency_seconds, self.added_latency_range_seconds
        if added is not None and alone and ends:
            low, high = (f"{end / alone:+.1%}" for end in ends)
            over = f"{added / alone:+.1%} over the base alone ({format_moment(alone)})"
            rounds = f"{low} to {high} in {self.n_rounds} rounds" if self.n_rounds > 1 else "one round"
            sign = "+" if added >= 0 else ""
            yield (
                "added latency",
                f"{sign}{format_moment(added)}",
                f"a token of a batch, {over}; measured here, {rounds}",
            )

    def _added_flops(self) -> str:
        """Say what the design adds to the base at inference, where that is known."""
        if not self.base_inference_flops or not self.n_tokens:
            return ""
        added = self.inference_flops - self.base_inference_flops
        merged = ", none once merged" if self.serving == "merge" and added else ""
        per_token = format_count(added / self.n_tokens)
        return f", {added / self.base_inference_flops:+.2%} over the base alone ({per_token} a token{merged})"

    @property
    def device_bytes(self) -> int:
        """Return what a device must have for the design: on CUDA what the caching allocator reserves, else the peak."""
        return max(self.peak_memory, self.reserved_memory or 0)

    def cost(self, name: str) -> int:
        """Return the cost objective called `name`."""
        return int(getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Cost of a trial as it ran, summed over its segments.

    Attributes:
        peak_memory: Highest sum of live tensor bytes seen in a training or evaluation step, or None where none was
            measured.
        train_seconds: Time in training steps.
        evaluation_seconds: Time in evaluations.
        n_steps: Optimizer steps.
        n_tokens: Tokens trained on, padding included.
    """

    peak_memory: int | None = None
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    n_steps: int = 0
    n_tokens: int = 0

    def __add__(self, other: "Measured") -> "Measured":
        """Sum the times and counts, and keep the higher peak."""
        peaks = [peak for peak in (self.peak_memory, other.peak_memory) if peak is not None]
        return Measured(
            peak_memory=max(peaks, default=None),
            train_seconds=self.train_seconds + other.train_seconds,
            evaluation_seconds=self.evaluation_seconds + other.evaluation_seconds,
            n_steps=self.n_steps + other.n_steps,
            n_tokens=self.n_tokens + other.n_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON-ready values."""
        return asdict(self)


def format_cost(name: str, value: float) -> str:
    """Write a cost for people, in its unit."""
    return format_bytes(value) if name in ("peak_memory", "adapter_bytes") else format_count(value)


def format_limits(limits: Mapping[str, int], asked: Mapping[str, str | float] | None = None) -> str:
    """Write a budget for people: `trainable_params 227k, peak_memory 240.0 MiB (0.9x yardstick)`, or `none`.

    Args:
        limits: As amounts.
        asked: The budget as it was asked for; what is relative to the yardstick there is said beside the amount.
    """
    relative = Budget(asked).relative
    texts = [
        f"{name} {format_cost(name, limit)}" + (f" ({relative[name]})" if name in relative else "")
        for name, limit in limits.items()
    ]
    return ", ".join(texts) or "none"


OVER_BUDGET = "over the budget, trained as a reference"
"""What is said of a baseline that exceeds a limit."""
YARDSTICK = "yardstick"
"""What a limit may be a multiple of: the cost of the study's yardstick."""
_MAX_FACTOR = 1000


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """A limit as it was asked for: `amount` of the unit itself, of the base model, or of the yardstick's cost."""

    amount: float
    of: Literal["", "base", "yardstick"] = ""


def _limit(name: str, value: str | float) -> _Limit:
    try:
        limit = _share(name, value) or _multiple(value) or _Limit(amount=_amount(name, value))
    except (ValueError, TypeError) as error:
        raise BudgetError(f"budget.{name} {error}, but got {echo(value)}") from None
    if limit.amount <= 0:
        raise BudgetError(f"budget.{name} > 0 must hold, but got {echo(value)}")
    return limit


def _amount(name: str, value: str | float) -> int:
    try:
        return parse_bytes(value) if name in ("peak_memory", "adapter_bytes") else parse_count(value)
    except ValueError as error:
        raise ValueError(f"{error}, or a multiple of the yardstick's cost such as '0.9x {YARDSTICK}'") from None


def _share(name: str, value: str | float) -> _Limit | None:
    share = parse_share(value)
    if share is None:
        return None
    if name != "trainable_params":
        raise ValueError("must be an amount: only trainable_params can be a percentage, of the base model")
    if not 0 < share <= _MAX_FACTOR:
        raise ValueError("must be above 0% and at most 100,000%")
    return _Limit(amount=share, of="base")


def _multiple(value: str | float) -> _Limit | None:
    multiple = parse_multiple(value)
    if multiple is None:
        if isinstance(value, str) and YARDSTICK in value.lower():
            raise ValueError(f"must be written as a factor and what it multiplies, such as '0.9x {YARDSTICK}'")
        return None
    factor, name = multiple
    if name != YARDSTICK:
        raise ValueError(f"must be a multiple of the yardstick's cost, such as '0.9x {YARDSTICK}'")
    if not 0 < factor <= _MAX_FACTOR:
        raise ValueError(f"must be above 0x and at most {_MAX_FACTOR:,}x {YARDSTICK}")
    return _Limit(amount=factor, of="yardstick")


@dataclass(frozen=True, init=False)
class Budget:
    """Limits on a design's estimate.

    A limit is one of three things:

    - an amount: a number, or a text such as `"8GiB"` (bytes) or `"1.5M"` (a count);
    - for `trainable_params`, a percentage of the unquantized base model: `"2%"`;
    - a multiple of what the study's yardstick costs: `"0.9x yardstick"`. It means the same at any precision and on any
      kernel. The study works out the amount once, before its first trial, and keeps it.

    Args:
        limits: By cost objective.

    Raises:
        BudgetError: A name or a value is not understood.
    """

    limits: Mapping[str, str | float]

    def __init__(self, limits: Mapping[str, str | float] | None = None, **named: str | float) -> None:
        """Take the limits as a mapping, as keywords, or both."""
        merged = {**(limits or {}), **named}
        for name, value in merged.items():
            if name not in COSTS:
                raise BudgetError(unknown_key(f"budget.{name}", COSTS))
            _limit(name, value)
        object.__setattr__(self, "limits", merged)

    @property
    def relative(self) -> dict[str, str]:
        """Return the limits that are multiples of the yardstick's cost, each written in one way: `0.9x yardstick`."""
        limits = {name: _limit(name, value) for name, value in self.limits.items()}
        return {name: f"{limit.amount:g}x {YARDSTICK}" for name, limit in limits.items() if limit.of == "yardstick"}

    def resolve(self, model: ModelSummary, yardstick: Callable[[], Estimate] | None = None) -> dict[str, int]:
        """Return the limits as amounts on this model: bytes, or counts.

        Args:
            model: The unquantized base model.
            yardstick: Returns what the yardstick costs; called once, and only where a limit is relative to it. None
                where there is no yardstick.

        Raises:
            BudgetError: A limit is relative to the yardstick, and there is none, or it costs nothing of that.
        """
        relative = self.relative
        if relative and yardstick is None:
            name = next(iter(relative))
            raise BudgetError(f"budget.{name} must be an amount where there is no yardstick, but got {relative[name]}")
        cost = yardstick() if relative and yardstick is not None else None
        resolved = {}
        for name, value in self.limits.items():
            limit = _limit(name, value)
            whole = {"": 1, "base": model.n_parameters, "yardstick": cost.cost(name) if cost is not None else 0}
            resolved[name] = int(limit.amount * whole[limit.of])
            if not resolved[name]:
                raise BudgetError(
                    f"budget.{name} >= 1 must hold, but {echo(value)} is less, of {whole[limit.of]:,}; "
                    f"raise budget.{name}"
                )
        return resolved


def excess(limits: Mapping[str, int], estimate: Estimate) -> dict[str, float]:
    """Return by how much an estimate exceeds each limit, relative to it; feasible iff every value is <= 0."""
    return {name: estimate.cost(name) / limit - 1.0 for name, limit in limits.items()}
