"""Statistics of a data set: energies of the elements, scale of the forces, number of neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.training.neighborhoods import neighborhood


@dataclass(frozen=True)
class Statistics:
    """What a network starts from.

    Attributes:
      shifts: {atomic number: eV} whose sums come closest to the energies (least squares, smallest norm where the data leave
        a choice); empty without energies.
      force_rms: eV/Å, root mean square of the force components; None without forces.
      energy_rms: eV per atom that the shifts leave; None without energies.
      neighbors: mean number of neighbours within the cutoff; None if none was given.
    """

    shifts: dict[int, float]
    force_rms: float | None
    energy_rms: float | None
    neighbors: float | None


def statistics(frames: Iterable[Frame], cutoff: float | None = None) -> Statistics:
    """Least-squares energies of the elements, and the scale of the forces.

    Args:
      cutoff: Å, for the mean number of neighbours.
    """
    frames = list(frames)
    labelled = [f for f in frames if f.energy is not None]
    species = sorted({int(z) for f in labelled for z in f.numbers})
    shifts: dict[int, float] = {}
    energy_rms = None
    if labelled:
        counts = np.array([[np.sum(f.numbers == z) for z in species] for f in labelled], float)
        energies = np.array([f.energy for f in labelled], float)
        atoms = counts.sum(axis=1)
        solved = np.linalg.lstsq(counts / atoms[:, None], energies / atoms, rcond=None)[0]
        shifts = {z: float(e) for z, e in zip(species, solved)}
        energy_rms = float(np.sqrt(np.mean(((energies - counts @ solved) / atoms) ** 2)))
    forces = [f.forces.ravel() for f in frames if f.forces is not None]
    neighbors = None
    if cutoff is not None and frames:
        found = [np.mean(neighborhood(f, cutoff).degrees) for f in frames]
        neighbors = float(np.mean(found))
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else None
    return Statistics(shifts, rms, energy_rms, neighbors)
