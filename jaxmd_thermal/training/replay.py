"""Replay: what a base model said before fine-tuning, as data that keep it from forgetting; and how much it forgot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision, forget_programs
from jaxmd_thermal.derivatives import required_cutoff
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.system import System
from jaxmd_thermal.training.batches import Batches, Pack
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.losses import predictions

KNOWN = frozenset(("energy", "forces", "stress"))


def rattled(
    structures: Sequence[Any],
    copies: int = 1,
    *,
    rattle: float = 0.05,
    strain: float = 0.02,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> list[Frame]:
    """Structures with displaced atoms and strained cells, without labels.

    Args:
      structures: ASE `Atoms`, `System`, paths of files, or frames.
      copies: of each.
      rattle: Å, standard deviation of each coordinate.
      strain: standard deviation of the diagonal of a symmetric strain, on top of positions and cell; its other components
        have that over the square root of two.
      seed: of both.
      names: of the compounds; None: numbered.

    Raises:
      InputError: numbers below zero, or a structure that is not periodic and shall be strained.
    """
    if copies < 1 or rattle < 0 or strain < 0:
        raise InputError(f"copies {copies}, rattle {rattle} Å and strain {strain} must be at least 1, 0 and 0")
    out = []
    for i, structure in enumerate(structures):
        system = structure.system if isinstance(structure, Frame) else System.from_atoms(structure)
        known = structure.compound if isinstance(structure, Frame) else ""
        name = names[i] if names is not None else known or f"structure {i}"
        source = (structure.source if isinstance(structure, Frame) else "") or f"'{name}'"
        if strain > 0 and not all(system.pbc):
            raise InputError(f"'{name}' has the periodicity {system.pbc} and cannot be strained: take strain=0")
        for copy in range(copies):
            rng = np.random.default_rng([seed, i, copy])
            e = strain * rng.standard_normal((3, 3))
            stretch = np.eye(3) + 0.5 * (e + e.T)
            moved = np.asarray(system.positions, float) @ stretch
            moved = moved + rattle * rng.standard_normal(moved.shape)
            cell = np.asarray(system.cell, float) @ stretch
            out.append(
                Frame(
                    np.asarray(system.numbers, np.int32),
                    moved,
                    cell,
                    system.pbc,
                    compound=name,
                    source=f"{source}, rattled copy {copy}",
                )
            )
    return out


def labelled(potential: Any, frames: Sequence[Frame], *, batch_size: int = 1, dtype: str = "float32") -> list[Frame]:
    """The frames with the potential's own energies, forces and (where there is a volume) stresses."""
    out: list[Frame | None] = [None] * len(frames)
    for pack, said in _said(potential, frames, batch_size, dtype):
        first = 0
        for g, i in enumerate(pack.frames):
            n = frames[i].n_atoms
            out[i] = frames[i].replace(
                energy=float(said["energy"][g]),
                forces=said["forces"][first : first + n],
                stress=said["stress"][g] if all(frames[i].pbc) else None,
            )
            first += n
    return [frame for frame in out if frame is not None]


def replay(
    potential: Any,
    structures: Sequence[Any],
    copies: int = 4,
    *,
    rattle: float = 0.05,
    strain: float = 0.02,
    seed: int = 0,
    batch_size: int = 1,
    dtype: str = "float32",
) -> list[Frame]:
    """Data for co-training without any upstream data: the base model's energies, forces and stresses.

    Args: as for `rattled`; `dtype` is the precision of the labels, best that of the training.
    """
    frames = rattled(structures, copies, rattle=rattle, strain=strain, seed=seed)
    return labelled(potential, frames, batch_size=batch_size, dtype=dtype)


def forgetting(
    base: Any, potential: Any, frames: Sequence[Frame], *, batch_size: int = 1, dtype: str = "float32"
) -> dict[str, float]:
    """Root mean square change of a potential's predictions against those of the base model.

    Returns: `energy_meV_atom` (over structures), `forces_meV_A` (over components), `stress_GPa`.
    """
    before = labelled(base, frames, batch_size=batch_size, dtype=dtype)
    return _changes(before, labelled(potential, frames, batch_size=batch_size, dtype=dtype))


