"""wpe: Wu et al. 2022, Watermarking Pre-trained Encoders in Contrastive Learning."""

from hallmark.schemes.wpe.scheme import WPE, Embedding
from hallmark.schemes.wpe.trigger import TriggerLaw

__all__ = ["WPE", "Embedding", "TriggerLaw"]
