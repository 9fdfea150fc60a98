"""Files of phonopy and phono3py, to and from `ForceConstants`. Only the named path is read, never the working directory.

Cells, displacements and forces of a file are in the units of its `calculator` (none: Å and eV), and so are phonopy's force
constants; phono3py computes with Å and eV whatever the calculator is.
"""

from __future__ import annotations

import gzip
import io
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal._backend import writable_directory
from jaxmd_thermal.errors import InputError, OutputError, nearest
from jaxmd_thermal.io.force_sets import has_forces, read_force_sets, read_sets
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.force_constants import ForceConstants, empty_force_constants
from jaxmd_thermal.lattice.geometry import Geometry
from jaxmd_thermal.system import System
from jaxmd_thermal.units import COULOMB

YAML_NAMES = ("phono3py_params", "phonopy_params", "phono3py", "phono3py_disp", "phonopy", "phonopy_disp")
SUFFIXES = (".yaml", ".yaml.xz", ".yaml.gz")

EV_A2 = "eV/angstrom^2"
"""Unit of second order, as phonopy writes it."""


def read_force_constants(path: str | Path, symmetrize: bool = True) -> ForceConstants:
    """See `ForceConstants.from_phono3py`."""
    path = Path(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"there is no file or folder '{path}'{nearest(path.name, siblings)}: give the path of phonopy's files"
        )
    folder = path if path.is_dir() else None
    file = _yaml_in(path) if folder else path
    third, data = _parsed(file)
    units = _units(file, data)
    geometry = _geometry(file, data, third, units)
    nac, source = data.nac_params, file
    if nac is None and folder is not None and (folder / "BORN").exists():
        source = folder / "BORN"
        nac = _born(source, geometry)
    constants = EV_A2 if third else units.force_constants_unit
    fc2, fc3 = _stored(folder, geometry, constants) if folder else (None, None)
    if fc2 is None and getattr(data, "force_constants", None) is not None:
        values = np.array(data.force_constants, float) * _factor(constants, file)
        fc2 = _compact(values, geometry, 2, f"force_constants of '{file}'")
    has_third = has_forces(data.dataset) or (folder is not None and (folder / "FORCES_FC3").exists())
    sets = None
    if fc2 is None or (third and fc3 is None and has_third):
        sets = read_force_sets(file, folder, data, third, geometry, units, fc2 is None)
        computed2, computed3 = symmetry.solve_force_sets(geometry, sets, symmetrize)
        fc2 = computed2 if fc2 is None else fc2
        fc3 = computed3 if fc3 is None else fc3
    out = empty_force_constants(geometry, fc2, fc3, nac).replace(force_sets=sets)
    if nac is not None:
        _check_nac(source, nac, len(out.crystal.numbers), third, units)
        out = out.replace(crystal=symmetry.symmetric_nac(out.crystal, symprec=geometry.symprec))
    return out


def read_displaced(path: str | Path) -> tuple[System, np.ndarray, np.ndarray]:
    """Supercell, displacements (sets, atoms, 3) in Å and forces (sets, atoms, 3) in eV/Å of a file or folder.

    Of third order where the file is phono3py's.

    Raises:
      InputError: as `read_force_constants`, and where there are no forces.
    """
    path = Path(path)
    folder = path if path.is_dir() else None
    file = _yaml_in(path) if folder else path
    third, data = _parsed(file)
    units = _units(file, data)
    geometry = _geometry(file, data, third, units)
    supercell = symmetry.system_of(symmetry.cells_of(geometry, 3 if third else 2)[1])
    sets = read_sets(file, folder, "FORCES_FC3" if third else "FORCE_SETS", data.dataset, supercell.n_atoms, units)
    if "displacements" in sets:
        return supercell, np.array(sets["displacements"], float), np.array(sets["forces"], float)
    cutoff = sets.get("cutoff_distance", np.inf)  # beyond it phono3py has zeros instead of forces
    moves, forces = [], []

    def add(entry: Any, shift: np.ndarray) -> np.ndarray:
        shift = shift.copy()
        shift[entry["number"]] += entry["displacement"]
        if entry.get("forces") is not None:
            moves.append(shift)
            forces.append(np.array(entry["forces"], float))
        return shift

    for first in sets["first_atoms"]:
        moved = add(first, np.zeros((supercell.n_atoms, 3)))
        for second in first.get("second_atoms", ()):
            if second.get("pair_distance", 0.0) < cutoff:
                add(second, moved)
    return supercell, np.stack(moves), np.stack(forces)


