"""What a potential said before a training: replayed beside it, or restored after it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.cli.progress import announce
from jaxmd_thermal.cli.training import structures_of
from jaxmd_thermal.cli.training_settings import Asked, TrainingSettings
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.transport.results import write_json

TOGETHER = 16
"""Structures that a potential is asked about at a time."""

OTHER_COPIES = 7919
"""Added to the seed for the rattled copies on which forgetting is measured: never those that were asked about."""


def replayed(base: Any, settings: Asked, data: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Frames with what the potential says of them, and unlabelled other copies of the same, on which forgetting is measured.

    Without files they are made of the data, one structure of each compound.
    """
    from jaxmd_thermal.training.replay import labelled, rattled

    kept, bare = _sources(settings, data)
    sources = [*kept, *bare]
    counts = [settings.copies] * len(kept) + [settings.energies_only_copies or settings.copies] * len(bare)
    every = rattled(sources, max(counts), rattle=settings.rattle, strain=settings.strain, seed=seed)
    wanted = [every[i * max(counts) + copy] for i, count in enumerate(counts) for copy in range(count)]
    made = labelled(base, wanted, batch_size=TOGETHER)
    first = settings.copies * len(kept)
    made[first:] = [frame.replace(forces=None, stress=None) for frame in made[first:]]
    names = [frame.compound for frame in sources]
    # Where the replay holds the structures at rest, what else is said of them is still to be seen.
    apart = settings.rattle or Asked.model_fields["rattle"].default
    return made, rattled(sources, 1, rattle=apart, strain=settings.strain, seed=seed + OTHER_COPIES, names=names)


def _sources(settings: Asked, data: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Structures that are asked about, and those of which energies alone are wanted."""
    bare = structures_of(settings.energies_only)
    return structures_of(settings.structures) if settings.structures or bare else _one_of_each(data), bare


def check_restore(settings: TrainingSettings, base: Any, data: Sequence[Any]) -> None:
    """Says how much [restore] will compute, before the training: what is wrong with it shall not come out after hours.

    Raises:
      InputError: a file that is missing or damaged, or more gradients than the memory holds.
    """
    from jaxmd_thermal.training.optimizers import Partition, is_weight
    from jaxmd_thermal.training.restoring import check_memory

    r = settings.restore
    assert r is not None
    kept, bare = _sources(r, data)
    columns = sum(min(r.columns, len(f.columns)) for f in data if f.columns is not None)
    rows = r.copies * len(kept) * (1 + r.directions) + (r.energies_only_copies or r.copies) * len(bare) + columns
    size = sum(np.size(w) for w in Partition.of(base, is_weight).split(base, np.float32)[0].values())
    memory = check_memory(rows, size, settings.precision)
    announce(
        f"restoring afterwards: {rows} gradients of {size} weights, {columns} of trained Hessians; {memory:.2g} GB"
    )


def _one_of_each(frames: Sequence[Any]) -> list[Any]:
    return list({f.compound: f for f in reversed(frames)}.values())[::-1]


def restored_by(
    settings: TrainingSettings, base: Any, tuned: Any, data: Sequence[Any], out: Path, *, quiet: bool = False
) -> tuple[Any, list[Any]]:
    """What [restore] makes of a trained potential, and structures on which forgetting is measured, as from `replayed`.

    It is written to `out` as `restored` and as its `potential`; what the training ended with stays beside it as
    `before_restoring`. The same again is read from there.
    """
    import jax

    from jaxmd_thermal.io.exported import save_potential
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.training.records import digest, digest_of
    from jaxmd_thermal.training.restoring import restored

    r = settings.restore
    assert r is not None
    said, others = replayed(base, r, data, settings.seed)
    file, folder = out / "restored.json", out / "restored"
    asked_for = json.loads(r.model_dump_json()) | {
        "seed": settings.seed, "tuned": digest(jax.tree.leaves(tuned)), "structures": digest_of([*said, *data]),
    }  # fmt: skip
    try:
        known = json.loads(file.read_text())
        made = load_potential(str(folder)) if known["of"] == asked_for else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        made = None  # nothing there, or damaged: it is made again
    if made is not None and digest(jax.tree.leaves(made)) == known["potential"]:
        save_potential(made, out / "potential", overwrite=True)  # a training that is resumed has written its own
        return made, others

    def show(done: int, rows: int) -> None:
        if not quiet and (done % max(rows // 20, 1) == 0 or done == rows):
            print(f"restoring: {done} of {rows} gradients", file=sys.stderr, flush=True)

    found = restored(
        tuned, said, data, forces_kept=r.forces_kept, directions=r.directions, columns=r.columns, rounds=r.rounds,
        precision=settings.precision, seed=settings.seed, progress=show,
    )  # fmt: skip
    save_potential(tuned, out / "before_restoring", overwrite=True)
    for place in (folder, out / "potential"):
        save_potential(found.potential, place, overwrite=True)
    write_json(
        {
            "of": asked_for, "potential": digest(jax.tree.leaves(found.potential)), "rows": found.rows,
            "change_of_a_weight": found.change, "history": found.history,
        },
        file,
    )  # fmt: skip
    if not quiet:
        announce(f"restored by {found.rows} gradients: {json.dumps(found.history)}")
    return found.potential, others
