"""riga: Wang and Kerschbaum 2021, RIGA: Covert and Robust White-Box Watermarking of Deep Neural Networks."""

from hallmark.schemes.riga.scheme import RIGA, Embedding

__all__ = ["RIGA", "Embedding"]
