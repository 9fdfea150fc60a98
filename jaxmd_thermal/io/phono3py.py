"""Files of phonopy and phono3py, to and from `ForceConstants`. Only the named path is read, never the working directory."""

from __future__ import annotations

import gzip
import io
import lzma
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal._backend import writable_directory
from jaxmd_thermal.errors import InputError, OutputError, nearest
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.force_constants import ForceConstants, empty_force_constants
from jaxmd_thermal.lattice.symmetry import Geometry
from jaxmd_thermal.system import System
from jaxmd_thermal.units import COULOMB

YAML_NAMES = ("phono3py_params", "phonopy_params", "phono3py", "phono3py_disp", "phonopy", "phonopy_disp")
SUFFIXES = (".yaml", ".yaml.xz", ".yaml.gz")


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
    geometry = _geometry(file, data, third)
    nac = data.nac_params
    if nac is None and folder is not None and (folder / "BORN").exists():
        nac = _born(folder / "BORN", geometry)
    fc2, fc3 = _stored(folder, geometry) if folder else (None, None)
    if fc2 is None and getattr(data, "force_constants", None) is not None:
        fc2 = _compact(np.array(data.force_constants, float), geometry, 2, f"force_constants of '{file}'")
    has_third = _has_forces(data.dataset) or (folder is not None and (folder / "FORCES_FC3").exists())
    if fc2 is None or (third and fc3 is None and has_third):
        computed2, computed3 = _from_forces(file, folder, data, third, geometry, symmetrize, fc2 is None)
        fc2 = computed2 if fc2 is None else fc2
        fc3 = computed3 if fc3 is None else fc3
    out = empty_force_constants(geometry, fc2, fc3, nac)
    if nac is not None:
        _check_nac(file, nac, len(out.crystal.numbers))
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
    geometry = _geometry(file, data, third)
    supercell = symmetry.system_of(symmetry.phonopy_object(geometry, 3 if third else 2).supercell)
    sets = _sets(file, folder, "FORCES_FC3" if third else "FORCE_SETS", data.dataset, supercell.n_atoms)
    if "displacements" in sets:
        return supercell, np.array(sets["displacements"], float), np.array(sets["forces"], float)
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
    stale = [n for n in ("fc3.hdf5", "phono3py.yaml") if not third and (folder / n).exists()]
    if stale:
        raise OutputError(
            f"'{folder}' holds {', '.join(stale)} of another result, and these force constants have no third order: choose "
            "another folder"
        )
    phonon = symmetry.phono3py_object(fc.geometry) if third else symmetry.phonopy_object(fc.geometry)
    if nac is not None:
        phonon.nac_params = nac
    try:
        name = folder / ("phono3py.yaml" if third else "phonopy.yaml")
        settings = {"force_sets": False, "displacements": False, "force_constants": False}
        phonon.save(str(name), settings=settings)
        with h5py.File(folder / "fc2.hdf5", "w") as file:
            file["force_constants"] = np.asarray(fc.fc2, float)
            file["p2s_map"] = fc.images2.primitive_rows.astype("int64")
            file["physical_unit"] = np.array([b"eV/angstrom^2"])
        if third and fc.images3 is not None:
            with h5py.File(folder / "fc3.hdf5", "w") as file:
                file.create_dataset("fc3", data=np.asarray(fc.fc3, float), compression="gzip", compression_opts=1)
                file["p2s_map"] = fc.images3.primitive_rows.astype("int64")
    except OSError as error:
        raise OutputError(f"cannot write force constants to '{folder}': {error}; choose another folder") from error
    return folder


def _yaml_in(folder: Path) -> Path:
    for name in YAML_NAMES:
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
        raise InputError(
            f"'{path}' lacks or garbles an entry of phonopy's format ({type(error).__name__}: {error}); unit_cell, "
            "supercell_matrix and displacements with forces are expected"
        ) from error
    if data.unitcell is None or data.supercell_matrix is None:
        missing = "unit_cell" if data.unitcell is None else "supercell_matrix"
        raise InputError(f"'{path}' has no `{missing}`: a phonopy.yaml or phono3py.yaml with the cell is expected")
    return third, data


