"""Techniques that train parameters of the base itself: what they have in common."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from autopeft.models.technique import Site, Technique
from autopeft.spec.model import ModelSummary


class SelectiveTechnique(Technique):
    """A block that trains what the base has and brings nothing; a subclass says what, in `base_parameters`.

    Training goes on from the base's values, so that the step-0 model is the base model.
    """

    stage: ClassVar[int] = -1  # before anything wraps the modules that hold the parameters

    @property
    def mergeable(self) -> bool:
        """Return True: the parameters are the base's own."""
        return True

    def base_parameters(self, model: ModelSummary) -> Iterator[str]:
        """Yield the paths of the parameters that train."""
        raise NotImplementedError

    def attach(self, site: Site) -> None:
        """Train copies of the parameters in their places."""
        for path in self.base_parameters(site.summary):
            site.train(path)

    @classmethod
    def merge(cls, blocks: Sequence[Any], site: Site) -> None:
        """Do nothing: what trained is in its place already."""
