"""Keys made for a model after seeing it: an attack on the verdict, which touches no model.

A p-value holds for a key that was drawn without the suspect.  A forger makes it afterwards, and with full freedom a key
of any scheme passes on any model whatsoever; there is a :class:`Forger` for each.  Two rules take freedom away.

*Drawn from a seed*: whatever is drawn in a key has to come from the SHA-256 of a public string (:func:`drawn_from`).
That binds marks that are read from weights through nothing but what was drawn.  One who may still try strings
(:func:`search`) finds p ≈ 1/N with N tries, so the level has to be far below one over all the tries that anybody could
afford.  And it binds nothing that is not drawn: images that a suspect is asked about can be made for a key as well as
a key for them, by a few levels that nobody sees, and a network that a key holds can be trained on any model.

*Committed to by hash and time* (:meth:`hallmark.core.Key.commitment`): the whole key is older than the suspect.
Against that none of this helps, since what is made here has to see the suspect first.
"""

from hallmark.attacks.forging.common import Forger, Forgery, drawn_from, judged, public_generator, search
from hallmark.attacks.forging.detectors import LockForger, StainForger
from hallmark.attacks.forging.images import DeepWatermarkForger
from hallmark.attacks.forging.members import DatasetInferenceForger
from hallmark.attacks.forging.queries import AWEncoderForger, QueryForger
from hallmark.attacks.forging.readers import RIGAForger, RotationForger, SSLGuardForger
from hallmark.attacks.forging.signs import DeepSignsForger, UchidaForger

FORGERS: dict[str, type[Forger]] = {
    "uchida": UchidaForger,
    "riga": RIGAForger,
    "deepsigns": DeepSignsForger,
    "stain": StainForger,
    "lock": LockForger,
    "wpe": QueryForger,
    "sslwm": QueryForger,
    "awencoder": AWEncoderForger,
    "sslguard": SSLGuardForger,
    "rotation": RotationForger,
    "dataset_inference": DatasetInferenceForger,
    "deep_watermark": DeepWatermarkForger,
}
"""By name of the scheme."""

__all__ = [
    "FORGERS",
    "AWEncoderForger",
    "DatasetInferenceForger",
    "DeepSignsForger",
    "DeepWatermarkForger",
    "Forger",
    "Forgery",
    "LockForger",
    "QueryForger",
    "RIGAForger",
    "RotationForger",
    "SSLGuardForger",
    "StainForger",
    "UchidaForger",
    "drawn_from",
    "judged",
    "public_generator",
    "search",
]
