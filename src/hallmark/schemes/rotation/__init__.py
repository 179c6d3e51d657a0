"""rotation: Dziedzic et al. 2022, On the Difficulty of Defending Self-Supervised Learning against Model Extraction."""

from hallmark.schemes.rotation.scheme import Embedding, Rotation

__all__ = ["Embedding", "Rotation"]
