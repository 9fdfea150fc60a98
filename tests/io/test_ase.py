"""Structures from and to ASE: what cannot be read is explained, units are converted once and correctly."""

from __future__ import annotations

from types import SimpleNamespace

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.io import read, write

from jaxmd_thermal.errors import InputError, OutputError
from jaxmd_thermal.io import ase as io
from jaxmd_thermal.system import System
from jaxmd_thermal.units import AMU_A2_FS2, BOLTZMANN


def moving_argon(temperature=70.0):
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    rng = np.random.default_rng(3)
    sigma = np.sqrt(ase.units.kB * temperature / atoms.get_masses())[:, None]
    atoms.set_velocities(sigma * rng.standard_normal((len(atoms), 3)))
    return atoms


def test_velocities_convert_by_ase_units():
    # ASE: 1 fs is `ase.units.fs` of its own unit; rounding only.
    v = np.random.default_rng(0).standard_normal((5, 3))
    np.testing.assert_allclose(io.velocities_from_ase(v), v * ase.units.fs, rtol=1e-14)
    np.testing.assert_allclose(io.velocities_to_ase(io.velocities_from_ase(v)), v, rtol=1e-15)


def test_kinetic_energy_and_temperature_survive_the_boundary():
    atoms = moving_argon()
    v = io.velocities_of(atoms)
    kinetic = 0.5 * AMU_A2_FS2 * np.sum(atoms.get_masses()[:, None] * v**2)
    assert kinetic == pytest.approx(atoms.get_kinetic_energy(), rel=1e-12)
    # k_B of ASE's table (CODATA 2014) differs from the exact SI value by 5.7e-7.
    assert 2 * kinetic / (3 * len(atoms) * BOLTZMANN) == pytest.approx(atoms.get_temperature(), rel=1e-6)


def test_a_structure_without_velocities_says_so():
    assert io.velocities_of(bulk("Ar")) is None


@pytest.mark.parametrize("kind", ["atoms", "path", "string", "system", "duck"])
def test_everything_that_describes_a_structure(kind, tmp_path):
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    atoms.set_masses(np.linspace(27.9, 29.9, len(atoms)))
    path = tmp_path / "s.extxyz"
    write(path, atoms)
    given = {
        "atoms": atoms,
        "path": path,
        "string": str(path),
        "system": System.from_atoms(atoms),
        "duck": SimpleNamespace(
            cell=atoms.cell.array, positions=atoms.positions, numbers=atoms.numbers, masses=atoms.get_masses()
        ),
    }[kind]
    got = io.atoms_from(given)
    assert isinstance(got, Atoms) and got is not atoms
    np.testing.assert_allclose(got.positions, atoms.positions, atol=1e-7)  # extxyz writes eight decimals
    np.testing.assert_allclose(got.cell.array, atoms.cell.array, atol=1e-12)
    np.testing.assert_allclose(got.get_masses(), atoms.get_masses(), atol=1e-7)
    assert (got.numbers == 14).all() and got.pbc.all()


def test_built_in_crystals_and_a_file_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argon = io.atoms_from("argon")
    assert len(argon) == 4 and (argon.numbers == 18).all() and argon.cell.lengths() == pytest.approx([5.3737] * 3)
    assert len(io.atoms_from("silicon")) == 8
    write("argon", bulk("Cu"), format="extxyz")
    assert (io.atoms_from("argon").numbers == 29).all()


def test_unreadable_structures_are_explained(tmp_path):
    with pytest.raises(InputError, match=r"no structure file '.*ar\.cif', did you mean 'arg\.cif'"):
        (tmp_path / "arg.cif").write_text("")
        io.read_structure(tmp_path / "ar.cif")
    (tmp_path / "broken.extxyz").write_text("4\nLattice=nonsense\nAr 0 0\n")
    with pytest.raises(InputError, match=r"cannot read a structure from '.*broken\.extxyz'.*check that the file"):
        io.read_structure(tmp_path / "broken.extxyz")
    (tmp_path / "binary.cif").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"binary\.cif"):
        io.read_structure(tmp_path / "binary.cif")
    with pytest.raises(InputError, match="is a folder"):
        io.read_structure(tmp_path)
    write(tmp_path / "empty.extxyz", Atoms())
    with pytest.raises(InputError, match=r"0 atoms|cannot read"):
        io.read_structure(tmp_path / "empty.extxyz")
    with pytest.raises(InputError, match="cannot be made from int"):
        io.atoms_from(3)


def test_supercell():
    atoms = bulk("Ar", "fcc", a=5.3)
    assert len(io.supercell(atoms, (2, 3, 4))) == 24 and len(io.supercell(atoms, 3)) == 27
    np.testing.assert_allclose(io.supercell(atoms, (2, 1, 1)).cell[0], 2 * atoms.cell[0])
    assert len(atoms) == 1, "the structure itself is left alone"
    for bad in [(0, 1, 1), (1, 2), (1.5, 1, 1), -1]:
        with pytest.raises(InputError, match="three integers of at least 1"):
            io.supercell(atoms, bad)
    slab = fcc111("Al", (1, 1, 3), vacuum=8.0)
    assert len(io.supercell(slab, (2, 2, 1))) == 12
    with pytest.raises(InputError, match="direction c, which is not periodic"):
        io.supercell(slab, (1, 1, 2))


def test_system_round_trip_with_velocities():
    atoms = moving_argon()
    system = System.from_atoms(atoms)
    back = system.to_atoms(io.velocities_of(atoms))
    np.testing.assert_allclose(back.get_velocities(), atoms.get_velocities(), rtol=1e-14)
    with pytest.raises(InputError, match="shape"):
        system.to_atoms(np.zeros((2, 3)))


def test_file_round_trip_with_velocities(tmp_path):
    atoms = moving_argon()
    v = io.velocities_of(atoms)
    path = io.write_structure(tmp_path / "deep" / "s.extxyz", System.from_atoms(atoms), v)
    back = read(path)
    # Eight decimals in the file; momenta are of the order of 1 in ASE's units.
    np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(io.velocities_of(back), v, atol=1e-9)


def test_writing_where_one_may_not(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*choose another --out"):
        io.write_structure(tmp_path / "file" / "s.extxyz", bulk("Ar"))


def test_formula():
    assert io.formula(bulk("NaCl", "rocksalt", a=5.6, cubic=True).numbers) == "Na4Cl4"
