"""Displacements with forces out of files of phonopy and phono3py, in Å and eV/Å."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.geometry import ForceSets, Geometry


def read_force_sets(
    file: Path, folder: Path | None, data: Any, third: bool, geometry: Geometry, units: Any, need2: bool
) -> ForceSets:
    """The force sets of a file or folder; second order of phono3py's files only where `need2`."""
    n2 = len(symmetry.cells_of(geometry)[1])
    if not third:
        return ForceSets(read_sets(file, folder, "FORCE_SETS", data.dataset, n2, units))
    n3 = len(symmetry.cells_of(geometry, 3)[1])
    pairs = read_sets(file, folder, "FORCES_FC3", data.dataset, n3, units)
    own = getattr(data, "phonon_dataset", None)
    if need2 and ((folder is not None and (folder / "FORCES_FC2").exists()) or has_forces(own)):
        return ForceSets(read_sets(file, folder, "FORCES_FC2", own, n2, units), pairs)
    if need2 and np.any(geometry.supercell_matrix != geometry.fc3_supercell_matrix):
        raise InputError(
            f"'{file}' names another supercell for second order (phonon_supercell_matrix) and has no forces for it "
            "(`phonon_displacements`, FORCES_FC2): add them"
        )
    return ForceSets(third=pairs)


def has_forces(dataset: Any) -> bool:
    """Whether every displacement of a set (type 1 or 2; None: no set) has forces."""
    if not dataset:
        return False
    if "displacements" in dataset:
        return dataset.get("forces") is not None
    return all("forces" in entry for entry in dataset["first_atoms"])


def read_sets(file: Path, folder: Path | None, name: str, dataset: Any, n_atoms: int, units: Any) -> Mapping[str, Any]:
    """Displacements with forces in Å and eV/Å, checked: out of the YAML file, or of `name` in the folder."""
    source = file
    if folder is not None and (folder / name).exists():
        source = folder / name
        try:
            # Random displacements stand in the same file as their forces, in one form for all orders.
            if name == "FORCE_SETS" or _columns(source) == 6:
                from phonopy.file_IO import parse_FORCE_SETS

                dataset = parse_FORCE_SETS(natom=n_atoms, filename=str(source))
            elif not dataset:
                raise ValueError(f"'{file}' holds no displacements that the forces belong to (phono3py_disp.yaml)")
            elif name == "FORCES_FC3":
                from phono3py.file_IO import parse_FORCES_FC3

                parse_FORCES_FC3(dataset, filename=str(source))
            else:
                from phono3py.file_IO import parse_FORCES_FC2

                parse_FORCES_FC2(dataset, filename=str(source))
        except Exception as error:
            raise InputError(
                f"'{source}' cannot be parsed ({error}): {name} with {n_atoms} lines of forces for every displacement of "
                f"'{file.name}' is expected"
            ) from error
    if not has_forces(dataset):
        raise InputError(
            f"'{source}' holds no forces: displacements with `forces` are expected in it, or a file {name}, fc2.hdf5 or "
            "fc3.hdf5 beside it (give the folder then)"
        )
    held = np.shape(dataset["forces"])[1] if "displacements" in dataset else len(dataset["first_atoms"][0]["forces"])
    if held != n_atoms:
        raise InputError(
            f"'{source}' holds forces of {held} atoms; the supercell has {n_atoms}: is it of another supercell?"
        )
    factors = {"forces": units.force_to_eVperA} | dict.fromkeys(
        ("displacement", "displacements", "cutoff_distance", "pair_distance"), units.distance_to_A
    )
    return _scaled(dataset, factors)


def _columns(path: Path) -> int:
    """Numbers in the first line that is no comment."""
    with path.open() as file:
        return len(next(filter(None, (line.split("#")[0].split() for line in file)), []))


def _scaled(node: Any, factors: Mapping[str, float]) -> Any:
    """Nested mappings and lists with the entries of these names multiplied."""
    if isinstance(node, Mapping):
        return {
            k: np.asarray(v, float) * factors[k] if k in factors and v is not None else _scaled(v, factors)
            for k, v in node.items()
        }
    return [_scaled(v, factors) for v in node] if isinstance(node, list) else node
