"""Files of phonopy and phono3py in other units, with magnetic moments, isotopes and random displacements, there and back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from phonopy import Phonopy
from phonopy.physical_units import get_calculator_physical_units
from phonopy.structure.atoms import PhonopyAtoms

from jaxmd_thermal.errors import CapacityError, InputError, OutputError
from jaxmd_thermal.io.phono3py import read_displaced
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.crystal import Crystal
from jaxmd_thermal.lattice.force_constants import (
    ForceConstants,
    empty_force_constants,
    estimate_force_constants,
    force_constants,
    refuse_too_large,
)
from jaxmd_thermal.lattice.phonons import phonons
from jaxmd_thermal.potentials import StillingerWeber

SILICON = StillingerWeber.silicon()
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
ROCKSALT = np.concatenate([FCC, FCC + np.array([0.5, 0, 0])]) % 1
SOME = np.array([[0.1, 0.2, 0.3], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def relative(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def springs(phonon, units, order=2):
    """Forces of displaced cells from an energy in Å and eV, the same whatever the units of the files are."""
    still, u = phonon.supercell.positions, units.distance_to_A
    random = np.random.default_rng(0)
    n = 3 * len(still)
    second, third = random.standard_normal((n, n)), random.standard_normal((n,) * 3) * (order == 3)
    out = []
    for cell in phonon.supercells_with_displacements:
        move = (cell.positions - still).reshape(-1) * u
        force = -0.1 * (second @ second.T @ move) - np.einsum("ijk,j,k->i", third, move, move)
        out.append(force.reshape(-1, 3) - force.reshape(-1, 3).mean(axis=0))
    return np.array(out) / units.force_to_eVperA


def rocksalt(units):
    return PhonopyAtoms(["Na"] * 4 + ["Cl"] * 4, cell=np.eye(3) * 5.64 / units.distance_to_A, scaled_positions=ROCKSALT)


def nac(units):
    return {
        "born": 1.1 * np.array([np.eye(3), -np.eye(3)]),
        "dielectric": 2.4 * np.eye(3),
        "factor": units.nac_factor,
    }


def salt_of(calculator):
    units = get_calculator_physical_units(calculator)
    phonon = Phonopy(rocksalt(units), np.eye(3, dtype=int), primitive_matrix="F", calculator=calculator)
    phonon.generate_displacements(distance=0.03 / units.distance_to_A)
    phonon.forces, phonon.nac_params = springs(phonon, units), nac(units)
    return phonon


@pytest.fixture(scope="module")
def salt(tmp_path_factory):
    """One crystal in Å and eV."""
    file = tmp_path_factory.mktemp("salt") / "phonopy_params.yaml"
    salt_of(None).save(file)
    return ForceConstants.from_phono3py(file)


@pytest.mark.parametrize("calculator", ["qe", "abinit", "wien2k", "elk", "cp2k"])
def test_units_of_calculators(salt, calculator, tmp_path):
    """The same constants from every unit, to rounding; frequencies of phonopy, to the last figure of its constants of nature."""
    import phonopy

    phonon = salt_of(calculator)
    phonon.save(tmp_path / "forces.yaml")
    found = ForceConstants.from_phono3py(tmp_path / "forces.yaml")
    assert relative(found.fc2, salt.fc2) < 1e-10 and relative(found.crystal.lattice, salt.crystal.lattice) < 1e-12
    theirs = phonopy.load(tmp_path / "forces.yaml")
    theirs.run_qpoints(SOME)
    np.testing.assert_allclose(phonons(found, SOME, nac=True).frequencies, theirs.qpoints.frequencies, atol=1e-5)
    # Constants instead of forces: in the YAML file, in its own units, or beside it in whatever units the file names.
    theirs.save(tmp_path / "constants.yaml", settings={"force_sets": False, "force_constants": True})
    assert relative(ForceConstants.from_phono3py(tmp_path / "constants.yaml").fc2, salt.fc2) < 1e-10
    (tmp_path / "folder").mkdir()
    theirs.save(tmp_path / "folder/phonopy.yaml", settings={"force_sets": False})
    from phonopy.file_IO import write_force_constants_to_hdf5

    file = tmp_path / "folder/force_constants.hdf5"
    for unit, values in (
        (None, theirs.force_constants),
        ("Ry/au^2", salt.fc2 * (0.529177207 / 13.6056991) * 0.529177207),
    ):
        write_force_constants_to_hdf5(values, file, p2s_map=theirs.primitive.p2s_map, physical_unit=unit)
        assert relative(ForceConstants.from_phono3py(tmp_path / "folder").fc2, salt.fc2) < 1e-8


def test_units_of_phono3py(tmp_path):
    """phono3py converts to Å and eV when it reads, and so do we: second, third order and charges."""
    phono3py = pytest.importorskip("phono3py")
    units = get_calculator_physical_units("qe")
    cell = PhonopyAtoms(
        ["Na", "Cl"], cell=np.diag([3.0, 3.2, 4.1]) / units.distance_to_A, scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.4]]
    )
    phonon = phono3py.Phono3py(cell, np.eye(3, dtype=int), primitive_matrix="P", calculator="qe")
    phonon.generate_displacements(distance=0.03 / units.distance_to_A)
    phonon.forces, phonon.nac_params = springs(phonon, units, 3), nac(units)
    phonon.save(tmp_path / "phono3py_params.yaml")
    found = ForceConstants.from_phono3py(tmp_path, symmetrize=False)
    theirs = phono3py.load(tmp_path / "phono3py_params.yaml", symmetrize_fc=False)
    assert np.max(np.abs(found.fc3)) > 0.1
    assert relative(found.fc2, theirs.fc2) < 1e-10 and relative(found.fc3, theirs.fc3) < 1e-10
    assert relative(found.crystal.born, nac(units)["born"]) < 1e-12


def test_units_that_cannot_be_converted(salt, tmp_path):
    import h5py

    phonon = salt_of("qe")
    phonon.save(tmp_path / "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    for old, new, message in (
        ("calculator: qe", "calculator: mystery", r"mystery"),
        ('length: "au"', 'length: "angstrom"', r"length_unit = angstrom.*length_unit = au"),
        ("unit_conversion_factor: 2.0", "unit_conversion_factor: 14.4", r"factor 14\.4 .*Ry/au\^2"),
    ):
        assert old in text
        (tmp_path / "b.yaml").write_text(text.replace(old, new))
        with pytest.raises(InputError, match=message):
            ForceConstants.from_phono3py(tmp_path / "b.yaml")
    folder = salt.replace(force_sets=None).save(tmp_path / "folder")
    with h5py.File(folder / "fc2.hdf5", "a") as file:
        del file["physical_unit"]
        file["physical_unit"] = np.array([b"kcal/mol/angstrom^2"])
    with pytest.raises(InputError, match=r"in kcal/mol/angstrom\^2, .* eV/angstrom\^2"):
        ForceConstants.from_phono3py(folder)


def test_magnetic_moments_lower_the_symmetry(tmp_path):
    """Rocksalt whose layers are magnetised up and down in turn: operations, constants and frequencies of phonopy."""
    import phonopy

    moments = [2, -2, -2, 2, 0, 0, 0, 0]
    bare = PhonopyAtoms(["Ni"] * 4 + ["O"] * 4, cell=np.eye(3) * 4.18, scaled_positions=ROCKSALT)
    cell = bare.copy()
    cell.magnetic_moments = moments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        phonon = Phonopy(cell, np.eye(3, dtype=int), primitive_matrix="auto")
    phonon.generate_displacements(distance=0.03)
    phonon.forces = springs(phonon, get_calculator_physical_units(None))
    phonon.save(tmp_path / "phonopy_params.yaml")
    found = ForceConstants.from_phono3py(tmp_path)
    theirs = phonopy.load(tmp_path / "phonopy_params.yaml", symmetrize_fc=False)
    theirs.symmetrize_force_constants(show_drift=False)
    operations = symmetry.operations_of(symmetry.phonopy_object(found.geometry))
    without = symmetry.operations_of(symmetry.phonopy_of(symmetry.crystal_of(bare), [1] * 3))
    assert (len(operations.rotations), len(without.rotations)) == (64, 192)
    assert len(theirs.symmetry.symmetry_operations["rotations"]) == 64
    np.testing.assert_array_equal(
        symmetry.point_group(found.crystal), np.unique(theirs.primitive_symmetry.pointgroup_operations, axis=0)
    )
    assert relative(found.fc2, theirs.force_constants) < 1e-10
    theirs.run_qpoints(SOME)
    np.testing.assert_allclose(phonons(found, SOME).frequencies, theirs.qpoints.frequencies, atol=1e-4)
    # The moments survive our own files, and no primitive cell may lose them.
    back = ForceConstants.from_phono3py(found.save(tmp_path / "saved"))
    np.testing.assert_array_equal(back.crystal.moments, found.crystal.moments)
    with pytest.raises(InputError, match=r"magnetic moments of .* give primitive='auto'"):
        symmetry.geometry_of(found.geometry.unit, [1] * 3, primitive="F")


def test_isotopes_stay_apart():
    """Two heavy atoms among eight of silicon: forces as ever, but masses, rotations and frequencies of the ordered isotopes."""
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    masses = np.where(np.arange(8) < 2, 40.0, 28.0855)
    atoms.set_masses(masses)
    geometry = symmetry.geometry_of(atoms, [1] * 3)
    phonon = symmetry.phonopy_object(geometry)
    np.testing.assert_array_equal(phonon.primitive.masses, masses)
    unequal = PhonopyAtoms(
        numbers=[14 + (m > 30) for m in masses], cell=atoms.cell, scaled_positions=atoms.get_scaled_positions()
    )
    expected = Phonopy(unequal, primitive_matrix="P")  # another element in the place of the isotope: the same group
    np.testing.assert_array_equal(
        symmetry.point_group(geometry.unit), np.unique(expected.symmetry.pointgroup_operations, axis=0)
    )
    np.testing.assert_array_equal(symmetry.equivalent_atoms(geometry.unit), expected.symmetry.get_map_atoms())
    rotations, moved = symmetry.primitive_operations(geometry.unit)
    assert len(rotations) == len(expected.symmetry.symmetry_operations["rotations"])
    assert np.all(masses[moved] == masses)
    with pytest.raises(InputError, match=r"atoms \d and \d have masses of .*40\.0.* amu.*primitive='auto'"):
        symmetry.geometry_of(atoms, [1] * 3, primitive="F")
    # Springs of silicon between unequal masses: modes at Gamma are those of the 24 x 24 matrix with these masses.
    phonon.generate_displacements(distance=0.03)
    phonon.forces = springs(phonon, get_calculator_physical_units(None))
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    fc = empty_force_constants(geometry, np.array(phonon.force_constants))
    root = np.repeat(np.sqrt(masses), 3)
    matrix = fc.fc2.transpose(0, 2, 1, 3).reshape(24, 24) / np.outer(root, root)
    found = phonons(fc, [[0.0, 0.0, 0.0]]).frequencies[0]
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(np.sign(found) * (found / 15.633302) ** 2, expected, atol=1e-6 * np.abs(expected).max())


@pytest.fixture(scope="module")
def exact():
    """Silicon by one and two displaced atoms, in a cell of eight."""
    pytest.importorskip("phono3py")
    return force_constants(SILICON, "silicon", [1] * 3, [1] * 3, 0.01)


@pytest.fixture(scope="module")
def fitted():
    return force_constants(SILICON, "silicon", [1] * 3, [1] * 3, 0.01, snapshots=6, seed=3)


def test_random_displacements(exact, fitted):
    """A fit to 0.01 Å against differences with 0.01 Å: both leave the terms of fourth order, 1e-4 of the constants here."""
    pytest.importorskip("phono3py")
    assert fitted.force_sets.third["displacements"].shape == (12, 8, 3) and fitted.force_sets.second is None
    np.testing.assert_allclose(np.linalg.norm(fitted.force_sets.third["displacements"], axis=-1), 0.01, rtol=1e-12)
    assert relative(fitted.fc2, exact.fc2) < 5e-4 and relative(fitted.fc3, exact.fc3) < 5e-4
    assert np.max(np.abs(fitted.fc3.sum(axis=1))) < 1e-9
    again = force_constants(SILICON, "silicon", [1] * 3, displacement=0.01, snapshots=2, seed=3)
    assert relative(again.fc2, exact.fc2) < 5e-4 and again.force_sets.third is None
    estimate = estimate_force_constants("silicon", [1] * 3, [1] * 3, snapshots=6)
    assert (estimate.evaluations2, estimate.evaluations3) == (0, 12)
    estimate = estimate_force_constants("silicon", [2] * 3, [1] * 3, snapshots=6)
    assert (estimate.evaluations2, estimate.evaluations3) == (12, 12)


def test_random_displacements_that_are_refused():
    for options, message in (
        ({"snapshots": 0}, "snapshots is 0"),
        ({"snapshots": 3, "displacement": None}, "displacement is None with snapshots=3"),
        ({"snapshots": 3, "pair_cutoff": 4.0}, r"pair_cutoff is 4\.0"),
        ({"snapshots": 3, "seed": -1}, "seed is -1"),
    ):
        with pytest.raises(InputError, match=message):
            force_constants(SILICON, "silicon", [1] * 3, [1] * 3, **options)
    # 768 unknowns of third order in silicon's cell of 64, 189 equations for each displacement and its opposite: 5 of them.
    geometry = symmetry.geometry_of("silicon", [2] * 3, [2] * 3)
    moves = np.random.default_rng(0).standard_normal((4, 64, 3))
    few = symmetry.ForceSets(third={"displacements": np.concatenate([moves, -moves]), "forces": np.zeros((8, 64, 3))})
    with pytest.raises(InputError, match=r"8 random displacements \(4 but for their sign\).*\(5 but for their sign\)"):
        symmetry.solve_force_sets(geometry, few)


def test_random_displacements_of_a_folder(fitted, tmp_path, monkeypatch):
    """FORCES_FC3 with displacements and forces in one line, beside a cell; constants as phono3py reads and fits them."""
    phono3py = pytest.importorskip("phono3py")
    from phono3py.file_IO import write_FORCES_FC3

    symmetry.phono3py_object(fitted.geometry, own_second=False).save(tmp_path / "phono3py_disp.yaml")
    monkeypatch.chdir(tmp_path)
    write_FORCES_FC3(dict(fitted.force_sets.third))
    found = ForceConstants.from_phono3py(tmp_path)
    theirs = phono3py.load("phono3py_disp.yaml", fc_calculator="symfc")
    for order in ("fc2", "fc3"):
        assert relative(getattr(found, order), getattr(theirs, order)) < 1e-10
        assert relative(getattr(found, order), getattr(fitted, order)) < 1e-6  # ten decimals in the file
    supercell, moves, forces = read_displaced(tmp_path)
    assert moves.shape == forces.shape == (12, supercell.n_atoms, 3)


@pytest.mark.parametrize("kind", ["exact", "fitted"])
def test_force_sets_are_kept_and_written(kind, request, tmp_path):
    """What is saved gives phono3py the same constants out of the forces alone, and out of the folder the very same ones.

    phono3py's projection onto sum rules and permutations is ours; its text has sixteen decimals."""
    phono3py = pytest.importorskip("phono3py")
    fc = request.getfixturevalue(kind)
    folder = fc.save(tmp_path)
    back = ForceConstants.from_phono3py(folder)
    np.testing.assert_array_equal(back.fc3, fc.fc3)
    np.testing.assert_array_equal(back.fc2, fc.fc2)
    theirs = phono3py.load(folder / "phono3py_params.yaml", fc_calculator="symfc" if kind == "fitted" else None)
    assert relative(theirs.fc2, fc.fc2) < 1e-8 and relative(theirs.fc3, fc.fc3) < 1e-8
    alone = ForceConstants.from_phono3py(folder / "phono3py_params.yaml")
    assert relative(alone.fc2, fc.fc2) < 1e-3 and relative(alone.fc3, fc.fc3) < 1e-3  # traditional symmetrisation
    assert alone.force_sets is not None and fc.replace(fc2=2 * fc.fc2).force_sets is None
    with pytest.raises(OutputError, match=r"phono3py_params\.yaml of another result"):
        fc.replace(fc2=fc.fc2).save(folder)


