"""wpe: Wu et al. 2022, Watermarking Pre-trained Encoders in Contrastive Learning."""

from hallmark.schemes.trigger import TriggerLaw
from hallmark.schemes.wpe.scheme import WPE, Embedding

__all__ = ["WPE", "Embedding", "TriggerLaw"]
