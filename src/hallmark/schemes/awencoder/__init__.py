"""awencoder: Zhang et al. 2022, AWEncoder: Adversarial Watermarking Pre-Trained Encoders in Contrastive Learning."""

from hallmark.schemes.awencoder.perturbation import PerturbationLaw
from hallmark.schemes.awencoder.scheme import AWEncoder, Embedding

__all__ = ["AWEncoder", "Embedding", "PerturbationLaw"]