def test_force_sets_of_second_order(tmp_path):
    import phonopy

    fc = force_constants(SILICON, "silicon", [1] * 3, displacement=0.01)
    folder = fc.save(tmp_path)
    theirs = phonopy.load(folder / "phonopy_params.yaml")
    assert relative(theirs.force_constants, fc.fc2) < 1e-8
    back = ForceConstants.from_phono3py(folder / "phonopy_params.yaml")
    assert relative(back.fc2, fc.fc2) < 1e-6 and back.force_sets.third is None


def test_pairs_too_far_apart_in_files(tmp_path):
    """With a cutoff phono3py expects all pairs in its file, the far ones with zero forces; they are no data to fit."""
    phono3py = pytest.importorskip("phono3py")
    fc = force_constants(SILICON, "silicon", [1] * 3, [1] * 3, 0.01, pair_cutoff=3.0)
    folder = fc.save(tmp_path)
    theirs = phono3py.load(folder / "phono3py_params.yaml", produce_fc=False)
    seconds = [b for a in theirs.dataset["first_atoms"] for b in a["second_atoms"]]
    near = sum(b["pair_distance"] < 3.0 for b in seconds)
    assert theirs.dataset["cutoff_distance"] == 3.0 and 0 < near < len(seconds)
    _, moves, forces = read_displaced(folder / "phono3py_params.yaml")
    assert len(moves) == len(theirs.dataset["first_atoms"]) + near and np.all(np.any(forces, axis=(1, 2)))


def test_memory_that_there_is(monkeypatch):
    """216 bytes for each atom of the primitive cell and pair of the supercell, four times while it is symmetrised."""
    from jaxmd_thermal.lattice import force_constants as module

    unit = Crystal(np.eye(3) * 4.0, np.zeros((1, 3)), np.array([18]), np.array([39.948]))
    geometry = symmetry.geometry_of(unit, [1] * 3, [3] * 3)
    need = 4 * 216 * 27**2
    monkeypatch.setattr(module, "available_memory", lambda: need + 1.0)
    refuse_too_large(geometry)
    monkeypatch.setattr(module, "available_memory", lambda: need - 1.0)
    with pytest.raises(CapacityError, match=r"4 times that .*choose a smaller fc3_supercell"):
        refuse_too_large(geometry)
