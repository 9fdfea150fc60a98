"""Finite displacements of a supercell, and how their forces become force constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.crystal import Images
from jaxmd_thermal.lattice.geometry import Geometry, Operations
from jaxmd_thermal.lattice.solver import SecondOrder, ThirdOrder, second_order, third_order


def displacement_plan(
    geometry: Geometry, order: int, distance: float, pair_cutoff: float | None = None
) -> tuple[Mapping[str, Any], SecondOrder | ThirdOrder]:
    """phonopy's or phono3py's displacements of one atom, or of one and two, and how their forces become force constants."""
    made = _displaced(geometry, order, distance, pair_cutoff)
    return made.dataset, _PLANS[order](made.dataset, *operations_and_images(made))


def finite_displacements(
    geometry: Geometry, order: int, distance: float, pair_cutoff: float | None = None
) -> Mapping[str, Any]:
    """The displacements alone."""
    return _displaced(geometry, order, distance, pair_cutoff).dataset


def _displaced(geometry: Geometry, order: int, distance: float, pair_cutoff: float | None) -> Any:
    if order == 2:
        made = symmetry.phonopy_object(geometry)
        made.generate_displacements(distance=distance)
    else:
        # Without a supercell of second order, the operations of which phono3py would search in vain.
        third = replace(geometry, supercell_matrix=geometry.fc3_supercell_matrix)
        made = symmetry.phono3py_object(third, own_second=False)
        made.generate_displacements(distance=distance, cutoff_pair_distance=pair_cutoff)
    return made


def _second_plan(dataset: Mapping[str, Any], operations: Operations, images: Images) -> SecondOrder:
    return second_order([(a["number"], a["displacement"]) for a in dataset["first_atoms"]], operations, images)


def _third_plan(dataset: Mapping[str, Any], operations: Operations, images: Images) -> ThirdOrder:
    atoms = [
        (a["number"], a["displacement"], [(b["number"], b["displacement"]) for b in included_pairs(a)])
        for a in dataset["first_atoms"]
    ]
    return third_order(atoms, operations, images)


_PLANS = {2: _second_plan, 3: _third_plan}


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
