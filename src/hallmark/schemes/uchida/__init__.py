"""uchida: Uchida et al. 2017, Embedding Watermarks into Deep Neural Networks."""

from hallmark.schemes.uchida.scheme import Embedding, Uchida

__all__ = ["Embedding", "Uchida"]
