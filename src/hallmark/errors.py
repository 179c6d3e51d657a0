"""Errors that a user can act on.

Every error that bad input can cause is a :class:`HallmarkError`: its message is one line that says what was wrong,
what is allowed and what to do.  The command line prints that line and exits with status 2; anything else that escapes
is a defect of Hallmark and keeps its traceback.
"""


class HallmarkError(ValueError):
    """A user-facing error whose message is one clear line."""


class ConfigError(HallmarkError):
    """A configuration that cannot be run: unknown name, wrong type, impossible pair."""


class UnfitError(ConfigError):
    """A pair that makes no sense, such as an attack on a kind of host that it does not work on.

    An experiment refuses it, unless it says ``unfit: note``.

    Args:
        reason: Why, such that it can stand in a table beside the pair's names.
        what: Who does not fit, to stand before the reason in the message.
    """

    def __init__(self, reason: str, what: str = "") -> None:
        super().__init__(f"{what} {reason}".strip())
        self.reason = reason


class DataError(HallmarkError):
    """A data set that is missing, damaged or too small for what was asked of it."""


class StoreError(HallmarkError):
    """A store entry that is missing, truncated, altered, locked or cannot be written."""


class KeyFileError(HallmarkError):
    """A key file that is damaged or belongs to another scheme or host."""


class AccessError(HallmarkError):
    """A suspect or victim was asked for more than its access level gives."""


class TrainingError(HallmarkError):
    """Training that cannot go on, such as a loss that is not finite."""


class BudgetExhausted(Exception):  # noqa: N818 - not an error: the same command continues the work
    """The time budget is spent; work was saved at a checkpoint and the same command continues it."""


def allowed(value: object, choices: object, what: str) -> str:
    """One line for a value outside its set.

    Args:
        value: The offending value.
        choices: Iterable of allowed values.
        what: What the value was meant to be, e.g. ``"scheme"``.

    Returns:
        ``"unknown scheme 'x'; allowed: a, b"``.
    """
    return f"unknown {what} {value!r}; allowed: {', '.join(sorted(map(str, choices)))}"  # type: ignore[call-overload]
