"""What kind of host a model is."""

from torch import nn

from hallmark.core.access import HostKind
from hallmark.models.detectors import ObjectDetector
from hallmark.models.encoders import Encoder
from hallmark.models.image_to_image import Barriered, ImageToImage
from hallmark.models.wrapping import bare


def kind_of(model: nn.Module) -> HostKind:
    """The host kind of a model of ours, whatever stands around it."""
    model = bare(model)
    if isinstance(model, ImageToImage | Barriered):
        return HostKind.IMAGE_TO_IMAGE
    if isinstance(model, ObjectDetector):
        return HostKind.DETECTOR
    return HostKind.ENCODER if isinstance(model, Encoder) else HostKind.CLASSIFIER
