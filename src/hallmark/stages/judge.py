"""The verify stage's heart: one subject, its downstream models, one key, its decoys, and fresh keys for the null."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from hallmark import stats
from hallmark.alignment import align
from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect, derive_seed, extract_all
from hallmark.core.access import LEVELS
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, KeyFileError
from hallmark.models.classifier import Classifier
from hallmark.models.inference import Answering
from hallmark.models.kinds import kind_of
from hallmark.models.wrapping import bare
from hallmark.stages.decoys import draw


class SharedTrunk(nn.Module):
    """A frozen encoder that remembers its features of the last batch, for suspects that stand on one trunk.

    Recognition is by identity of the tensor, which is kept alive meanwhile, so nothing can be confused.  The encoder is
    made for answering when it is asked first: marks in weights never ask.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self._last: tuple[Tensor, Tensor] | None = None

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self.encoder)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of images ``(B, 3, H, W)``."""
        if self._last is None or self._last[0] is not images:
            self._last = (images, self._answering(images))
        return self._last[1]


def judge(
    scheme: Scheme,
    key: Key,
    host: nn.Module,
    subject: nn.Module,
    downstream: Mapping[str, nn.Module],
    owner_data: Images,
    config: Mapping[str, Any],
    *,
    purpose: str,
    reference: nn.Module | None = None,
    made: Sequence[Key] | None = None,
) -> list[dict[str, Any]]:
    """Verdicts on a subject at every access the scheme can use.

    The true key is ranked among ``config["decoys"]`` decoys.  ``config["trials"]`` further fresh keys are ranked among
    the same decoys: on an innocent model they are null trials, on a marked one they are wrong keys.

    Args:
        scheme: The scheme.
        key: The owner's key.
        host: The unmarked host the key was drawn for; decoys are drawn for the same.
        subject: The model under suspicion.
        downstream: Classifiers built on it, by ``dataset/task``.
        owner_data: The owner's images, from which decoys may draw.
        config: ``decoys``, ``trials``, ``alpha`` and ``seed``.
        purpose: What this subject is called; two subjects must not be judged by the same set of decoys and fresh keys,
            or the errors they show would be the same.
        reference: The owner's marked model; weights are then read once more after the suspect's channels were aligned
            to it, at the access ``weights_aligned``.
        made: Decoys to draw from, where they are too costly to be made for each subject; each draws its own
            set, and sets overlap.

    Returns:
        One judgement per (access, downstream) as plain JSON.
    """
    places = _places(scheme, subject, downstream)
    if not places:
        levels = ", ".join(sorted(scheme.access))
        raise ConfigError(f"scheme {scheme.name!r} is seen at {levels}, and nothing in this experiment grants that")
    beyond = []
    if reference is not None and Access.WEIGHTS in scheme.access:
        place = {"access": "weights_aligned", "downstream": "", "task": ""}
        try:
            aligned = align(bare(subject), reference, unseen=scheme.reads(reference, key))
            places.append((place, Suspect(aligned, kind_of(aligned), Access.WEIGHTS)))
        except ConfigError:  # another architecture
            beyond.append(place)
    seed = derive_seed(config["seed"], "verify", key.commitment(), purpose)
    counts = config["decoys"], config["trials"]
    if made is None:
        decoys = scheme.decoys(host, key, owner_data, counts[0], seed=derive_seed(seed, "decoys"))
        fresh = scheme.decoys(host, key, owner_data, counts[1], seed=derive_seed(seed, "trials"))
    else:
        decoys, fresh = draw(made, counts, seed)
    readable = [(place, suspect) for place, suspect in places if _readable(scheme, suspect, key)]
    found = extract_all(scheme, [suspect for _, suspect in readable], [key, *decoys, *fresh])
    judged = [
        {
            **_judgement(place, evidence, len(decoys), scheme.chance, config["alpha"]),
            "figures": dict(scheme.figures(suspect, key)),
        }
        for (place, suspect), evidence in zip(readable, found, strict=True)
    ]
    blank = [place for place, suspect in places if not any(suspect is seen for _, seen in readable)]
    return [*judged, *(_unreadable(place) for place in [*blank, *beyond])]


def _readable(scheme: Scheme, suspect: Suspect, key: Key) -> bool:
    """Whether the key fits the suspect: weights and features of another shape show no mark, and accuse nobody."""
    if suspect.access not in (Access.WEIGHTS, Access.FEATURES):
        return True
    try:
        scheme.extract(suspect, key)
    except (KeyFileError, ConfigError):  # the layer or the features have another shape, or there is no such layer
        return False
    return True


def _unreadable(place: dict[str, str]) -> dict[str, Any]:
    nothing = {"statistic": 0.0, "p_value": 1.0, "p_min": 1.0, "detected": False, "matches": None, "trials": None}
    return {**place, **nothing, "foreign": [0, 0], "null_p": [], "figures": {}}


def _places(
    scheme: Scheme, subject: nn.Module, downstream: Mapping[str, nn.Module]
) -> list[tuple[dict[str, str], Suspect]]:
    trunk = SharedTrunk(subject)
    places = []
    kind = kind_of(subject)
    for access in sorted(scheme.access & LEVELS[kind], key=list(Access).index):
        # weights are read as they are, without what stands around them; output images have eight bits, unlike bfloat16
        model, queried = (subject, False) if access in (Access.WEIGHTS, Access.IMAGES) else (trunk, True)
        model = bare(subject) if access is Access.WEIGHTS else model
        if access is not Access.FEATURES or kind is HostKind.ENCODER:
            suspect = Suspect(model, kind, access, autocast=queried)
            places.append(({"access": str(access), "downstream": "", "task": ""}, suspect))
    for role, model in downstream.items():
        name, _, task = role.rpartition("/")
        answering = model
        if isinstance(model, Classifier):
            base = trunk if model.encoder is subject else SharedTrunk(model.encoder)
            answering = nn.Sequential(base, model.head)
        for access in (Access.WEIGHTS, Access.LOGITS, Access.LABELS):
            # a frozen encoder's weights were read above; a fine-tuned model's are its own
            own = access is not Access.WEIGHTS or not (isinstance(model, Classifier) and model.encoder is subject)
            if access in scheme.access and own:
                queried = access is not Access.WEIGHTS
                suspect = Suspect(answering if queried else model, HostKind.CLASSIFIER, access, autocast=queried)
                places.append(({"access": str(access), "downstream": name, "task": task}, suspect))
    return places


def _judgement(
    place: dict[str, str], evidence: Sequence[Evidence], decoys: int, chance: float | None, alpha: float
) -> dict[str, Any]:
    true, others, fresh = evidence[0], evidence[1 : 1 + decoys], evidence[1 + decoys :]
    null = stats.Ranked(others) if chance is None else stats.Binomial(chance)
    verdict = stats.verify(true, null, alpha)
    foreign = [(e.matches, e.trials) for e in others if e.trials]
    return {
        **place,
        "statistic": verdict.statistic,
        "p_value": verdict.p_value,
        "p_min": verdict.p_min,
        "detected": verdict.detected,
        "matches": true.matches,
        "trials": true.trials,
        "foreign": [sum(m or 0 for m, _ in foreign), sum(t or 0 for _, t in foreign)],
        "null_p": [stats.verify(e, null, alpha).p_value for e in fresh],
    }
