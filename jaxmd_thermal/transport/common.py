"""What the conductivity runs share: volume, checks of the state, structure of the stages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxmd_thermal.dynamics.base import require
from jaxmd_thermal.dynamics.langevin import Langevin
from jaxmd_thermal.dynamics.stages import Stage
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.system import System
from jaxmd_thermal.transport.directions import frame_of
from jaxmd_thermal.transport.results import MIN_FRAMES
from jaxmd_thermal.units import BOLTZMANN

LINDEMANN = 0.25
"""Root-mean-square displacement over the nearest-neighbour distance above which a crystal counts as melted."""

OVERHEATING = 3.0
"""Times the target temperature at which a run is stopped."""

MAX_DRIFT = 0.01
"""Change of the conserved energy per atom over a run, in units of k_B T, above which the time step is blamed."""


def cell_volume(system: System, volume: float | None, thickness: float | None) -> float:
    """Å^3 that the conductivity refers to.

    Raises:
      InputError: a slab, wire or cluster without a stated volume or thickness, or both stated.
    """
    if volume is not None and thickness is not None:
        raise InputError(f"both volume ({volume} Å^3) and thickness ({thickness} Å) are given: state one of them")
    if volume is not None:
        require(volume, "volume", "Å^3")
        return float(volume)
    if thickness is not None:
        require(thickness, "thickness", "Å")
        if sum(system.pbc) != 2:
            raise InputError(
                f"a thickness belongs to a slab, periodic in two directions; this system has {system.pbc}: state the volume"
            )
        a, b = np.asarray(system.cell)[list(system.pbc)]
        return float(np.linalg.norm(np.cross(a, b)) * thickness)
    return system.volume()


def temperature_limit(temperature: float, n_atoms: int, factor: float) -> float:
    """K that no fluctuation of a healthy run reaches: `factor` times the target, plus ten standard deviations."""
    return factor * temperature * (1.0 + 10.0 * math.sqrt(2.0 / (3.0 * n_atoms)))


def equilibration(
    temperature: float, timestep: float, steps: int, n_atoms: int, friction: float | None = None
) -> list[Stage]:
    """The stage before the measurement, if it has steps: Langevin dynamics, sampled for the traces of the report only."""
    if not steps:
        return []
    bath = Langevin(temperature=temperature, damping=1.0 / friction if friction else 500.0 * timestep)
    limit = temperature_limit(temperature, n_atoms, OVERHEATING)
    return [Stage("equilibration", bath, steps, max(1, min(50, steps // 20)), max_temperature=limit)]


def nearest_distance(system: System) -> float:
    """Å, the shortest distance between two atoms of the structure."""
    from jaxmd_thermal._backend import double_precision
    from jaxmd_thermal.neighbors import allocate
    from jaxmd_thermal.sites import closest_distance

    volume = abs(float(np.linalg.det(np.asarray(system.cell)))) if all(system.pbc) else 30.0 * system.n_atoms
    reach = 2.0 * (volume / system.n_atoms) ** (1.0 / 3.0)
    with double_precision():
        return closest_distance(system, allocate(system, reach, skin=0.0))


def state_warnings(result: Any, reference: System, temperature: float, *, driven: bool = False) -> list[str]:
    """Sentences about a run that is not what a conductivity of a crystal needs: melted, drifting, or losing energy."""
    warnings = []
    moved = result.positions - np.asarray(reference.positions)
    moved = moved - moved.mean(axis=1, keepdims=True)
    rms = float(np.sqrt(np.mean(np.sum(moved**2, axis=-1))))
    spacing = nearest_distance(reference)
    if np.isfinite(spacing) and rms > LINDEMANN * spacing:
        warnings.append(
            f"atoms are {rms:.2f} Å (rms) from their sites at the end, more than {LINDEMANN:g} of the nearest distance "
            f"{spacing:.2f} Å: the crystal has melted or diffuses; lower the temperature, or read the result as that of a liquid"
        )
    masses = np.asarray(reference.masses)[:, None]
    momentum = np.linalg.norm(np.sum(masses * result.velocities, axis=1), axis=-1)
    scale = np.sum(masses * np.abs(result.velocities), axis=(1, 2))
    if np.any(momentum > 1e-6 * scale):
        worst = float(np.max(momentum / scale))
        warnings.append(
            f"the crystal drifts: its momentum is {worst:.1e} of sum |p|, the limit is 1e-6; "
            "an external force, or a potential whose forces do not add up to zero, pushes it"
        )
    if driven:  # the force does work on the atoms, so nothing is conserved
        return warnings
    conserved = result.samples["conserved_energy"]
    n = reference.n_atoms
    tenth = max(1, len(conserved) // 10)
    change = np.max(np.abs(conserved[-tenth:].mean(axis=0) - conserved[:tenth].mean(axis=0))) / n
    if change > MAX_DRIFT * BOLTZMANN * temperature:
        warnings.append(
            f"the conserved energy drifted by {change:.1e} eV/atom, more than {MAX_DRIFT:g} k_B T = "
            f"{MAX_DRIFT * BOLTZMANN * temperature:.1e} eV/atom: use a shorter timestep"
        )
    return warnings


def conducting_frame(system: System) -> np.ndarray:
    """(d, 3) orthonormal basis of the directions in which the system is periodic (`directions.frame_of`).

    Raises:
      InputError: there is none.
    """
    if not any(system.pbc):
        raise InputError(
            f"a system with periodicity {system.pbc} has no direction along which heat could flow on: a conductivity needs "
            "pbc in at least one"
        )
    return frame_of(np.asarray(system.cell)[list(system.pbc)])


def check_kappa_arguments(temperature: float, steps: int, equilibration_steps: int, sample_every: int) -> int:
    """The number of samples, of a temperature and lengths that a conductivity can have.

    Raises:
      InputError: names the one that it cannot.
    """
    require(temperature, "temperature", "K", remedy="a conductivity needs a temperature above zero")
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 is needed, and some 10^5 for a conductivity")
    if equilibration_steps < 0:
        raise InputError(f"equilibration_steps is {equilibration_steps}; it must be zero or more")
    if sample_every < 1:
        raise InputError(f"sample_every is {sample_every}; at least 1 is needed")
    frames = -(-steps // sample_every)
    if frames < MIN_FRAMES:
        raise InputError(
            f"steps is {steps} with sample_every {sample_every}, which gives {frames} samples of the flux; at least "
            f"{MIN_FRAMES} are needed: run {MIN_FRAMES * sample_every} steps or more"
        )
    return frames
