"""Every error that autopeft raises on purpose.

Each is also the standard-library error that a caller would expect, takes one message, and survives
pickling. A message says the rule, the value that broke it, and the way out. It fits on a screen.
"""

MAX_MESSAGE = 1500
"""Characters of a message: about a screen."""
_LEFT_OUT = " ... [{:,} characters left out] ... "


class AutopeftError(Exception):
    """Base of all errors that autopeft raises on purpose.

    Args:
        message: In one line. Of a very long one the middle is left out: the rule stands at the beginning, and the way
            out at the end.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_on_a_screen(message))


def _on_a_screen(message: str) -> str:
    if len(message) <= MAX_MESSAGE:
        return message
    kept = MAX_MESSAGE - len(_LEFT_OUT) - 10
    start = kept * 2 // 3
    return message[:start] + _LEFT_OUT.format(len(message) - kept) + message[start - kept :]


class DesignError(AutopeftError, ValueError):
    """A design that is malformed, or illegal on the model it is meant for."""


class SpaceError(AutopeftError, ValueError):
    """A search space that cannot be read, or is illegal on the model it is meant for."""


class StudyError(AutopeftError, ValueError):
    """A study description with an unknown key or an illegal value."""


class StudyMismatchError(AutopeftError, ValueError):
    """A study folder that belongs to another model, data set, space or objective."""


class StudyLockedError(AutopeftError, RuntimeError):
    """A study folder that another running search holds."""


class StorageError(AutopeftError, OSError):
    """A study that cannot be written: a full disk, or a storage that cannot be reached."""


class BudgetError(AutopeftError, ValueError):
    """A budget that cannot be read, or that no design of the space meets."""


class DataError(AutopeftError, ValueError):
    """Data that cannot be read, or that the task cannot use."""


class ModelError(AutopeftError, ValueError):
    """A model that cannot be loaded, or whose structure autopeft does not understand."""


class ArtifactError(AutopeftError, ValueError):
    """An exported adapter folder that is incomplete, damaged or made for another base model."""


class ResultError(AutopeftError, LookupError):
    """A question that a study cannot answer, such as the best design of an empty front."""


class SearchError(AutopeftError, RuntimeError):
    """A search that cannot go on, such as one whose trials all fail."""


class ExecutorError(AutopeftError, RuntimeError):
    """Workers that cannot be started, or a cluster that cannot be reached."""


class MissingDependencyError(AutopeftError, ImportError):
    """An optional package that the requested feature needs and that is not installed."""
