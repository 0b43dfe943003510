"""A turn: a time in which no other driver of a shared study decides anything."""


class DecisionLostError(Exception):
    """What was decided in a turn cannot be written any more: the turn has ended, and others may have decided since."""
