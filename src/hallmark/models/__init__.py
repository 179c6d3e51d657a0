"""Networks that are marked, attacked and transferred."""

from hallmark.models.classifier import Classifier
from hallmark.models.encoders import BACKBONES, Encoder

__all__ = ["BACKBONES", "Classifier", "Encoder"]