def write_force_constants(force_constants: ForceConstants, folder: str | Path) -> Path:
    """See `ForceConstants.save`."""
    import h5py

    fc = force_constants
    if fc.geometry is None:
        raise InputError(
            "these force constants have no `geometry` (the given cell and its matrices): they cannot be saved"
        )
    folder = writable_directory(folder)
    crystal = fc.crystal
    nac = None if crystal.born is None else {"born": crystal.born, "dielectric": crystal.dielectric, "factor": COULOMB}
    third = fc.fc3 is not None
    kind = "phono3py" if third else "phonopy"
    sets = fc.force_sets
    others = [] if third else ["fc3.hdf5", "phono3py.yaml", "phono3py_params.yaml"]
    stale = [n for n in others + [f"{kind}_params.yaml"] * (sets is None) if (folder / n).exists()]
    if stale:
        raise OutputError(
            f"'{folder}' holds {', '.join(stale)} of another result, which these force constants do not replace: choose another "
            "folder"
        )
    phonon = symmetry.phono3py_object(fc.geometry) if third else symmetry.phonopy_object(fc.geometry)
    if nac is not None:
        phonon.nac_params = nac
    try:
        settings = {"force_sets": False, "displacements": False, "force_constants": False}
        phonon.save(str(folder / f"{kind}.yaml"), settings=settings)
        if sets is not None:
            holder = symmetry.with_sets(fc.geometry, sets, nac)
            holder.save(str(folder / f"{kind}_params.yaml"), settings={"force_constants": False})
        with h5py.File(folder / "fc2.hdf5", "w") as file:
            file["force_constants"] = np.asarray(fc.fc2, float)
            file["p2s_map"] = fc.images2.primitive_rows.astype("int64")
            file["physical_unit"] = np.array([EV_A2.encode()])
        if third and fc.images3 is not None:
            with h5py.File(folder / "fc3.hdf5", "w") as file:
                file.create_dataset("fc3", data=np.asarray(fc.fc3, float), compression="gzip", compression_opts=1)
                file["p2s_map"] = fc.images3.primitive_rows.astype("int64")
    except OSError as error:
        raise OutputError(f"cannot write force constants to '{folder}': {error}; choose another folder") from error
    return folder


def _yaml_in(folder: Path) -> Path:
    # Beside finished force constants the cell is enough: force sets of third order are long to read.
    finished = all((folder / name).is_file() for name in ("fc2.hdf5", "fc3.hdf5"))
    for name in (*(("phono3py",) if finished else ()), *YAML_NAMES):
        for suffix in SUFFIXES:
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise InputError(
        f"the folder '{folder}' holds no cell: one of {', '.join(n + '.yaml' for n in YAML_NAMES)} (or .xz, .gz) is expected; "
        f"it holds {held}"
    )


def _text(path: Path) -> str:
    try:
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes()).decode()
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode()
        return path.read_text()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{path}' cannot be read ({error}): a text file of phonopy or phono3py is expected, plain, .xz or .gz"
        ) from error


