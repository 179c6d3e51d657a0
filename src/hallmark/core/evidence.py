"""What an extraction brings back: counts or raw scores, never a rate and never a verdict."""

from dataclasses import dataclass

from torch import Tensor

from hallmark.core.access import Access


@dataclass(frozen=True)
class Evidence:
    """The outcome of one extraction with one key.

    Exactly one of the two forms is given: integers (``matches`` out of ``trials``) or ``scores``, one row a query,
    column 0 for the marked query and column 1 for its clean twin.

    Args:
        access: The access level the extraction used.
        matches: Number of successes, ``0 … trials``.
        trials: Number of bits or queries.
        scores: Paired scores ``(Q, 2)``, float.

    Raises:
        ValueError: Neither or both forms are given, or counts are out of range.
    """

    access: Access
    matches: int | None = None
    trials: int | None = None
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        counted = self.matches is not None and self.trials is not None
        if counted == (self.scores is not None):
            raise ValueError("evidence is either matches and trials or scores; give exactly one form")
        if counted and not 0 <= self.matches <= self.trials:  # type: ignore[operator]
            raise ValueError(f"matches must lie in 0 … trials, got {self.matches} of {self.trials}")
        if self.scores is not None and (self.scores.ndim != 2 or self.scores.shape[1] != 2 or len(self.scores) == 0):
            raise ValueError(f"scores must have shape (Q, 2) with Q ≥ 1, got {tuple(self.scores.shape)}")

    def statistic(self) -> float:
        """The number that tests rank: the count of matches, or the mean paired difference of the scores."""
        if self.matches is not None:
            return float(self.matches)
        scores = self.scores
        if scores is None:
            raise ValueError("evidence without counts must have scores")
        return float((scores[:, 0].double() - scores[:, 1].double()).mean())
