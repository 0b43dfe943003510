"""What a search asks of a sampler: designs to try, from all that is known of those that were tried."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from optuna.distributions import BaseDistribution

from autopeft.spec import plugins
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import Objective
from autopeft.spec.space import Draw, SearchSpace
from autopeft.spec.trial import TrialRecord

ENTRY_POINT_GROUP = "autopeft.samplers"
"""Each entry is the name of a sampler, and a `SamplerFactory`."""


Lesson = Literal["complete", "worse", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A design that a sampler proposes, with the parameters that made it.

    Attributes:
        ticket: What the sampler knows the proposal by.
        draw: The design with its learning rates, and the rule of the space that it breaks, if any.
        params: Parameters by name, as Optuna records them.
        distributions: What each was drawn from.
    """

    ticket: int
    draw: Draw
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What became of a proposal.

    Attributes:
        params: As in the proposal.
        distributions: As in the proposal.
        lesson: `complete` where the design trained in full, and is to be learned from by its objectives; `worse` where
            it was stopped, refused or diverged, and is to be learned from as a bad one; `nothing` otherwise.
        record: The trial, with its scores at rungs and its exact costs; None where it was refused unrecorded.
        excess: By how much its costs exceed each limit, relative to the limit; a reason in words stands for 1.
        ticket: Of the proposal; None for a trial that this sampler did not propose.
    """

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    lesson: Lesson
    record: TrialRecord | None = None
    excess: Mapping[str, float] = field(default_factory=dict)
    ticket: int | None = None


class Sampler(Protocol):
    """Proposes designs of a space.

    A proposal that was not observed yet counts as running. Equal seeds and histories give equal proposals.
    """

    def suggest(self, n: int = 1, *, at_random: bool = False) -> list[Proposal]:
        """Propose designs.

        Args:
            n: How many.
            at_random: Draw without regard to what is known, for when a sampler insists on what is refused.
        """

    def update(self, observations: Iterable[Observation]) -> None:
        """Take in what became of proposals, and trials of other runs, drivers or baselines."""


class SamplerFactory(Protocol):
    """Makes a sampler for a study."""

    def __call__(
        self, *, space: SearchSpace, model: ModelSummary, objectives: Sequence[Objective], seed: int
    ) -> Sampler:
        """Return a new sampler.

        Args:
            space: What designs are drawn from.
            model: What they are attached to.
            objectives: Of the study, in the order of its values.
            seed: Of all that is random.
        """


def sampler_names() -> tuple[str, ...]:
    """Return the names of all installed samplers, autopeft's own first; nothing of them is imported."""
    return plugins.names(ENTRY_POINT_GROUP)


def make_sampler(
    name: str, *, space: SearchSpace, model: ModelSummary, objectives: Sequence[Objective], seed: int
) -> Sampler:
    """Return a new sampler by name; `auto` is `tpe`.

    Raises:
        StudyError: There is none of that name, or it cannot search this space.
    """
    factory: SamplerFactory = plugins.load(ENTRY_POINT_GROUP, "tpe" if name == "auto" else name)
    return factory(space=space, model=model, objectives=objectives, seed=seed)