def _parsed(path: Path) -> tuple[bool, Any]:
    """Whether the file is phono3py's, and its parsed content."""
    import yaml

    text = _text(path)
    third = any(line.startswith("phono3py:") for line in text.splitlines()[:20])
    try:
        if third:
            from phono3py.interface.phono3py_yaml import Phono3pyYaml

            data: Any = Phono3pyYaml()
        else:
            from phonopy.interface.phonopy_yaml import PhonopyYaml

            data = PhonopyYaml()
        data.read(io.StringIO(text))
    except ImportError as error:
        raise InputError(
            f"'{path}' is phono3py's; reading it needs phono3py: pip install 'jaxmd-thermal[phono3py]'"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else "somewhere"
        raise InputError(
            f"'{path}' is not valid YAML at {where} ({getattr(error, 'problem', error)}): is it complete?"
        ) from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if "physical_unit" in str(error):
            raise InputError(
                f"'{path}' names units that are not those of its calculator ({' '.join(str(error).split())}): correct "
                "`physical_unit` or `calculator`"
            ) from error
        raise InputError(
            f"'{path}' lacks or garbles an entry of phonopy's format ({type(error).__name__}: {error}); unit_cell, "
            "supercell_matrix and displacements with forces are expected"
        ) from error
    if data.unitcell is None or data.supercell_matrix is None:
        missing = "unit_cell" if data.unitcell is None else "supercell_matrix"
        raise InputError(f"'{path}' has no `{missing}`: a phonopy.yaml or phono3py.yaml with the cell is expected")
    return third, data


def _units(path: Path, data: Any) -> Any:
    """phonopy's units of the calculator that a file names."""
    from phonopy.physical_units import get_calculator_physical_units

    try:
        return get_calculator_physical_units(data.calculator)
    except ValueError as error:
        raise InputError(
            f"'{path}' is of the calculator '{data.calculator}', whose units phonopy does not know: convert the file to Å and "
            "eV and leave `calculator` out"
        ) from error


def _factor(unit: str, source: Path) -> float:
    """eV/Å^2 in another unit of second order."""
    from phonopy.interface.calculator import get_force_constant_conversion_factor

    try:
        return float(get_force_constant_conversion_factor(unit, None))
    except KeyError as error:
        raise InputError(
            f"'{source}' has force constants in {unit}, which cannot be converted to {EV_A2}: write them in that unit"
        ) from error


def _geometry(path: Path, data: Any, third: bool, units: Any) -> Geometry:
    unit = symmetry.crystal_of(data.unitcell)
    unit = replace(unit, lattice=unit.lattice * units.distance_to_A)
    matrix = symmetry.matrix_of(data.supercell_matrix, f"'{path}': supercell_matrix")
    primitive = data.primitive_matrix
    phonon = getattr(data, "phonon_supercell_matrix", None) if third else None
    second = matrix if phonon is None else symmetry.matrix_of(phonon, f"'{path}': phonon_supercell_matrix")
    if primitive is None:
        primitive = np.eye(3)  # what phonopy meant when it wrote none
    if isinstance(primitive, str):
        primitive = symmetry.phonopy_of(unit, np.eye(3, dtype=int), primitive, searched=False).primitive_matrix
    symprec = float(getattr(data, "symprec", None) or symmetry.SYMPREC)
    return Geometry(unit, np.array(primitive, float), second, matrix if third else None, symprec)


def _check_nac(path: Path, nac: Any, n_prim: int, third: bool, units: Any) -> None:
    if np.shape(nac["born"]) != (n_prim, 3, 3) or np.shape(nac["dielectric"]) != (3, 3):
        raise InputError(
            f"'{path}': Born charges {np.shape(nac['born'])} and dielectric tensor {np.shape(nac['dielectric'])}; "
            f"{(n_prim, 3, 3)} and (3, 3) are expected, for the atoms of the primitive cell"
        )
    # The factor is e^2/(4 pi epsilon_0) in the units of the force constants: any other one is hidden in the charges' unit.
    known = {units.force_constants_unit: units.nac_factor} | ({EV_A2: COULOMB} if third else {})
    factor = nac.get("factor")
    if factor is not None and not np.any(np.isclose(factor, list(known.values()), rtol=1e-3)):
        raise InputError(
            f"'{path}' has the factor {factor} of the non-analytic correction; charges in units of e have "
            f"{' or '.join(f'{value:.6g} with {unit}' for unit, value in known.items())}: correct the factor or the charges"
        )


def _born(path: Path, geometry: Geometry) -> Any:
    from phonopy.file_IO import parse_BORN

    primitive, _ = symmetry.cells_of(geometry)
    try:
        return parse_BORN(primitive, symprec=geometry.symprec, filename=str(path))
    except Exception as error:  # whatever the parser stumbles over
        raise InputError(
            f"'{path}' is not a BORN file of this crystal ({error}): the dielectric tensor (9 numbers) and one line of 9 "
            "numbers for each symmetry-distinct atom are expected"
        ) from error


def _stored(folder: Path, geometry: Geometry, unit: str) -> tuple[Any, Any]:
    """fc2 and fc3 out of HDF5 files of a folder, or None; `unit` of second order where a file names none."""
    fc2 = fc3 = None
    for name in ("fc2.hdf5", "force_constants.hdf5"):
        if (folder / name).exists() and fc2 is None:
            values, named = _dataset(folder / name, ("force_constants", "fc2"))
            values = values * _factor(named or unit, folder / name)
            fc2 = _compact(values, geometry, 2, f"'{folder / name}'")
    if (folder / "FORCE_CONSTANTS").exists() and fc2 is None:
        from phonopy.file_IO import parse_FORCE_CONSTANTS

        try:
            values = parse_FORCE_CONSTANTS(filename=str(folder / "FORCE_CONSTANTS"))
        except Exception as error:
            raise InputError(f"'{folder / 'FORCE_CONSTANTS'}' cannot be parsed ({error}): is it complete?") from error
        values = np.array(values, float) * _factor(unit, folder / "FORCE_CONSTANTS")
        fc2 = _compact(values, geometry, 2, f"'{folder / 'FORCE_CONSTANTS'}'")
    if (folder / "fc3.hdf5").exists() and geometry.fc3_supercell_matrix is not None:
        values, named = _dataset(folder / "fc3.hdf5", ("fc3",))
        if named not in (None, "eV/angstrom^3"):
            raise InputError(
                f"'{folder / 'fc3.hdf5'}' is in {named}; eV/angstrom^3 is expected, as phono3py writes it: convert the file"
            )
        fc3 = _compact(values, geometry, 3, f"'{folder / 'fc3.hdf5'}'")
    return fc2, fc3


def _dataset(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray, str | None]:
    """The first of the datasets that there is, and the unit that the file names."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            named = np.ravel(file["physical_unit"].asstr()[()])[0] if "physical_unit" in file else None
            for name in names:
                if name in file:
                    return np.array(file[name], float), named
            raise InputError(f"'{path}' has no dataset `{names[0]}`; it holds {', '.join(file) or 'nothing'}")
    except OSError as error:
        raise InputError(f"'{path}' is not a readable HDF5 file ({error}): write it again") from error


def _compact(values: np.ndarray, geometry: Geometry, order: int, what: str) -> np.ndarray:
    """The compact layout of a compact or full array."""
    primitive, supercell = symmetry.cells_of(geometry, order)
    n_prim, n_super = len(primitive), len(supercell)
    tail = (n_super,) * (order - 1) + (3,) * order
    if values.shape == (n_super, *tail):
        values = values[np.asarray(primitive.p2s_map)]
    if values.shape != (n_prim, *tail):
        raise InputError(
            f"{what} has the shape {values.shape}; the cell has {n_prim} primitive and {n_super} supercell atoms, so "
            f"{(n_prim, *tail)} or {(n_super, *tail)} is expected"
        )
    if not np.all(np.isfinite(values)):
        raise InputError(f"{what} holds values that are not finite: write it again")
    return values
