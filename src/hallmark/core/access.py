"""What may be touched: kinds of host and levels of access to them."""

from enum import StrEnum


class HostKind(StrEnum):
    """What a model maps images to."""

    ENCODER = "encoder"
    """Images ``(B, 3, H, W)`` to features ``(B, D)``."""
    CLASSIFIER = "classifier"
    """Images ``(B, 3, H, W)`` to logits ``(B, C)``."""
    IMAGE_TO_IMAGE = "image_to_image"
    """Images ``(B, 3, H, W)`` to images ``(B, 3, H, W)``."""
    DETECTOR = "detector"
    """Images ``(B, 3, H, W)`` to boxes with labels and scores."""

    @property
    def one(self) -> str:
        """One of them in words, such as ``an encoder``."""
        return _WORDS[self][0]

    @property
    def many(self) -> str:
        """Several of them in words, such as ``encoders``."""
        return _WORDS[self][1]


_WORDS = {
    HostKind.ENCODER: ("an encoder", "encoders"),
    HostKind.CLASSIFIER: ("a classifier", "classifiers"),
    HostKind.IMAGE_TO_IMAGE: ("a network from images to images", "networks from images to images"),
    HostKind.DETECTOR: ("an object detector", "object detectors"),
}


class Access(StrEnum):
    """What a verifier or attacker may see of a model."""

    WEIGHTS = "weights"
    FEATURES = "features"
    LOGITS = "logits"
    LABELS = "labels"
    IMAGES = "images"

    def includes(self, other: "Access") -> bool:
        """Whether this level gives at least what ``other`` gives.

        WEIGHTS ⊃ FEATURES ⊃ LOGITS ⊃ LABELS for classifiers, WEIGHTS ⊃ IMAGES for image-to-image networks.
        """
        return other in _INCLUDES[self]


_INCLUDES = {
    Access.WEIGHTS: frozenset(Access),
    Access.FEATURES: frozenset({Access.FEATURES, Access.LOGITS, Access.LABELS}),
    Access.LOGITS: frozenset({Access.LOGITS, Access.LABELS}),
    Access.LABELS: frozenset({Access.LABELS}),
    Access.IMAGES: frozenset({Access.IMAGES}),
}

LEVELS = {
    HostKind.ENCODER: frozenset({Access.WEIGHTS, Access.FEATURES}),
    HostKind.CLASSIFIER: frozenset({Access.WEIGHTS, Access.FEATURES, Access.LOGITS, Access.LABELS}),
    HostKind.IMAGE_TO_IMAGE: frozenset({Access.WEIGHTS, Access.IMAGES}),
    HostKind.DETECTOR: frozenset({Access.WEIGHTS}),
}
"""The levels at which a host of each kind can be looked at."""
