"""Relaxation of cell and positions by ASE's optimisers, keeping the symmetry of the crystal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from jaxmd_thermal.errors import InputError, UnstableError, nearest
from jaxmd_thermal.io.ase import atoms_from
from jaxmd_thermal.io.calculator import Calculator
from jaxmd_thermal.lattice.equilibrium import LARGEST_FORCE, LARGEST_STRESS, minimum
from jaxmd_thermal.lattice.symmetry import SYMPREC, space_group
from jaxmd_thermal.system import System

DIAGONAL = (True, True, True, False, False, False)
"""Strains that the ksrme protocol frees, in Voigt order."""


@dataclass(frozen=True)
class Protocol:
    """Settings of a relaxation: largest force (eV/Å; the cell counts as forces on the strain) and steps of each stage."""

    fmax: float
    steps: int
    mask: tuple[bool, ...] = (True,) * 6
    optimizer: Any = FIRE
    stages: tuple[bool, ...] = (True,)  # symmetry fixed?


PROTOCOLS = {
    "leaderboard": Protocol(0.02, 500),
    "ksrme": Protocol(1e-4, 300, DIAGONAL, FIRE, (True, False)),
    "converged": Protocol(1e-3, 2000, (True,) * 6, BFGS),  # then Newton's method to the minimum
}


def check_protocol(protocol: str) -> None:
    """Raises InputError for a protocol that is not known."""
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no protocol '{protocol}'{nearest(protocol, PROTOCOLS)}: choose of {', '.join(PROTOCOLS)}"
        )


def relaxed(potential: Any, atoms: Any, protocol: str = "leaderboard") -> Atoms:
    """See `jaxmd_thermal.lattice.relax.relax`."""
    check_protocol(protocol)
    settings = PROTOCOLS[protocol]
    start = atoms_from(atoms)
    if not all(start.pbc):
        raise InputError(
            f"relaxing the cell needs periodicity in three directions, not {start.pbc.tolist()}: set atoms.pbc"
        )
    group = space_group(start)
    out, done = start.copy(), True
    for stage, fixed in enumerate(settings.stages):
        trial, converged = _stage(potential, out, settings, fixed)
        after = space_group(trial)
        if stage and after != group:
            break  # the free stage lost the symmetry: the result of the one before stands
        out, done = trial, converged
    if protocol == "converged":
        out = _polished(out, settings, done, potential)
    after = space_group(out)
    out.info["relaxation"] = {
        "protocol": protocol, "converged": bool(done), "space_group": after[0], "symmetry_kept": after == group,
    }  # fmt: skip
    return out


def relaxed_positions(potential: Any, atoms: Any, fmax: float = 1e-6, steps: int = 2000, shape: bool = False) -> Atoms:
    """The atoms at their minimum in a fixed cell, with the symmetry kept.

    Args:
      fmax: eV/Å.
      shape: let the cell change as well, with its volume kept.

    Raises:
      UnstableError: not converged.
    """
    atoms = atoms_from(atoms)
    atoms.set_constraint(FixSymmetry(atoms, symprec=SYMPREC))
    atoms.calc = Calculator(potential)
    free = FrechetCellFilter(atoms, constant_volume=True) if shape else atoms
    with BFGS(free, logfile=None) as optimizer:
        converged = optimizer.run(fmax=fmax, steps=steps)
    if not converged:
        raise UnstableError(f"the positions did not relax to {fmax} eV/Å in {steps} steps: is the structure stable?")
    atoms.calc = None
    atoms.set_constraint(None)
    return atoms


def _stage(potential: Any, atoms: Atoms, settings: Protocol, fixed: bool) -> tuple[Atoms, bool]:
    atoms = atoms.copy()
    atoms.set_constraint(FixSymmetry(atoms, symprec=SYMPREC) if fixed else None)
    atoms.calc = Calculator(potential)
    mask = None if all(settings.mask) else list(settings.mask)
    with settings.optimizer(FrechetCellFilter(atoms, mask=mask), logfile=None) as optimizer:
        converged = optimizer.run(fmax=settings.fmax, steps=settings.steps)
    atoms.calc = None
    atoms.set_constraint(None)
    return atoms, bool(converged)


def _polished(atoms: Atoms, settings: Protocol, done: bool, potential: Any) -> Atoms:
    """The minimum next to where the optimiser stopped; the converged protocol promises it, and derivatives need it."""
    atoms = atoms.copy()
    if done:
        positions, lattice = minimum(potential, System.from_atoms(atoms))
        atoms.set_cell(lattice)
        atoms.set_positions(positions)
    atoms.calc = Calculator(potential)
    force = float(np.max(np.abs(atoms.get_forces())))
    stress = float(np.max(np.abs(atoms.get_stress())))
    atoms.calc = None
    if not done or force > LARGEST_FORCE or stress > LARGEST_STRESS:
        raise UnstableError(
            f"the relaxation ended with a largest force of {force:.1e} eV/Å and stress of {stress:.1e} eV/Å^3 after at most "
            f"{settings.steps} steps; at most {LARGEST_FORCE} eV/Å and {LARGEST_STRESS} eV/Å^3 are accepted: is the "
            "potential smooth (float64, no jump at the cutoff), or the structure unstable?"
        )
    return atoms
