"""A model whose designs are to be estimated in several settings: built once, without weights."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autopeft.costs.estimator import Estimator
from autopeft.costs.setting import PRECISIONS, Setting
from autopeft.errors import DesignError, ModelError
from autopeft.models.base import Base, build_meta, load_base
from autopeft.models.model_files import has_weights, locate
from autopeft.models.random_weights import with_weights
from autopeft.spec.block import Quantization
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.messages import first_line
from autopeft.spec.model import Head, ModelSummary
from autopeft.spec.training import Kernel
from autopeft.tasks.base import find_task


class ModelCosts:
    """Says what designs on one model cost, in as many settings as are asked for.

    Attributes:
        summary: The model's structure.
        has_weights: Whether its weights are on this machine, all of them.
    """

    def __init__(
        self,
        model: Any,
        *,
        task: str,
        kernel: Kernel = "sdpa",
        head: Head | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Build the model's shapes.

        Args:
            model: Hub id, local folder (a `config.json` is enough), configuration, or a model that has one.
            task: What it would be trained for.
            kernel: Attention kernel.
            head: What the model has on top, where it is not what the task asks for.
            revision: Branch, tag or commit of a hub id.
            trust_remote_code: Whether to run Python code that the model brings.

        Raises:
            ModelError: There is no such model, or its structure is not understood.
        """
        self._kernel: Kernel = kernel
        self._model = model
        self._head = head or find_task(task).example_head
        self._revision = revision
        self._trust_remote_code = trust_remote_code
        self._estimators: dict[Setting, Estimator] = {}
        self._machines: dict[Setting, Estimator] = {}
        with _folder(model) as name:
            self._base: Base = build_meta(
                name,
                self._head,
                kernel=kernel,
                revision=revision,
                trust_remote_code=trust_remote_code,
                needs_weights=False,
            )
            folder = locate(name, revision=revision, trust_remote_code=trust_remote_code, needs_weights=False)
            self.has_weights = has_weights(folder)

    @property
    def summary(self) -> ModelSummary:
        """Return the model's structure."""
        return self._base.summary

    def at(self, setting: Setting) -> Estimator:
        """Return what estimates designs in a setting; its answers are kept.

        Raises:
            DesignError: The sequences are longer than the model's positions.
        """
        if setting not in self._estimators:
            longest = _n_positions(self.summary)
            if longest is not None and setting.sequence_length > longest:
                raise DesignError(
                    "sequence_length <= n_positions must hold, but got "
                    f"sequence_length={setting.sequence_length}, n_positions={longest}; shorten the sequences, or take "
                    "a model with more positions"
                )
            self._estimators[setting] = self._machine(setting).resized(setting.workload)
        return self._estimators[setting]

    def _machine(self, setting: Setting) -> Estimator:
        """Return an estimator for some batches: those for others share the quantized models with it."""
        machine = replace(setting, batch_size=1, sequence_length=1, n_steps=1)
        if machine not in self._machines:
            self._machines[machine] = Estimator(
                self._base,
                workload=machine.workload,
                precision=PRECISIONS[setting.dtype],
                kernel=self._kernel,
                device=setting.device,
                optimizer=setting.optimizer,
                checkpointing=setting.checkpointing,
            )
        return self._machines[machine]

    def load(self, quantization: Quantization, setting: Setting) -> Base:
        """Load the model onto the device: with its weights where they are on this machine, else with random ones.

        Raises:
            ModelError: The weights cannot be loaded.
            MissingDependencyError: The quantization needs a package that is not installed.
        """
        trust = self._trust_remote_code
        with ExitStack() as folders:
            name = folders.enter_context(_folder(self._model))
            folder = folders.enter_context(
                with_weights(name, self._head, revision=self._revision, trust_remote_code=trust)
            )
            return load_base(
                folder,
                self._head,
                quantization=quantization,
                precision=PRECISIONS[setting.dtype],
                kernel=self._kernel,
                device=setting.device,
                trust_remote_code=trust,
            )

    def cost(self, design: Design, setting: Setting) -> Estimate:
        """Return the cost of a design.

        Raises:
            DesignError: The design, or the length of the sequences, is illegal on this model.
            ModelError: The model computes what tensors without data cannot.
        """
        with self.explaining():
            return self.at(setting)(design)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn what torch says of a step that it cannot run into a `ModelError`."""
        try:
            yield
        except RuntimeError as error:
            raise ModelError(
                f"a step of {self.summary.architecture} must run on tensors without data, but torch says: "
                f"{first_line(error)}; please report it, with the configuration"
            ) from error

    def estimate(self, design: Design, setting: Setting) -> Estimate:
        """Return the cost of a design beside what the base costs alone.

        Raises:
            DesignError, ModelError: As `cost`.
        """
        answer = self.cost(design, setting)
        alone = self.cost(Design(quantization=design.quantization), setting) if design.blocks else answer
        return replace(
            answer,
            base_params=self.summary.n_parameters,
            n_tokens=setting.sequence_length,
            base_inference_flops=alone.inference_flops,
        )


@contextmanager
def _folder(model: Any) -> Iterator[str]:
    """Give the name of a model: its own, or of a folder with its configuration for as long as the block lasts."""
    if isinstance(model, str | Path):
        yield str(model)
        return
    config = getattr(model, "config", model)
    if not hasattr(config, "model_type") or not hasattr(config, "save_pretrained"):
        raise ModelError(
            "model must be a hub id, a local folder, a transformers configuration, or a model that has one, "
            f"but got {type(model).__name__}"
        )
    with TemporaryDirectory() as parent:
        folder = Path(parent) / type(config).__name__
        config.save_pretrained(folder)
        try:
            yield str(folder)
        except ModelError as error:  # the folder is ours: the user knows the configuration
            raise ModelError(str(error).replace(repr(str(folder)), folder.name)) from error


def _n_positions(summary: ModelSummary) -> int | None:
    """Return the most tokens that an example may have, going in and being written; images and sound have none."""
    limits = (summary.n_positions if summary.modality == "text" else None, summary.n_target_positions)
    return min((limit for limit in limits if limit is not None), default=None)
