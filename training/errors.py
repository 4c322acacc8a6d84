"""How a run ends before its time. Both leave the trainer as after its last good cycle."""


class Cancelled(Exception):
    """The run was cancelled; the trainer holds the state of the last finished cycle."""


class DivergedError(RuntimeError):
    """Losses were not finite several times in a row; the trainer holds the last good state."""
