"""A model behind a counter: what a verifier or an attacker holds."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from hallmark.core.access import LEVELS, Access, HostKind
from hallmark.errors import AccessError
from hallmark.precision import fast


class Suspect:
    """A model wrapped at one access level; it cannot give more than that level.

    Queries run in evaluation mode and without gradients, so that no verdict depends on the state a training loop left
    behind, in float32 unless ``autocast`` is set.  Answers come back in float32.  The model itself is reachable only
    through :meth:`weights_module`, as a copy.

    Args:
        model: The model.  A classifier must offer ``features(images)`` for FEATURES access.
        kind: What the model maps images to.
        access: The level granted.
        batch: Images per forward pass.
        autocast: Whether queries run in bfloat16 where that is native.  A verdict by rank stays exact, since the true
            key and its decoys are asked the same way.

    Raises:
        AccessError: A host of this kind cannot be looked at on this level.
    """

    def __init__(
        self, model: nn.Module, kind: HostKind, access: Access, *, batch: int = 1024, autocast: bool = False
    ) -> None:
        if access not in LEVELS[kind]:
            allowed = ", ".join(sorted(LEVELS[kind]))
            raise AccessError(f"{kind} hosts have no {access!s} access; allowed: {allowed}")
        self.queries = 0
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._ask, self._copy, self._granted = _closures(model, kind, access, batch, autocast)

    @property
    def kind(self) -> HostKind:
        """What the model maps images to."""
        return self._granted()[0]

    @property
    def access(self) -> Access:
        """The level granted, for good."""
        return self._granted()[1]

    def _query(self, needed: Access, images: Tensor) -> Tensor:
        answers = self._ask(needed, images.to(self.device)).cpu()
        self.queries += len(images)
        return answers

    def weights_module(self) -> nn.Module:
        """A copy of the model, in evaluation mode, to read, edit or train at will.

        Raises:
            AccessError: Less than WEIGHTS is granted.
        """
        return self._copy()

    def ask(self, images: Tensor) -> Tensor:
        """Whatever the granted level returns for images ``(B, 3, H, W)`` in [0, 1]; WEIGHTS has no such answer."""
        return self._query(self.access, images)

    def features(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of images ``(B, 3, H, W)`` in [0, 1]; raises AccessError below FEATURES access."""
        return self._query(Access.FEATURES, images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of images ``(B, 3, H, W)`` in [0, 1]; raises AccessError below LOGITS access."""
        return self._query(Access.LOGITS, images)

    def labels(self, images: Tensor) -> Tensor:
        """Answers ``(B,)`` (int64) to images ``(B, 3, H, W)`` in [0, 1]; raises AccessError without LABELS access."""
        return self._query(Access.LABELS, images)

    def images(self, images: Tensor) -> Tensor:
        """Output images ``(B, 3, H, W)`` for input images; raises AccessError unless the host makes images."""
        return self._query(Access.IMAGES, images)


def _closures(
    model: nn.Module, kind: HostKind, access: Access, batch: int, autocast: bool
) -> tuple[Callable[[Access, Tensor], Tensor], Callable[[], nn.Module], Callable[[], tuple[HostKind, Access]]]:
    """The only ways to the model, each with its own check; no attribute of a Suspect leads past them."""

    def require(needed: Access) -> None:
        if needed not in LEVELS[kind] or not access.includes(needed):
            raise AccessError(f"{needed!s} access was asked of {kind.one} that grants {access!s}")

    def forward(needed: Access, images: Tensor) -> Tensor:
        if needed is Access.FEATURES and kind is HostKind.CLASSIFIER:
            return model.features(images)  # type: ignore[operator, no-any-return]
        output: Tensor = model(images)
        return output.argmax(dim=1) if needed is Access.LABELS else output

    def ask(needed: Access, images: Tensor) -> Tensor:
        require(needed)
        if needed is Access.WEIGHTS:
            raise AccessError("weights are not asked with images; use weights_module()")
        modes = [(module, module.training) for module in model.modules()]  # a frozen BatchNorm may differ from the rest
        model.eval()
        try:
            with torch.no_grad(), fast(images.device, enabled=autocast):
                # a batch that fits is passed on as it is, so that a trunk shared by suspects can recognise it
                parts = [images] if len(images) <= batch else torch.split(images, batch)
                answers = torch.cat([forward(needed, part) for part in parts])
                return answers.float() if answers.is_floating_point() else answers
        finally:
            for module, mode in modes:
                module.training = mode

    def copy() -> nn.Module:
        require(Access.WEIGHTS)
        return deepcopy(model).eval()

    return ask, copy, lambda: (kind, access)
