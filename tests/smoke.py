"""The smallest experiments: one that has every kind of stage, and one that is made of parts, as Hydra overrides."""

from hallmark.composition import compose

TINY = [
    "experiment=demo",
    "scale=smoke",
    "scale.standin=true",
    "scale.images=384",
    "scale.size=16",
    "scale.width=4",
    "scale.epochs=2",
    "scale.batch=128",
    "scale.embed_epochs=2",
    "scale.downstream_train=200",
    "scale.downstream_test=100",
    "scale.head_epochs=3",
    "scale.queries=12",
    "scale.trials=20",
    "calibration.decoys=49",
    "alpha=0.05",
    "trainer.progress=false",
    "trainer.checkpoint_every_s=0",
    "+attacks.finetune={_target_:hallmark.attacks.finetune.FineTuneAttack,strength:epochs,strengths:[1],scope:all}",
]
"""Seconds on one core: one algorithm, two downstream sets, both attacks."""


def reduced(*kept: str) -> list[str]:
    """The matrix without most of its parts and attacks, as Hydra overrides: seconds.

    Args:
        kept: Names of the attacks that are left.
    """
    words = ["experiment=matrix", "scale=smoke", "parts=[matrix/images]", "trainer.progress=false"]
    return [*words, *(f"~attacks.{name}" for name in compose(words)["attacks"] if name not in kept)]
