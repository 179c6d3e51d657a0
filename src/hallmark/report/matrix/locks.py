"""What locked models are worth in the matrix, and when an attack opens a lock.

The worth of a locked model is what its users get out of it, who have the patch; a thief has not, and gets nothing
worth having before an attack (Sutton 2025, section 4).  So an attacked one is worth having if it does *without* the
patch what it did with it, less the tolerance; a lock is opened by an attack that brings that about, though the mark may
still be found.
"""

from __future__ import annotations

import pandas as pd

from hallmark.report import analysis

LOCK = "lock"
"""The scheme whose models are locked; others that lock have rows of the accuracy with the patch as well."""
_LOCKED = ("experiment", "scale", "scheme", "variant", "host", "dataset", "pretrain", "seed")


def unlocked(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each locked model on images with its patch, a fraction, as ``unlocked``."""
    own = rows[(rows["metric"] == "unlocked_accuracy") & (rows["unit"] == "patch") & (rows["attack"] == "none")]
    return own.drop_duplicates(list(_LOCKED))[[*_LOCKED, "value"]].rename(columns={"value": "unlocked"})


def worth(models: pd.DataFrame, rows: pd.DataFrame, utility: str) -> pd.Series:
    """What marked models are worth to their users: of locked ones the accuracy with the patch, NaN if not measured.

    Args:
        models: Lines with the identity of models, and their ``utility``.
        rows: The result rows they were made of.
        utility: The column that says what a model is worth as it is.
    """
    patched = models[list(_LOCKED)].merge(unlocked(rows), on=list(_LOCKED), how="left")["unlocked"]
    patched.index = models.index
    return patched.where((models["scheme"] == LOCK) | patched.notna(), models[utility])


def valued(done: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Attacks with the worth of locked models set right.

    Args:
        done: Of :func:`hallmark.report.analysis.attacks`.
        rows: The result rows they were made of.

    Returns:
        The same lines with ``as_stolen``, the utility of what the thief took, before the attack; for locked models
        ``accuracy_before``, ``loss`` and ``outcome`` follow from the accuracy with the patch.  ``opened``: the mark is
        kept, and the model is worth having without its patch.
    """
    before = worth(done, rows, "accuracy_before")
    same = before == done["accuracy_before"]
    loss = done["loss"].where(same, (before - done["accuracy"]).round(9))
    done = done.assign(as_stolen=done["accuracy_before"], accuracy_before=before, loss=loss)
    done = done.assign(outcome=analysis.fates(done))
    return done.assign(opened=~same & (done["outcome"] == "kept") & (loss <= done["tolerance"]))
