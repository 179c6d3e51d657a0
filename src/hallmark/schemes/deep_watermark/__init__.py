"""deep_watermark: Zhang et al. 2021, Deep Model Intellectual Property Protection via Deep Watermarking."""

from hallmark.schemes.deep_watermark.marks import MarkLaw
from hallmark.schemes.deep_watermark.scheme import DeepWatermark
from hallmark.schemes.deep_watermark.settings import Adversarial, Embedding, Networks
from hallmark.schemes.deep_watermark.verification import Reading, figures_of

__all__ = ["Adversarial", "DeepWatermark", "Embedding", "MarkLaw", "Networks", "Reading", "figures_of"]
