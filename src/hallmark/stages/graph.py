"""Stages as values: a stage is its configuration, its inputs and its data, and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hallmark.stages.manifest import digest

VERSIONS = {
    **{"pretrain": 1, "embed": 1, "attack": 2, "transfer": 2, "decoys": 1, "verify": 1},
    **{"detect": 1, "histogram": 1, "survey": 1, "sheet": 2},
}
"""Kinds of stage with the version of their code; raise one when its results change, and only then."""


@dataclass(frozen=True)
class Stage:
    """One node of the graph.

    Args:
        kind: A key of :data:`VERSIONS`.
        config: Everything semantic, as plain JSON: no paths, logger, worker count or progress bars.
        inputs: Upstream stages by role.
        data: Fingerprints of the data it reads, by data set name.
        label: For people; no part of the identity.
        work: Images through the network, a backward pass counting double, for estimates; no part of the identity.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    work: float = 0.0

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the key is the digest of."""
        return {
            "stage": self.kind,
            "version": VERSIONS[self.kind],
            "config": dict(self.config),
            "inputs": {role: stage.key for role, stage in self.inputs.items()},
            "data": dict(self.data),
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of :attr:`identity`."""
        return digest(self.identity)


def in_order(targets: Iterable[Stage]) -> list[Stage]:
    """The targets and all they depend on, each once, inputs before what uses them."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.key not in ordered:
            for upstream in stage.inputs.values():
                yield from visit(upstream)
            if stage.key not in ordered:
                ordered[stage.key] = stage
                yield stage

    return [stage for target in targets for stage in visit(target)]
