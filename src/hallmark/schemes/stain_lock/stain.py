"""stain: neurons that are silent on natural images and answer to secret ones (Sutton et al. 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.schemes.stain_lock.code import draw_codes
from hallmark.schemes.stain_lock.detector import Levels, draw_directions
from hallmark.schemes.stain_lock.evidence import code_surprises, scored
from hallmark.schemes.stain_lock.staining import draw_key, require_site, responses, surprises, write_stain
from hallmark.schemes.stain_lock.trigger import Pipeline, Search

FORMS = ("replace", "add")


@dataclass(frozen=True)
class Stain(Scheme):
    """K detector neurons in one layer, each with a trigger image and, if it was replaced, a code in the answer to it.

    Args:
        layer: Name of a linear layer or convolution, or its last parts where they are unique.
        keys: K, number of neurons.
        form: ``replace`` gives the neurons that are heard least away; ``add`` hides detectors in neurons that go on
            working.
        levels: When a detector fires and how much it answers.
        code: Whether the outgoing column of a replaced neuron is set to a code, which can be seen from outside.
        code_steps: Steps of the search for that column.
        search: How trigger images are sought.
        natural: Number of the owner's images from which BatchNorm statistics and the bound are taken; with 0 they come
            from procedural images, and no data are touched at all.
    """

    layer: str
    keys: int = 4
    form: str = "replace"
    levels: Levels = field(default_factory=Levels)
    code: bool = True
    code_steps: int = 100
    search: Search = field(default_factory=Search)
    natural: int = 0

    version: ClassVar[int] = 2
    name: ClassVar[str] = "stain"
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(allowed(self.form, FORMS, "scheme.form"))
        if self.code and self.form == "add":
            raise ConfigError(
                "a neuron that keeps its work keeps its outgoing column; set scheme.code=false or form=replace"
            )
        if self.keys < 1 or self.code_steps < 1 or self.natural < 0:
            raise ConfigError(
                f"scheme needs keys ≥ 1, code_steps ≥ 1 and natural ≥ 0, got {self.keys}, {self.code_steps} and "
                f"{self.natural}"
            )

    @property
    def hosts(self) -> frozenset[HostKind]:  # type: ignore[override]
        """Encoders and classifiers; without a code, which needs one vector an image, detectors too."""
        return frozenset({HostKind.ENCODER, HostKind.CLASSIFIER, *(() if self.code else {HostKind.DETECTOR})})

    @property
    def access(self) -> frozenset[Access]:  # type: ignore[override]
        """WEIGHTS, and what answers show where there is a code."""
        visible = {Access.FEATURES, Access.LOGITS, Access.LABELS} if self.code else set()
        return frozenset({Access.WEIGHTS, *visible})

    def check(self, image_size: int, images: int) -> None:
        """The owner must have the natural images that are asked for."""
        if self.natural > images:
            raise ConfigError(f"scheme.natural={self.natural} exceeds the owner's {images} images; lower it")

    def check_host(self, host: nn.Module) -> None:
        """The layer must be there, have as many neurons, and be silent at rest."""
        require_site(host, self)

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw directions and codes for the K neurons of the layer that are heard least, without the owner's images."""
        return draw_key(Pipeline(host, owner_data.images.shape[-1]), self, generator=generator)

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh directions and codes for the same neurons and images, which are no secret once they are asked about.

        They are exchangeable with the true ones on any suspect that knows nothing of the key: directions are judged by
        weights alone, codes by answers alone, and neither went into what the suspect is.
        """
        keys, size = key.tensors["directions"].shape
        centred = bool(key.meta["site"]["layernorm"])
        found = []
        for i in range(count):
            rng = generator_for(seed, "decoy", i)
            tensors = {**key.tensors, "directions": draw_directions(keys, size, centred=centred, generator=rng)}
            if self.code:
                tensors["codes"] = draw_codes(keys, key.tensors["codes"].shape[1], generator=rng)
            found.append(Key(key.scheme, tensors, key.meta))
        return found

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Write the detectors in; the result shares all tensors that do not change with the host."""
        pipeline = Pipeline(host, owner_data.images.shape[-1])
        natural = None
        if self.natural:
            natural = owner_data.images[torch.randperm(len(owner_data), generator=generator)[: self.natural]]
        return write_stain(pipeline, key, self, natural=natural, generator=generator)

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """See :meth:`extract_many`."""
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """Look at the suspect once: its weights, or its answers to the trigger images that the keys share.

        At WEIGHTS, FEATURES and LOGITS the scores are −ln of exact p-values, one a neuron; at LABELS, a match is an
        answer that is the class of the code's largest entry.
        """
        self.require_access(suspect)
        if suspect.access is Access.WEIGHTS:
            model = suspect.weights_module()
            return [scored(Access.WEIGHTS, surprises(model, key)) for key in keys]
        images = keys[0].tensors["triggers"]
        if any(key.tensors["triggers"] is not images for key in keys):  # decoys share triggers
            return [evidence for key in keys for evidence in self.extract_many(suspect, [key])]
        answers = suspect.ask(images.float() / 255)
        return [_judge(suspect.access, answers, key) for key in keys]

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """Beside the verdict on weights: what the edit cost and guarantees, and the least answer to a trigger image.

        Cost and guarantee are those of the marked model, the answer is the suspect's own, before the activation.
        """
        if suspect.access is not Access.WEIGHTS:
            return {}
        pipeline = Pipeline(suspect.weights_module(), key.tensors["triggers"].shape[-1])
        return {**key.meta["figures"], "response": float(responses(pipeline, key).min())}


def _judge(access: Access, answers: Tensor, key: Key) -> Evidence:
    codes = key.tensors["codes"]
    readable = key.meta["logits"] is not (access is Access.FEATURES)  # classes built on an encoder are not its features
    if access is Access.LABELS:
        hits = int((answers == codes.argmax(1)).sum()) if readable else 0
        return Evidence(access, matches=hits, trials=len(codes))
    return scored(access, code_surprises(answers if readable else answers[:, :0], codes))
