"""Force constants: exact derivatives against differences, symmetry, files of phonopy and phono3py."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmd_thermal.errors import CapacityError, InputError, OutputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.displaced import displaced_forces, third_derivatives
from jaxmd_thermal.lattice.force_constants import ForceConstants, estimate_force_constants, force_constants
from jaxmd_thermal.lattice.projection import permutation_error, project_fc3, rotation_error, sum_rule_error
from jaxmd_thermal.potentials import LennardJones, StillingerWeber

ARGON = LennardJones(0.0103, 3.405, cutoff=6.5, truncation="switch", switch_start=5.0)
SILICON = StillingerWeber.silicon()


def richardson(potential, structure, supercell, third=None):
    """Finite differences of two steps, extrapolated to zero (errors h^2 and h^4 are even)."""
    coarse, fine = (force_constants(potential, structure, supercell, third, h) for h in (0.02, 0.01))
    return [(4.0 * f - c) / 3.0 for c, f in ((coarse.fc2, fine.fc2), (coarse.fc3, fine.fc3)) if f is not None]


def relative(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


@pytest.fixture(scope="module")
def argon():
    return force_constants(ARGON, "argon", (2, 2, 2), (2, 2, 2), displacement=None)


def test_ad_equals_extrapolated_differences(argon):
    (fc2,) = richardson(ARGON, "argon", (2, 2, 2))
    assert relative(fc2, argon.fc2) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("potential, structure", [(ARGON, "argon"), (SILICON, "silicon")])
def test_third_order_equals_extrapolated_differences(potential, structure):
    pytest.importorskip("phono3py")
    exact = force_constants(potential, structure, (2, 2, 2), (2, 2, 2), displacement=None)
    fc2, fc3 = richardson(potential, structure, (2, 2, 2), (2, 2, 2))
    assert relative(fc2, exact.fc2) < 1e-6
    assert relative(fc3, exact.fc3) < 1e-4


def test_operations_of_a_supercell_are_searched_once(monkeypatch):
    """Their permutations take seconds for 512 atoms; eight searches were a tenth of the time of a cubic compound."""
    phono3py = pytest.importorskip("phono3py.api_phono3py")
    import phonopy.api_phonopy as phonopy

    searched = []
    for module in (phonopy, phono3py):

        def count(cell, *args, original=module.Symmetry, **options):
            given = dict(zip(("symprec", "is_symmetry"), args)) | options
            if given["is_symmetry"]:
                searched.append(len(cell))
            return original(cell, *args, **options)

        monkeypatch.setattr(module, "Symmetry", count)
    force_constants(ARGON, "argon", (2, 2, 2), (1, 2, 2))
    assert sorted(n for n in searched if n > 4) == [16, 32]
    searched.clear()
    estimate_force_constants("argon", (2, 2, 2), (1, 2, 2))
    assert sorted(n for n in searched if n > 4) == [16, 32]


def test_sum_rules_permutation_and_rotation(argon):
    phonopy = symmetry.phonopy_object(argon.geometry)
    operations = symmetry.operations_of(phonopy)
    table = operations.to_primitive(argon.images2)
    assert sum_rule_error(argon.fc2) < 1e-12
    assert permutation_error(argon.fc2, argon.images2, table) < 1e-12
    assert rotation_error(argon.fc2, operations, argon.images2) < 1e-8
    for axis in (1, 2):
        assert np.max(np.abs(argon.fc3.sum(axis=axis))) < 1e-11
    assert np.max(np.abs(argon.fc3 - argon.fc3.transpose(0, 2, 1, 3, 5, 4))) < 1e-12
    again = project_fc3(argon.fc3, argon.images3, table)
    assert relative(again, argon.fc3) < 1e-12  # a projection
    rough = argon.fc3 + 0.1 * np.random.default_rng(0).standard_normal(argon.fc3.shape)
    once = project_fc3(rough, argon.images3, table)
    assert relative(project_fc3(once, argon.images3, table), once) < 1e-12
    assert np.max(np.abs(once.sum(axis=1))) < 1e-12 and np.max(np.abs(once.sum(axis=2))) < 1e-12


@pytest.mark.slow
def test_pairs_beyond_a_cutoff(argon):
    """A pair potential couples i, j, k only where two of them coincide: with atoms paired with themselves alone nothing is lost,
    because the other orders of the three follow by permutation."""
    pytest.importorskip("phono3py")
    near = 3.0  # below the distance of neighbours
    potential = LennardJones(0.0103, 3.405, cutoff=6.0, truncation="switch", switch_start=5.0)
    every, few = (
        estimate_force_constants("argon", (1, 1, 1), (2, 2, 2), pair_cutoff=c, displacement=0.02) for c in (None, near)
    )
    assert few.evaluations3 < every.evaluations3
    full, cut, exact = (
        force_constants(potential, "argon", (1, 1, 1), (2, 2, 2), h, pair_cutoff=c).fc3
        for h, c in ((0.02, None), (0.02, near), (None, near))
    )
    assert relative(exact, force_constants(potential, "argon", (1, 1, 1), (2, 2, 2), None).fc3) < 1e-12
    assert relative(full, exact) < 2e-2 and relative(cut, exact) < 2e-2  # h^2 of displacements of 0.02 Å
    assert np.max(np.abs(cut.sum(axis=1))) < 1e-11
    with pytest.raises(InputError, match=r"pair_cutoff is -1"):
        force_constants(ARGON, "argon", (1, 1, 1), (2, 2, 2), pair_cutoff=-1.0)


def test_fc3_is_the_change_of_fc2_under_strain_free_displacement(argon):
    """Row sums weighted by positions: a uniform strain e changes fc2 by sum_k fc3 (e r_k); checked for pressure."""
    volume = [force_constants(ARGON, _scaled(s), (2, 2, 2), displacement=None).fc2 for s in (1 + 1e-4, 1 - 1e-4)]
    slope = (volume[0] - volume[1]) / 2e-4
    # With shortest vectors the sum needs the range of fc3 within half the supercell: 1e-2, for its tail of 6.5 Å.
    images = argon.images3
    vectors = np.array([[images.vectors[b : b + n].mean(axis=0) for n, b in row] for row in images.multiplicity])
    predicted = np.einsum("ijkabc,kic->ijab", argon.fc3, vectors @ argon.crystal.lattice)
    near = np.argsort(np.abs(argon.fc2[0]).max(axis=(1, 2)))[-13:]
    assert relative(predicted[0, near], slope[0, near]) < 0.05


def _scaled(factor):
    from jaxmd_thermal.io.ase import atoms_from

    atoms = atoms_from("argon")
    atoms.set_cell(atoms.cell * factor, scale_atoms=True)
    return atoms


def test_batches_change_nothing():
    system = symmetry.system_of(symmetry.phonopy_object(symmetry.geometry_of("argon", (1, 1, 1))).supercell)
    moves = 0.02 * np.random.default_rng(1).standard_normal((5, system.n_atoms, 3))
    one, three = (displaced_forces(ARGON, system, moves, batch_size=b) for b in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-12)
    assert np.max(np.abs(one.sum(axis=1))) < 1e-12
    pairs = [(0, 0), (0, 4), (5, 7)]
    np.testing.assert_allclose(
        third_derivatives(ARGON, system, pairs, 1), third_derivatives(ARGON, system, pairs, 2), atol=1e-10
    )


def test_pytree_and_errors(argon):
    leaves, structure = jax.tree.flatten(argon)
    assert len(leaves) == 2
    assert jax.tree.map(lambda x: np.sum(x**2), argon.replace(fc3=None, images3=None)).fc2 > 0
    doubled = jax.tree.map(lambda x: 2 * x, argon)
    assert doubled.crystal is argon.crystal and np.all(doubled.fc2 == 2 * argon.fc2)
    assert jax.tree.unflatten(structure, leaves).fc3 is argon.fc3
    with pytest.raises(InputError, match=r"fc2 has the shape .*\(1, 32, 3, 3\)"):
        argon.replace(fc2=argon.fc2[:, :4])
    with pytest.raises(InputError, match="displacement is 3"):
        force_constants(ARGON, "argon", (2, 2, 2), displacement=3.0)
    with pytest.raises(InputError, match="supercell is"):
        force_constants(ARGON, "argon", (2, 2.5, 2))
    with pytest.raises(InputError, match="batch_size is 0"):
        force_constants(ARGON, "argon", (1, 1, 1), batch_size=0)
    with pytest.raises(CapacityError, match=r"GiB.*fc3_supercell"):
        force_constants(ARGON, "argon", (2, 2, 2), (20, 20, 20))


def test_estimate():
    found = estimate_force_constants("silicon", (2, 2, 2), (2, 2, 2), displacement=None)
    assert (found.evaluations2, found.atoms2, found.atoms3) == (3, 64, 64)
    assert found.fc_bytes == 72 * 2 * 64 + 216 * 2 * 64**2
    pytest.importorskip("phono3py")
    found = estimate_force_constants("silicon", (2, 2, 2), (2, 2, 2), displacement=0.03)
    assert (found.evaluations2, found.evaluations3) == (1, 111)


def test_files_there_and_back(argon, tmp_path):
    pytest.importorskip("phono3py")
    argon.save(tmp_path / "third")
    back = ForceConstants.from_phono3py(tmp_path / "third")
    np.testing.assert_array_equal(back.fc2, argon.fc2)
    np.testing.assert_array_equal(back.fc3, argon.fc3)
    second = argon.replace(fc3=None, images3=None)
    second.save(tmp_path / "second")
    back = ForceConstants.from_phono3py(tmp_path / "second")
    assert back.fc3 is None
    np.testing.assert_array_equal(back.fc2, argon.fc2)
    with pytest.raises(OutputError, match=r"fc3\.hdf5"):
        second.save(tmp_path / "third")

    import phono3py

    theirs = phono3py.load(
        tmp_path / "third" / "phono3py.yaml", fc2_filename=tmp_path / "third" / "fc2.hdf5",
        fc3_filename=tmp_path / "third" / "fc3.hdf5", symmetrize_fc=False, produce_fc=False,
    )  # fmt: skip
    np.testing.assert_array_equal(theirs.fc3, argon.fc3)
    np.testing.assert_array_equal(theirs.fc2, argon.fc2)


def test_broken_files_are_named(argon, tmp_path):
    import h5py

    second = argon.replace(fc3=None, images3=None)
    folder = second.save(tmp_path / "fc")
    with h5py.File(folder / "fc2.hdf5", "w") as file:
        file["forces"] = np.zeros(3)
    with pytest.raises(InputError, match=r"fc2\.hdf5' has no dataset `force_constants`; it holds forces"):
        ForceConstants.from_phono3py(folder)
    with h5py.File(folder / "fc2.hdf5", "w") as file:
        file["force_constants"] = np.zeros((1, 7, 3, 3))
    with pytest.raises(InputError, match=r"shape \(1, 7, 3, 3\).*\(1, 32, 3, 3\)"):
        ForceConstants.from_phono3py(folder)
    (folder / "fc2.hdf5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="HDF5"):
        ForceConstants.from_phono3py(folder)
    (folder / "fc2.hdf5").unlink()
    with pytest.raises(InputError, match="no forces"):
        ForceConstants.from_phono3py(folder)
    (folder / "FORCE_SETS").write_text("32\n1\n\n1\n0.01 0 0\n1 2 3\n")
    with pytest.raises(InputError, match="FORCE_SETS' cannot be parsed"):
        ForceConstants.from_phono3py(folder)
    (folder / "phonopy.yaml").write_text("phonopy: {\n a: [1, 2\n")
    with pytest.raises(InputError, match=r"not valid YAML at line"):
        ForceConstants.from_phono3py(folder)
    (folder / "phonopy.yaml").unlink()
    with pytest.raises(InputError, match="holds no cell"):
        ForceConstants.from_phono3py(folder)
    with pytest.raises(InputError, match="did you mean 'fc'"):
        ForceConstants.from_phono3py(tmp_path / "fcs")


def test_force_sets_of_a_folder(tmp_path):
    """FORCE_SETS beside phonopy.yaml gives what the finite displacements gave."""
    from phonopy.file_IO import write_FORCE_SETS

    expected = force_constants(SILICON, "silicon", (1, 1, 1), displacement=0.03)
    expected.save(tmp_path)
    (tmp_path / "fc2.hdf5").unlink()
    phonopy = symmetry.phonopy_object(expected.geometry)
    phonopy.generate_displacements(distance=0.03)
    system = symmetry.system_of(phonopy.supercell)
    moves = np.stack([c.positions - system.positions for c in phonopy.supercells_with_displacements])
    phonopy.forces = displaced_forces(SILICON, system, moves)
    write_FORCE_SETS(phonopy.dataset, filename=str(tmp_path / "FORCE_SETS"))
    np.testing.assert_allclose(ForceConstants.from_phono3py(tmp_path).fc2, expected.fc2, atol=1e-6)


def test_published_sets_are_read(shared):
    path = shared / "data" / "dft_fc3" / "NaCl.yaml.xz"
    if not path.exists():
        pytest.skip("no data/dft_fc3")
    pytest.importorskip("phono3py")
    fc = ForceConstants.from_phono3py(path)
    assert fc.fc2.shape == (2, 64, 3, 3) and fc.fc3.shape == (2, 64, 64, 3, 3, 3)
    assert fc.crystal.born.shape == (2, 3, 3)
    assert abs(fc.crystal.born.sum(axis=0)).max() < 1e-12
    assert sum_rule_error(fc.fc2) < 1e-12