def interpolated(base: Any, tuned: Any, share: float) -> Any:
    """The potential between a base model and what was trained from it: base + share (tuned - base), leaf by leaf.

    Wortsman et al., CVPR 2022, 7959 (robust fine-tuning of zero-shot models): on the way from one to the other what was learnt
    comes early and what was forgotten late.

    Raises:
      InputError: a share outside 0 to 1, or potentials of different parameters.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share is {share}; it must lie between 0 (the base model) and 1 (the trained one)")
    before, after = jax.tree.leaves(base), jax.tree.leaves(tuned)
    if [np.shape(x) for x in before] != [np.shape(x) for x in after]:
        raise InputError("the potentials have different parameters: one of them must have been trained from the other")
    mixed = [
        np.asarray(a + share * (np.asarray(b, float) - a), np.asarray(b).dtype)
        if np.issubdtype(np.asarray(b).dtype, np.floating)
        else b
        for a, b in zip(before, after, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tuned), mixed)


def kept_share(
    base: Any, tuned: Any, frames: Sequence[Frame], energy: float = 5.0, forces: float = 20.0, *, steps: int = 20,
    batch_size: int = 1, dtype: str = "float32",
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """The largest share of a fine-tuning (`interpolated`) that changes other structures no more than allowed.

    Args:
      base, tuned: the base model and what was trained from it.
      frames: structures that were not replayed, nor are those on which the result will be judged.
      energy, forces: meV/atom and meV/Å, root mean squares as of `forgetting`.
      steps: shares that are tried, in equal steps from 0 up to the first that is too large.

    Returns: the share, 0 if none is small enough, and `forgetting` at it.
    """
    before = labelled(base, frames, batch_size=batch_size, dtype=dtype)
    share, found = 0.0, _changes(before, before)
    for step in range(1, steps + 1):  # the changes grow along the way
        mixed = interpolated(base, tuned, step / steps)
        more = _changes(before, labelled(mixed, frames, batch_size=batch_size, dtype=dtype))
        if more["energy_meV_atom"] > energy or more["forces_meV_A"] > forces:
            break
        share, found = step / steps, more
    return share, found


def _changes(before: Sequence[Frame], after: Sequence[Frame]) -> dict[str, float]:
    from jaxmd_thermal.units import GPA

    pairs = list(zip(before, after, strict=True))

    def rms(changes: list[Any]) -> float:
        return float(np.sqrt(np.mean(np.concatenate([np.ravel(c) for c in changes]) ** 2))) if changes else float("nan")

    return {
        "energy_meV_atom": 1e3 * rms([(b.energy - a.energy) / a.n_atoms for a, b in pairs]),
        "forces_meV_A": 1e3 * rms([b.forces - a.forces for a, b in pairs]),
        "stress_GPa": rms([b.stress - a.stress for a, b in pairs if a.stress is not None]) / GPA,
    }


@jax.jit
def _single(potential, batch):
    return predictions(potential, batch, KNOWN, jnp.float32)


@jax.jit
def _double(potential, batch):
    return predictions(potential, batch, KNOWN, jnp.float64)


def _said(potential: Any, frames: Sequence[Frame], batch_size: int, dtype: str):
    """(pack, what the potential says of it) over all frames."""
    function: Any = {"float32": _single, "float64": _double}.get(dtype)
    if function is None:
        raise InputError(f"dtype is {dtype!r}; it must be 'float64' or 'float32'")
    forget_programs()
    with double_precision():
        batches = Batches(frames, required_cutoff(potential), batch_size, species=getattr(potential, "species", None))
        found: list[tuple[Pack, dict[str, np.ndarray]]] = []
        for pack, batch in batches.stream(None):
            found.append((pack, jax.device_get(function(potential, batch))))
    return found