def _geometry(path: Path, data: Any, third: bool) -> Geometry:
    unit = symmetry.crystal_of(data.unitcell)
    matrix = symmetry.matrix_of(data.supercell_matrix, f"'{path}': supercell_matrix")
    primitive = data.primitive_matrix
    phonon = getattr(data, "phonon_supercell_matrix", None) if third else None
    second = matrix if phonon is None else symmetry.matrix_of(phonon, f"'{path}': phonon_supercell_matrix")
    if primitive is None:
        primitive = np.eye(3)  # what phonopy meant when it wrote none
    if isinstance(primitive, str):
        primitive = symmetry.phonopy_of(unit, matrix, primitive).primitive_matrix
    symprec = float(getattr(data, "symprec", None) or symmetry.SYMPREC)
    return Geometry(unit, np.array(primitive, float), second, matrix if third else None, symprec)


def _check_nac(path: Path, nac: Any, n_prim: int) -> None:
    if np.shape(nac["born"]) != (n_prim, 3, 3) or np.shape(nac["dielectric"]) != (3, 3):
        raise InputError(
            f"'{path}': Born charges {np.shape(nac['born'])} and dielectric tensor {np.shape(nac['dielectric'])}; "
            f"{(n_prim, 3, 3)} and (3, 3) are expected, for the atoms of the primitive cell"
        )


def _born(path: Path, geometry: Geometry) -> Any:
    from phonopy.file_IO import parse_BORN

    phonopy = symmetry.phonopy_object(geometry)
    try:
        return parse_BORN(phonopy.primitive, symprec=geometry.symprec, filename=str(path))
    except Exception as error:  # whatever the parser stumbles over
        raise InputError(
            f"'{path}' is not a BORN file of this crystal ({error}): the dielectric tensor (9 numbers) and one line of 9 "
            "numbers for each symmetry-distinct atom are expected"
        ) from error


def _stored(folder: Path, geometry: Geometry) -> tuple[Any, Any]:
    """fc2 and fc3 out of HDF5 files of a folder, or None."""
    fc2 = fc3 = None
    for name in ("fc2.hdf5", "force_constants.hdf5"):
        if (folder / name).exists() and fc2 is None:
            fc2 = _compact(_dataset(folder / name, ("force_constants", "fc2")), geometry, 2, f"'{folder / name}'")
    if (folder / "FORCE_CONSTANTS").exists() and fc2 is None:
        from phonopy.file_IO import parse_FORCE_CONSTANTS

        try:
            values = parse_FORCE_CONSTANTS(filename=str(folder / "FORCE_CONSTANTS"))
        except Exception as error:
            raise InputError(f"'{folder / 'FORCE_CONSTANTS'}' cannot be parsed ({error}): is it complete?") from error
        fc2 = _compact(np.array(values, float), geometry, 2, f"'{folder / 'FORCE_CONSTANTS'}'")
    if (folder / "fc3.hdf5").exists() and geometry.fc3_supercell_matrix is not None:
        fc3 = _compact(_dataset(folder / "fc3.hdf5", ("fc3",)), geometry, 3, f"'{folder / 'fc3.hdf5'}'")
    return fc2, fc3


def _dataset(path: Path, names: tuple[str, ...]) -> np.ndarray:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            for name in names:
                if name in file:
                    return np.array(file[name], float)
            raise InputError(f"'{path}' has no dataset `{names[0]}`; it holds {', '.join(file) or 'nothing'}")
    except OSError as error:
        raise InputError(f"'{path}' is not a readable HDF5 file ({error}): write it again") from error


