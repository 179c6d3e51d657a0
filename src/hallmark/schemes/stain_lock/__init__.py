"""stain and lock: Sutton et al. 2025, Staining and locking computer vision models without retraining."""

from hallmark.schemes.stain_lock.detector import Levels
from hallmark.schemes.stain_lock.evidence import certificate
from hallmark.schemes.stain_lock.false_fires import FalseFires
from hallmark.schemes.stain_lock.lock import Lock
from hallmark.schemes.stain_lock.locked_use import LockedUse
from hallmark.schemes.stain_lock.stain import Stain
from hallmark.schemes.stain_lock.trigger import Pipeline, Search

__all__ = ["FalseFires", "Levels", "Lock", "LockedUse", "Pipeline", "Search", "Stain", "certificate"]
