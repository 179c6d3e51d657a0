"""sslwm: Lv et al. 2024, SSL-WM, a black-box watermark for encoders pretrained by self-supervised learning."""

from hallmark.schemes.sslwm.scheme import SSLWM, Embedding

__all__ = ["SSLWM", "Embedding"]