def _compact(values: np.ndarray, geometry: Geometry, order: int, what: str) -> np.ndarray:
    """The compact layout of a compact or full array."""
    phonopy = symmetry.phonopy_object(geometry, order)
    n_prim, n_super = len(phonopy.primitive), len(phonopy.supercell)
    tail = (n_super,) * (order - 1) + (3,) * order
    if values.shape == (n_super, *tail):
        values = values[np.asarray(phonopy.primitive.p2s_map)]
    if values.shape != (n_prim, *tail):
        raise InputError(
            f"{what} has the shape {values.shape}; the cell has {n_prim} primitive and {n_super} supercell atoms, so "
            f"{(n_prim, *tail)} or {(n_super, *tail)} is expected"
        )
    if not np.all(np.isfinite(values)):
        raise InputError(f"{what} holds values that are not finite: write it again")
    return values


def _from_forces(
    file: Path, folder: Path | None, data: Any, third: bool, geometry: Geometry, symmetrize: bool, need2: bool
):
    """fc2 (None unless `need2`) and fc3 (None for phonopy's files) of displacement-force sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not third:
            phonopy = symmetry.phonopy_object(geometry)
            dataset = _sets(file, folder, "FORCE_SETS", data.dataset, len(phonopy.supercell))
            phonopy.dataset = dataset
            phonopy.produce_force_constants(
                calculate_full_force_constants=False, show_drift=False, fc_calculator=_solver(dataset)
            )
            if symmetrize and _solver(dataset) is None:
                phonopy.symmetrize_force_constants(show_drift=False)
            return np.array(phonopy.force_constants), None
        phono3py = symmetry.phono3py_object(geometry)
        dataset = _sets(file, folder, "FORCES_FC3", data.dataset, len(phono3py.supercell))
        phono3py.dataset = dataset
        second = getattr(data, "phonon_dataset", None)
        if (folder is not None and (folder / "FORCES_FC2").exists()) or _has_forces(second):
            phono3py.phonon_dataset = _sets(file, folder, "FORCES_FC2", second, len(phono3py.phonon_supercell))
        elif np.any(geometry.supercell_matrix != geometry.fc3_supercell_matrix):
            if need2:
                raise InputError(
                    f"'{file}' names another supercell for second order (phonon_supercell_matrix) and has no forces for it "
                    "(`phonon_displacements`, FORCES_FC2): add them"
                )
        phono3py.produce_fc3(symmetrize_fc3r=symmetrize, fc_calculator=_solver(dataset))
        if need2 and (phono3py.phonon_dataset is not None or phono3py.fc2 is None):
            of_second = phono3py.phonon_dataset or dataset
            phono3py.produce_fc2(symmetrize_fc2=symmetrize, fc_calculator=_solver(of_second))
        return (np.array(phono3py.fc2) if need2 else None), np.array(phono3py.fc3)


def _solver(dataset: Any) -> Any:
    """Sets of random displacements of all atoms need a fit (symfc)."""
    return "symfc" if "displacements" in dataset else None


def _has_forces(dataset: Any) -> bool:
    if not dataset:
        return False
    if "displacements" in dataset:
        return dataset.get("forces") is not None
    return all("forces" in entry for entry in dataset["first_atoms"])


def _sets(file: Path, folder: Path | None, name: str, dataset: Any, n_atoms: int) -> Any:
    """Displacements with forces, checked: out of the YAML file, or of `name` in the folder."""
    source = file
    if folder is not None and (folder / name).exists():
        source = folder / name
        try:
            if name == "FORCE_SETS":
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
    if not _has_forces(dataset):
        raise InputError(
            f"'{source}' holds no forces: displacements with `forces` are expected in it, or a file {name}, fc2.hdf5 or "
            "fc3.hdf5 beside it (give the folder then)"
        )
    held = np.shape(dataset["forces"])[1] if "displacements" in dataset else len(dataset["first_atoms"][0]["forces"])
    if held != n_atoms:
        raise InputError(
            f"'{source}' holds forces of {held} atoms; the supercell has {n_atoms}: is it of another supercell?"
        )
    return dataset
