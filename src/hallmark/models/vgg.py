"""A VGG for small images (Simonyan and Zisserman 2015): 3×3 convolutions, max-pooling, two hidden linear layers."""

from torch import Tensor, nn

PLACES = 2
"""Side of the map that the linear layers see, whatever the size of the images."""


class SmallVGG(nn.Module):
    """Six convolutions with BatchNorm and ReLU in four stages, and the two hidden layers of VGG's head.

    The features are those of the second hidden layer, from which VGG reads its classes.

    Args:
        width: Channels of the first stage; the others have 2, 4 and 8 times as many, hidden layers 16 times.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in ((width,), (2 * width,), (4 * width, 4 * width), (8 * width, 8 * width)):
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(PLACES)
        self.num_features = 16 * width
        self.hidden = nn.Sequential(
            nn.Linear(inputs * PLACES**2, self.num_features),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(self.num_features, self.num_features),
            nn.ReLU(True),
            nn.Dropout(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)``, H and W at least 16, to features ``(B, 16 · width)``."""
        features: Tensor = self.hidden(self.pool(self.features(x)).flatten(1))
        return features
