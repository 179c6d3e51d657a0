"""sslguard: Cong et al. 2022, SSLGuard: A Watermarking Scheme for Self-supervised Learning Pre-trained Encoders."""

from hallmark.schemes.sslguard.scheme import Embedding, SSLGuard

__all__ = ["Embedding", "SSLGuard"]
