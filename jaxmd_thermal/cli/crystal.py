"""What lattice calculations of the command line are made of: source, relaxed cell, force constants, conductivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

FACES2, FACES3 = 15.0, 10.0
"""Å between opposite faces of the supercells of second and third order, where none are given."""
POINTS_LENGTH = 60.0
"""Å: the default mesh has this times the length of each reciprocal vector (1/Å, without 2 pi) as its number of points."""


@dataclass(frozen=True)
class Source:
    """What force constants are made of: a potential and a structure, or files.

    Attributes:
      potential: a potential, or None where `files` are given.
      atoms: the structure as given (files: their cell).
      protocol: of the relaxation ("none": none).
      supercell, fc3_supercell: 3 whole numbers or a matrix; the second is None without third order.
      displacement: Å, None: exact derivatives.
      primitive: "auto" or a matrix (phonopy's).
      files: force constants that were read.
      dtype: precision of the potential in force constants; the relaxation is always in double precision.
    """

    potential: Any
    atoms: Any
    protocol: str = "converged"
    supercell: Any = None
    fc3_supercell: Any = None
    displacement: float | None = 0.03
    batch_size: int | None = None
    primitive: Any = "auto"
    files: Any = None
    dtype: str = "float64"

    def key(self) -> dict[str, Any]:
        """What decides the relaxed cell; with the sizes of the supercells and the displacement it decides the constants."""
        from jaxmd_thermal.io.run_directory import fingerprint

        if self.files is not None:
            return {"files": fingerprint((self.files.fc2, self.files.fc3))}
        a = self.atoms
        structure = (a.positions, np.asarray(a.cell), a.numbers, a.get_masses())
        return {
            "structure": fingerprint(structure),
            "potential": fingerprint(self.potential),
            "protocol": self.protocol,
        }

    def supercell_atoms(self) -> Any:
        """The undisplaced supercell of second order."""
        from ase.build import make_supercell

        from jaxmd_thermal.lattice.symmetry import matrix_of

        return make_supercell(self.atoms, matrix_of(self.supercell).T)

    def full_key(self) -> dict[str, Any]:
        if self.files is not None:
            return self.key()
        return self.key() | {
            "supercell": _listed(self.supercell), "fc3_supercell": _listed(self.fc3_supercell),
            "displacement": self.displacement, "primitive": np.asarray(self.primitive).tolist(), "dtype": self.dtype,
        }  # fmt: skip


def _listed(supercell: Any) -> Any:
    return None if supercell is None else np.asarray(supercell).tolist()


def smallest_supercell(atoms: Any, faces: float) -> tuple[int, int, int]:
    """The smallest diagonal supercell with at least `faces` Å between opposite faces."""
    heights = 1.0 / np.linalg.norm(np.asarray(atoms.cell.reciprocal()), axis=1)
    return tuple(int(np.ceil(faces / h - 1e-6)) for h in heights)  # type: ignore[return-value]


def plan(source: Source) -> Any:
    """Force constants of the right size without values, for estimates of what comes after them."""
    from jaxmd_thermal.lattice import symmetry
    from jaxmd_thermal.lattice.force_constants import empty_force_constants, refuse_too_large

    if source.files is not None:
        return source.files
    geometry = symmetry.geometry_of(source.atoms, source.supercell, source.fc3_supercell, source.primitive)
    refuse_too_large(geometry)
    n = round(len(source.atoms) * abs(np.linalg.det(geometry.primitive_matrix)))
    per_cell = len(source.atoms)

    def zeros(matrix: np.ndarray, order: int) -> np.ndarray:
        copies = per_cell * round(np.linalg.det(matrix))
        return np.broadcast_to(0.0, (n, *(copies,) * (order - 1), *(3,) * order))

    third = geometry.fc3_supercell_matrix
    return empty_force_constants(
        geometry, zeros(geometry.supercell_matrix, 2), None if third is None else zeros(third, 3)
    )


def default_mesh(source: Source) -> tuple[int, int, int]:
    """Mesh of the primitive cell for densities of states; equal numbers along axes that a rotation mixes."""
    from jaxmd_thermal.lattice import symmetry

    crystal = plan(source).crystal
    mixed = np.any(symmetry.point_group(crystal) != 0, axis=0).astype(int)
    together = np.linalg.matrix_power(mixed + mixed.T, 2) > 0  # three axes: any two are at most two steps apart
    points = np.maximum(1, np.round(POINTS_LENGTH * np.linalg.norm(crystal.reciprocal, axis=1))).astype(int)
    return tuple(int(max(points[row])) for row in together)  # type: ignore[return-value]


def times(three: Any) -> str:
    """`3x3x3`."""
    return "x".join(str(int(n)) for n in three)


def crystal_and_constants(source: Source, folder: Any, stages: Callable) -> tuple[Any, Any]:
    """(relaxed atoms, force constants) from a `LatticeDirectory`, or computed and kept there."""
    from jaxmd_thermal.io.ase import formula
    from jaxmd_thermal.lattice.force_constants import force_constants

    if source.files is not None:
        return source.atoms, source.files
    key = source.key()
    atoms = folder.relaxed(key)
    if atoms is None and source.protocol == "none":
        atoms = source.atoms
    elif atoms is None:
        with stages("relaxation", f"{formula(source.atoms.numbers)}, protocol {source.protocol}"):
            atoms = _relaxed(source)
        folder.save_relaxed(key, atoms, stages.took["relaxation"])
    full = source.full_key()
    found = folder.force_constants(full)
    if found is None:
        with stages("force_constants", _evaluations(source, atoms)) as advance:
            found = force_constants(
                source.potential, atoms, source.supercell, source.fc3_supercell, source.displacement,
                batch_size=source.batch_size, primitive=source.primitive, dtype=source.dtype, progress=advance,
            )  # fmt: skip
        folder.save_force_constants(full, found, stages.took["force_constants"])
    return atoms, found


def _relaxed(source: Source) -> Any:
    from jaxmd_thermal.lattice.relax import relax

    if source.protocol == "none":
        return source.atoms
    if source.protocol == "positions":
        from jaxmd_thermal.io.relax import relaxed_positions

        return relaxed_positions(source.potential, source.atoms)
    return relax(source.potential, source.atoms, source.protocol)


def _evaluations(source: Source, atoms: Any) -> str:
    from jaxmd_thermal.lattice.force_constants import estimate_force_constants

    e = estimate_force_constants(atoms, source.supercell, source.fc3_supercell, source.displacement, source.batch_size)
    what = "displaced cells" if source.displacement is not None else "derivatives"
    text = f"{e.evaluations2} {what} of {e.atoms2} atoms"
    return text + (f" and {e.evaluations3} of {e.atoms3}" if e.evaluations3 else "")


def conductivity_stage(
    constants: Any, mesh: Any, method: str, options: Mapping[str, Any], source: Source, atoms: Any, folder: Any,
    stages: Callable, unstable: str = "", remark: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Entries of results.json of one method, with the mode file written; from the folder if they are there already.

    `unstable` and `remark` are those of `stability`, where the bands have been looked at as well.
    """
    from jaxmd_thermal.lattice.conductivity import thermal_conductivity

    key = source.full_key() | {"mesh": list(mesh), **options}
    name = f"modes-{method}.hdf5"
    kept = folder.entries(method, key)
    if kept is not None and (folder.path / name).exists():
        return kept
    with stages(method, f"mesh {times(mesh)}"):
        result = thermal_conductivity(constants, mesh, method=method, **options)
    if unstable:
        result = replace(result, invalid=unstable)
    write_modes(folder.path / name, result)
    theirs = folder.path / "phono3py" / method
    theirs.mkdir(parents=True, exist_ok=True)
    kappa_file = result.save(theirs).relative_to(folder.path)
    found = entries_of(result, atoms, name, str(kappa_file), remark)
    folder.save_entries(method, key, found, stages.took[method])
    return found


def write_modes(path: Path, result: Any) -> None:
    """Every array of a conductivity result, under the names of its attributes."""
    from jaxmd_thermal.io.hdf5 import write_arrays

    arrays = {
        f.name: getattr(result, f.name) for f in fields(result) if isinstance(getattr(result, f.name), np.ndarray)
    }
    facts = {"settings": dict(result.settings), "invalid": result.invalid, "volume_A3": result.crystal.volume}
    write_arrays(path, arrays, facts)


def entries_of(result: Any, atoms: Any, mode_file: str, kappa_file: str, remark: str = "") -> list[dict[str, Any]]:
    """Entries of results.json, one a temperature, with the names of both mode files. None has a statistical error."""
    from jaxmd_thermal.transport.results import ConductivityResult, to_json

    verdict = judge(result, atoms, remark)
    crystal, valid = result.crystal, not result.invalid
    found = []
    for k, temperature in enumerate(result.temperatures):
        parts = [np.asarray(x[k]) if valid else np.full((3, 3), np.nan)
                 for x in (result.kappa, result.kappa_populations, result.kappa_coherences)]  # fmt: skip
        one = ConductivityResult(
            method=result.settings["method"], temperature=float(temperature), kappa=parts[0], stderr=None,
            isotropic=float(np.trace(parts[0]) / 3), isotropic_stderr=None, verdict=verdict, volume=crystal.volume,
            n_atoms=len(crystal.numbers), details={"invalid": result.invalid, "settings": dict(result.settings)},
        )  # fmt: skip
        tensors = {
            f"{name}_W_mK": {"tensor": part, "isotropic": float(np.trace(part) / 3)}
            for name, part in zip(("populations", "coherences"), parts[1:])
        }
        found.append(to_json(one.as_dict() | tensors | {"mode_file": mode_file, "phono3py_file": kappa_file}))
    return found


def judge(result: Any, atoms: Any, remark: str = "") -> Any:
    """Whether the conductivity can be used, and what one run cannot tell."""
    from jaxmd_thermal.transport.results import Verdict

    if result.invalid:
        return Verdict(False, f"no conductivity: {result.invalid}")
    relaxation = (getattr(atoms, "info", {}).get("relaxation")) or {}
    if relaxation.get("symmetry_kept") is False:
        return Verdict(False, f"the relaxation changed the space group (now {relaxation.get('space_group')})")
    if relaxation.get("converged") is False:
        return Verdict(False, "the relaxation ran out of steps before its forces were small enough")
    mesh = times(result.settings["mesh"])
    return Verdict(
        True,
        f"no imaginary modes on the {mesh} mesh{remark}; mesh and supercells were not varied",
    )


def write_phonons(path: Path, constants: Any, solved: Any, along: Any, more: Mapping[str, Any] | None = None) -> None:
    """Bands and, from the phonons of a mesh with eigenvectors, densities of states, with other arrays of `more`."""
    from jaxmd_thermal.io.hdf5 import write_arrays
    from jaxmd_thermal.lattice.density import density_of_states

    dos = density_of_states(solved, projected=True)
    tree = {
        "bands": {
            "distance": {f"{i:03d}": d for i, d in enumerate(along.distances)},
            "frequencies": {f"{i:03d}": p.frequencies for i, p in enumerate(along.phonons)},
        },
        "dos": {"frequencies": dos.frequencies, "total": dos.total, "projected": dos.projected},
        **(more or {}),
    }
    notes = {
        "labels": [[a, b] for a, _, b, _ in along.segments], "numbers": constants.crystal.numbers.tolist(),
        "units": "distance 1/Å without 2 pi; frequencies THz; densities 1/THz per primitive cell",
    }  # fmt: skip
    write_arrays(path, tree, notes)


def everywhere(solved: Any, along: Any) -> Any:
    """The phonons of a mesh and of the bands in one, without eigenvectors: a mode may be imaginary on either alone."""
    from jaxmd_thermal.lattice.phonons import Phonons

    parts = [solved.phonons, *along.phonons]
    q, f = (np.concatenate([getattr(p, name) for p in parts]) for name in ("qpoints", "frequencies"))
    return Phonons(q, f, None, None, solved.phonons.crystal)


def stability(constants: Any, seen: Any) -> tuple[str, str]:
    """(imaginary modes that make a conductivity invalid, what a verdict says of the bands), of all phonons `seen`.

    Nearer to Gamma than half way to the first q-point of the supercell frequencies are extrapolated: the acoustic bands of
    stable polar crystals come out imaginary there. Such modes are said, and decide nothing.
    """
    from jaxmd_thermal.lattice.commensurate import commensurate_points

    def length(q: np.ndarray) -> np.ndarray:
        return np.linalg.norm((q - np.rint(q)) @ constants.crystal.reciprocal, axis=1)

    known = length(commensurate_points(constants.images2.matrix))
    near = 0.5 * known[known > 1e-8].min(initial=np.inf)
    told = (length(seen.qpoints) < 1e-8) | (length(seen.qpoints) > near)
    unstable = replace(seen, qpoints=seen.qpoints[told], frequencies=seen.frequencies[told]).describe_imaginary()
    if not seen.imaginary or unstable:
        return unstable, " and along the bands"
    lowest = seen.frequencies.min()
    return "", (
        f"; next to Γ, where the bands are extrapolated from the supercell, they are imaginary down to {lowest:.3f}i THz: a "
        "larger supercell would tell"
    )
