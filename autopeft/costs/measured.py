"""Costs in seconds: measured on the device at hand, and predicted from there for other designs."""

from collections.abc import Sequence
from dataclasses import replace
from shutil import disk_usage
from statistics import median
from tempfile import gettempdir

from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.sample import CostSample
from autopeft.costs.setting import PRECISIONS, Setting
from autopeft.errors import DesignError
from autopeft.spec.block import Quantization
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.training import Training
from autopeft.spec.units import format_bytes
from autopeft.training.device import available_bytes, is_there, timed_design
from autopeft.training.timing import Run, Times, time_in_turns

_BYTES_A_WEIGHT = 4


def check_device(setting: Setting) -> None:
    """Raise `DesignError` where the device of a setting is not at hand."""
    if not is_there(setting.device):
        raise DesignError(
            f"what is measured runs on the device itself, but torch sees no CUDA device for device={setting.device!r}; "
            "set device to cpu, or do not measure"
        )


class Stopwatch:
    """Times training steps and forward passes on one model and the device at hand.

    A small LoRA is timed with every design, once for each storage of the base: how long its FLOP take is what the
    steps of designs that are not timed are predicted from.

    Omits: what the data does. Batches are random, and as long as the setting says; a checkpoint without weights gets
        random ones, which are as fast.
    """

    def __init__(self, costs: ModelCosts, setting: Setting) -> None:
        """Prepare for designs on one model; weights are loaded when the first one is timed.

        Raises:
            DesignError: The device is not at hand.
        """
        check_device(setting)
        self._costs = costs
        self._setting = setting
        self._training = Training(
            batch_size=setting.batch_size,
            precision=PRECISIONS[setting.dtype],
            kernel=setting.kernel,
            device=setting.device,
            optimizer=setting.optimizer,
            checkpointing=setting.checkpointing,
        )
        self._seconds_per_flop: dict[Quantization, float] = {}

    def measured(self, design: Design, estimate: Estimate) -> Estimate:
        """Return a design's estimate with the seconds that it was timed at, and those that it was predicted at.

        Raises:
            DesignError: The design, or the model on its way to the device, needs more memory than there is.
            ModelError: The weights cannot be loaded.
        """
        self._check_memory(design, estimate)
        bare = Design(quantization=design.quantization)
        runs = [Run(design=design), *([Run(design=bare, trains=False)] if design.blocks else [])]
        timed, *others = self._time(design.quantization, runs)
        alone = others[0] if others else timed
        added = [after - before for after, before in zip(timed.forwards, alone.forwards, strict=True)]
        n_tokens = self._setting.batch_size * self._setting.sequence_length
        return replace(
            self._predicted(design, estimate),
            step_seconds=median(timed.steps) if timed.steps else None,
            added_latency_seconds=median(added) / n_tokens,
            added_latency_range_seconds=(min(added) / n_tokens, max(added) / n_tokens),
            base_latency_seconds=median(alone.forwards) / n_tokens,
            n_rounds=len(added),
        )

    def predicted(self, sample: CostSample) -> CostSample:
        """Return a sample whose estimates say how long a training step is predicted to take.

        Raises:
            DesignError: The small LoRA, or the model on its way to the device, needs more memory than there is.
            ModelError: The weights cannot be loaded.
        """
        return replace(
            sample, costs=tuple((design, self._predicted(design, estimate)) for design, estimate in sample.costs)
        )

    def _predicted(self, design: Design, estimate: Estimate) -> Estimate:
        if not estimate.step_flops:
            return estimate  # nothing trains
        if design.quantization not in self._seconds_per_flop:
            self._time(design.quantization, [])
        seconds = self._seconds_per_flop[design.quantization] * estimate.step_flops
        return replace(estimate, predicted_step_seconds=seconds)

    def _time(self, quantization: Quantization, runs: Sequence[Run]) -> list[Times]:
        """Time designs of one storage beside the small LoRA, whose speed is kept."""
        reference = replace(timed_design(), quantization=quantization)
        known = self._costs.cost(reference, self._setting)
        self._check_memory(reference, known)
        base = self._costs.load(quantization, self._setting)
        # The reference comes first: int8 layers settle in their first pass, which must be one of training.
        all_runs = [Run(design=reference, answers=False), *runs]
        of_reference, *times = time_in_turns(base, all_runs, self._training, n_tokens=self._setting.sequence_length)
        self._seconds_per_flop[quantization] = median(of_reference.steps) / known.step_flops
        return times

    def _check_memory(self, design: Design, estimate: Estimate) -> None:
        """Raise `DesignError` where a design is likely not to fit the device, or its random weights the disk."""
        device, n_bytes = self._setting.device, estimate.device_bytes
        if n_bytes > (there := available_bytes(device)):
            raise DesignError(
                f"what is measured must fit the device, but {design.describe()} is predicted to need "
                f"{format_bytes(n_bytes)}, and {format_bytes(there)} are free on {device}; lower batch_size or "
                "sequence_length, or do not measure"
            )
        if self._costs.has_weights:
            return
        n_bytes = _BYTES_A_WEIGHT * self._costs.summary.n_parameters
        there = min(available_bytes("cpu"), disk_usage(gettempdir()).free)
        if n_bytes > there:
            raise DesignError(
                f"without weights, random ones of {format_bytes(n_bytes)} must fit the memory and {gettempdir()}, but "
                f"{format_bytes(there)} are free; give a folder that has the weights, or do not measure"
            )
