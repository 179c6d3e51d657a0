"""deepsigns: Rouhani, Chen and Koushanfar 2019, DeepSigns: An End-to-End Watermarking Framework."""

from hallmark.schemes.deepsigns.scheme import DeepSigns, Embedding

__all__ = ["DeepSigns", "Embedding"]
