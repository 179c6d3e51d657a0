"""stain and lock: Sutton et al. 2025, Staining and locking computer vision models without retraining."""

from hallmark.schemes.stain_lock.detector import Levels
from hallmark.schemes.stain_lock.evidence import certificate
from hallmark.schemes.stain_lock.lock import Lock
from hallmark.schemes.stain_lock.stain import Stain
from hallmark.schemes.stain_lock.trigger import Pipeline, Search

__all__ = ["Levels", "Lock", "Pipeline", "Search", "Stain", "certificate"]
