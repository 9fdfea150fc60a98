"""Finite displacements of a supercell, and how their forces become force constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.crystal import Images
from jaxmd_thermal.lattice.geometry import Geometry, Operations
from jaxmd_thermal.lattice.solver import SecondOrder, ThirdOrder, second_order, third_order


def second_order_plan(geometry: Geometry, distance: float) -> SecondOrder:
    """phonopy's displacements of a geometry, and how their forces become fc2."""
    return second_plan(geometry, finite_displacements(geometry, 2, distance))


def second_plan(geometry: Geometry, dataset: Mapping[str, Any]) -> SecondOrder:
    """How forces of given displacements, in phonopy's form, become fc2."""
    atoms = [(a["number"], a["displacement"]) for a in dataset["first_atoms"]]
    return second_order(atoms, *operations_and_images(symmetry.phonopy_object(geometry)))


def third_order_plan(geometry: Geometry, distance: float, pair_cutoff: float | None = None) -> ThirdOrder:
    """phono3py's displacements of a geometry, and how their forces become fc3."""
    return third_plan(geometry, finite_displacements(geometry, 3, distance, pair_cutoff))


def third_plan(geometry: Geometry, dataset: Mapping[str, Any]) -> ThirdOrder:
    """How forces of given single and pair displacements, in phono3py's form, become fc3."""
    atoms = [
        (a["number"], a["displacement"], [(b["number"], b["displacement"]) for b in included_pairs(a)])
        for a in dataset["first_atoms"]
    ]
    return third_order(atoms, *operations_and_images(symmetry.phonopy_object(geometry, 3)))


def finite_displacements(
    geometry: Geometry, order: int, distance: float, pair_cutoff: float | None = None
) -> Mapping[str, Any]:
    """phonopy's or phono3py's displacements of one atom, or of one and two."""
    if order == 2:
        made = symmetry.phonopy_object(geometry)
        made.generate_displacements(distance=distance)
    else:
        made = symmetry.phono3py_object(geometry)
        made.generate_displacements(distance=distance, cutoff_pair_distance=pair_cutoff)
    return made.dataset


def included_pairs(first: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Second displacements that are near enough."""
    return [b for b in first["second_atoms"] if b.get("included", True)]


def with_forces(dataset: Mapping[str, Any], forces: np.ndarray) -> Mapping[str, Any]:
    """The displacements with forces (cells, atoms, 3) of one moved atom first, then of two; pairs too far apart have zeros."""
    firsts = dataset["first_atoms"]
    of_pairs = iter(forces[len(firsts) :])
    none = np.zeros(forces.shape[1:])
    out = []
    for first, force in zip(firsts, forces):
        entry = dict(first) | {"forces": force}
        if "second_atoms" in first:
            entry["second_atoms"] = [
                dict(b) | {"forces": next(of_pairs) if b.get("included", True) else none} for b in first["second_atoms"]
            ]
        out.append(entry)
    return dict(dataset) | {"first_atoms": out}


def operations_and_images(phonopy: Any) -> tuple[Operations, Images]:
    """Space group and shortest vectors of phonopy's supercell, which every plan needs."""
    return symmetry.operations_of(phonopy), symmetry.images_of(phonopy.primitive, phonopy.supercell)
