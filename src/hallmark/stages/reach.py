"""Which stages experiments reach, for clearing a store."""

from collections.abc import Sequence

from hallmark.composition import compose_parts, fingerprinter
from hallmark.stages.plan import plan


def reachable_keys(experiments: Sequence[Sequence[str]]) -> set[str]:
    """Keys of every stage of the experiments.

    Args:
        experiments: One list of Hydra overrides per experiment, e.g. ``[["experiment=wpe/main", "scale=cpu"]]``.

    Raises:
        ConfigError: An override names something unknown.
    """
    keys: set[str] = set()
    for overrides in experiments:
        for config in compose_parts(overrides):
            keys |= {stage.key for stage in plan(config, fingerprinter(config)).stages}
    return keys
