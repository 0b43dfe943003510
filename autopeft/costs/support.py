"""Whether the costs of designs on a model can be told at all: asked once, before a search."""

from autopeft.costs.estimator import Estimator
from autopeft.errors import AutopeftError, DesignError, ModelError
from autopeft.models.base import Base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.messages import first_line


def require_estimates(base: Base) -> None:
    """Check that a step of a model on the meta device runs.

    Raises:
        ModelError: It does not: some architectures look at values, such as which tokens an expert gets.
    """
    short = Workload.uniform(batch_size=2, n_tokens=8)
    estimator = Estimator(base, workload=short, precision="fp32", kernel=base.kernel, device="cpu", n_threads=1)
    try:
        estimator(Design())
    except DesignError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, AutopeftError):
            raise  # the architecture is refused, with its own reason
        reason = first_line(cause)
        raise ModelError(
            "a step must run on torch's meta device, without weights, so that costs are known before training, but "
            f"one of {base.summary.architecture} does not: {type(cause).__name__}: {reason}; take another model"
        ) from error
