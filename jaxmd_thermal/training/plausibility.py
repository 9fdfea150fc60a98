"""Labels in wrong units: forces or displacements off by an order of magnitude are found before a network learns them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.system import System
from jaxmd_thermal.training.data import Frame
from jaxmd_thermal.units import COULOMB

SELF_TERMS = (0.7, 22.0)
"""Self-terms of force constants over their estimate from distances; 1.4 to 11 in 26 crystals from rock salt to silicon."""

DISPLACEMENTS = (0.004, 0.09)
"""Å, lengths of the single displacements of finite-difference sets; 0.01 to 0.03 is usual."""

NEAR = 0.8
"""Å: frames that differ by more say nothing of each other; where third order spoils the sum, the correlation falls."""

OFF = 4.0
"""Labels that agree with something else but for a factor beyond this are in other units."""

ALIKE = 0.8
"""Correlation from which two sets of numbers say the same but for a factor."""


def check_force_constants(frame: Frame) -> None:
    """Compare the self-terms of a frame's Hessian with an estimate from distances to the neighbours.

    Raises:
      InputError: names the source and the factor.
    """
    if frame.columns is None or frame.hessian is None:
        return
    columns = np.asarray(frame.columns)
    found = {}
    for atom in np.unique(columns // 3):
        mine = np.flatnonzero(columns // 3 == atom)
        if len(mine) >= 3:
            found[int(atom)] = float(np.mean([frame.hessian[row, atom, columns[row] % 3] for row in mine]))
    _check_self_terms(frame, found, frame.source)


def check_restoring_forces(system: System, displacements: np.ndarray, forces: np.ndarray, source: str) -> None:
    """The same for displacements (sets, atoms, 3) of one atom each, Å, and the forces (sets, atoms, 3) that answer, eV/Å.

    Raises:
      InputError: names the source and the factor.
    """
    work = -np.sum(np.asarray(forces, float) * displacements, axis=2)
    squares = np.sum(np.asarray(displacements, float) ** 2, axis=2)
    moved = np.flatnonzero(np.any(squares > 0.0, axis=0))
    found = {int(atom): float(work[:, atom].sum() / squares[:, atom].sum()) for atom in moved}
    _check_self_terms(system, found, source)


def _check_self_terms(structure: Frame | System, found: Mapping[int, float], source: str) -> None:
    """Self-terms (eV/Å^2) of some atoms beside their estimate.

    It is sum_j e^2/(4 pi eps0 d^3) exp(-4 (d/d0 - 1))/3 with d0 the sum of the covalent radii: right within a factor of
    three for solids. A factor of ten stands out for most of them; `fit` finds the rest, where the potential that it starts
    from disagrees.
    """
    from ase.data import covalent_radii

    positions, cell, numbers = (np.asarray(x) for x in (structure.positions, structure.cell, structure.numbers))
    inverse = np.linalg.inv(cell)
    ratios = []
    for atom, self_term in found.items():
        apart = (positions - positions[atom]) @ inverse
        apart = np.linalg.norm((apart - np.rint(apart)) @ cell, axis=1)
        others = apart > 0.1
        if not others.any():
            continue
        touching = covalent_radii[numbers[atom]] + covalent_radii[numbers[others]]
        near = apart[others]
        ratios.append(self_term / np.sum(COULOMB / (3.0 * near**3) * np.exp(-4.0 * (near / touching - 1.0))))
    if not ratios:
        return
    if np.mean(ratios) <= 0:
        raise InputError(
            f"{source}: its atoms are not driven back to where they are (self-terms of {min(found.values()):.3g} to "
            f"{max(found.values()):.3g} eV/Å²): are forces or force constants of the other sign? If they are right, switch "
            "the check off (check_units=False)"
        )
    typical = float(np.exp(np.mean(np.log([ratio for ratio in ratios if ratio > 0]))))
    low, high = SELF_TERMS
    if not low <= typical <= high:
        factor = typical / np.sqrt(low * high)
        raise InputError(
            f"{source}: its force constants are about {factor:.2g} times what such distances suggest: are forces "
            "(eV/Å) or displacements (Å) in other units? If they are right, switch the check off (check_units=False)"
        )


def check_displacements(displacements: np.ndarray, source: str) -> None:
    """Raises InputError where single-atom displacements (sets, atoms, 3) are of another order than Å/100."""
    lengths = np.linalg.norm(np.asarray(displacements, float), axis=-1).max(axis=1)
    low, high = DISPLACEMENTS
    if lengths.min() < low or lengths.max() > high:
        odd = lengths[(lengths < low) | (lengths > high)][0]
        raise InputError(
            f"{source}: a displacement is {odd:.3g} Å; {low} to {high} Å is usual for finite differences: are displacements in "
            "other units? If they are right, switch the check off (check_units=False)"
        )


def check_energies_and_forces(frames: Sequence[Frame], source: str) -> None:
    """Compare differences of energy between similar structures with the work of their forces.

    Consecutive frames of the same atoms, none of which moves more than `NEAR`, have but for third order
    `E' - E = -1/2 (F + F') . dx + 1/2 V (stress + stress') : strain`, with `dx` what the scaled coordinates change by. Where
    the cells differ, both stresses are needed.

    Raises:
      InputError: names the source and the factor between the two.
    """
    work, gain = [], []
    for a, b in itertools.pairwise(frames):
        if a.energy is None or b.energy is None or a.forces is None or b.forces is None:
            continue
        if not np.array_equal(a.numbers, b.numbers) or a.pbc != b.pbc:
            continue
        strained = not np.allclose(a.cell, b.cell, atol=1e-6)
        if strained and (a.stress is None or b.stress is None):
            continue
        moved, more = np.asarray(b.positions) - np.asarray(a.positions), 0.0
        if all(a.pbc):
            cell, other = np.asarray(a.cell, float), np.asarray(b.cell, float)
            fractional = b.positions @ np.linalg.inv(other) - a.positions @ np.linalg.inv(cell)
            moved = (fractional - np.rint(fractional)) @ (0.5 * (cell + other))
            if strained:
                change = np.linalg.inv(cell) @ other - np.eye(3)
                volume = 0.5 * abs(np.linalg.det(cell) + np.linalg.det(other))
                more = 0.5 * volume * float(np.sum((a.stress + b.stress) * 0.5 * (change + change.T)))
        if np.max(np.abs(moved)) < NEAR:
            work.append(more - 0.5 * float(np.sum((a.forces + b.forces) * moved)))
            gain.append(b.energy - a.energy)
    if len(work) < 4:
        return
    factor = agreement(np.array(work), np.array(gain))
    if factor is not None and not 1 / OFF < factor < OFF:
        raise InputError(
            f"{source}: energies differ by {factor:.3g} times the work of the forces between similar frames: are energies (eV), "
            "forces (eV/Å), stresses or lengths (Å) in other units, or of the other sign? "
            "If they are right, switch the check off (check_units=False)"
        )


def agreement(one: np.ndarray, other: np.ndarray) -> float | None:
    """The factor from `one` to `other` if they agree but for it (correlation about zero beyond 0.8); else None."""
    return factor_of(float(np.vdot(one, other)), float(np.vdot(one, one)), float(np.vdot(other, other)))


def factor_of(product: float, one: float, other: float) -> float | None:
    """`agreement` from sums of products: of both, of the first with itself, of the other with itself."""
    if not (one > 0 and other > 0 and abs(product) >= ALIKE * np.sqrt(one * other)):
        return None
    return float(np.copysign(np.sqrt(other / one), product))
