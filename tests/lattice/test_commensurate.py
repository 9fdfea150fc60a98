"""Wave vectors that fit into supercells, and force constants folded into the smallest cells that hold them."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmd_thermal import force_constants, hessian_columns
from jaxmd_thermal.io.datasets import read_phonon_frames
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.commensurate import commensurate_points, folded, smallest_cells
from jaxmd_thermal.potentials import StillingerWeber


def test_commensurate_points():
    assert len(commensurate_points(np.eye(3))) == 1
    matrix = np.array([[-2, 2, 2], [2, -2, 2], [2, 2, -2]])
    points = commensurate_points(matrix)
    assert len(points) == 32 == len(np.unique(points, axis=0))
    np.testing.assert_allclose(points @ matrix.T, np.rint(points @ matrix.T), atol=1e-12)
    skewed = np.array([[2, 1, 0], [0, 3, 1], [1, 0, 2]])
    points = commensurate_points(skewed)
    assert len(points) == round(np.linalg.det(skewed))
    np.testing.assert_allclose(points @ skewed.T, np.rint(points @ skewed.T), atol=1e-12)


def fits(points, matrix):
    """Which wave vectors fit into a cell."""
    waves = points @ matrix.T
    return np.all(np.abs(waves - np.rint(waves)) < 1e-9, axis=1)


@pytest.mark.parametrize("matrix", [
    np.diag([1, 1, 1]), np.diag([2, 2, 2]), np.diag([3, 2, 1]), np.diag([4, 4, 4]),
    np.array([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]), np.array([[2, 1, 0], [0, 3, 1], [1, 0, 2]]),
])  # fmt: skip
def test_every_wave_fits_into_a_small_cell(matrix):
    rng = np.random.default_rng(0)
    lattice = np.eye(3) + 0.2 * rng.standard_normal((3, 3))
    points = commensurate_points(matrix)
    cells = smallest_cells(matrix, lattice, np.eye(3, dtype=int)[None])
    assert np.all(np.any([fits(points, cell) for cell in cells], axis=0))
    for cell in cells:
        # As many cells as wave vectors that fit, and the waves of the large cell that fit are as many.
        assert round(np.linalg.det(cell)) == np.sum(fits(points, cell))
        # No other of the list holds the same waves.
        assert sum(np.all(fits(points, other) >= fits(points, cell)) for other in cells) == 1
    assert len(cells[0]) == 3 and np.linalg.det(cells[0]) <= np.linalg.det(cells[-1])


def test_equivalent_cells_are_given_once():
    silicon = bulk("Si", "diamond", a=5.43)
    crystal = symmetry.crystal_of(symmetry.cell_of(symmetry.System.from_atoms(silicon)))
    rotations = symmetry.point_group(crystal)
    # 2x2x2: Gamma fits with X (three) and L (four) alike, in cells of two primitive ones.
    assert [round(np.linalg.det(c)) for c in smallest_cells(np.diag([2] * 3), crystal.lattice, rotations)] == [2, 2]
    assert len(smallest_cells(np.diag([2] * 3), crystal.lattice, np.eye(3, dtype=int)[None])) == 7
    # Limits: only Gamma fits into one primitive cell; none is left out that fits.
    (one,) = smallest_cells(np.diag([2] * 3), crystal.lattice, rotations, largest=1)
    assert round(np.linalg.det(one)) == 1
    assert all(np.linalg.det(c) < 3.5 for c in smallest_cells(np.diag([4] * 3), crystal.lattice, rotations, largest=3))
    assert not smallest_cells(np.diag([2] * 3), crystal.lattice, rotations, largest=0)


@pytest.mark.parametrize("matrix", [np.diag(m) for m in ([3, 3, 2], [4, 4, 2], [4, 4, 3], [5, 5, 2])])
def test_stars_are_those_of_cartesian_rotations(matrix):
    """CdI2: on hexagonal axes the transpose of a rotation of fractions is another matrix, and -3m1 becomes -31m by it."""
    a, c, z = 4.24, 6.84, 0.249
    x = np.array([[0, 0, 0], [1 / 3, 2 / 3, z], [2 / 3, 1 / 3, -z]])
    atoms = Atoms("CdI2", scaled_positions=x, cell=[[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]], pbc=True)
    crystal = symmetry.crystal_of(symmetry.cell_of(symmetry.System.from_atoms(atoms)))
    cells = smallest_cells(matrix, crystal.lattice, symmetry.point_group(crystal))
    points = commensurate_points(matrix)
    reciprocal = np.linalg.inv(crystal.lattice).T
    turned = [points @ reciprocal @ r.T @ np.linalg.inv(reciprocal) for r in symmetry.cartesian_point_group(crystal)]
    reached = np.array([np.any([fits(t, cell) for t in turned], axis=0) for cell in cells])
    assert np.all(reached.any(axis=0))
    # None is a rotated copy of another, or inside one: some wave is reached by it alone.
    assert all(np.any(mine & ~np.delete(reached, i, axis=0).any(axis=0)) for i, mine in enumerate(reached))


@pytest.mark.parametrize("supercell", [(3, 2, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_folded_force_constants_are_those_of_the_small_cell(supercell, tmp_path):
    """Hexagonal silicon, strained and with its atoms off their sites: no symmetry helps."""
    rng = np.random.default_rng(1)
    u, c, a = 0.377, 6.27, 3.84
    x = np.array([[1 / 3, 2 / 3, 0.0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, u], [2 / 3, 1 / 3, 0.5 + u]])
    cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]]) @ (
        np.eye(3) + 0.02 * rng.standard_normal((3, 3))
    )
    atoms = Atoms("Si4", scaled_positions=x + 0.01 * rng.standard_normal((4, 3)), cell=cell, pbc=True)
    potential = StillingerWeber.silicon()
    fc = force_constants(potential, atoms, supercell, displacement=None)
    large = symmetry.system_of(symmetry.phonopy_object(fc.geometry).supercell)
    cells = smallest_cells(fc.images2.matrix, fc.crystal.lattice, symmetry.point_group(fc.crystal))
    for matrix in (cells[0], cells[-1]):
        small, constants = folded(fc.fc2, fc.images2, large, matrix)
        count = len(small.numbers) // 4
        assert count == round(np.linalg.det(matrix))
        columns = [3 * count * kind + axis for kind in range(4) for axis in range(3)]
        direct = hessian_columns(potential, small.to_atoms(), columns)
        # 1e-9 of 10 eV/A^2: the sum rules of `force_constants` are projected, those of the potential are exact to rounding.
        np.testing.assert_allclose(constants.transpose(0, 2, 1, 3).reshape(direct.shape), direct, atol=1e-8)
    # The same as labels of training, through files: every column of every frame.
    fc.save(tmp_path / "constants")
    frames = read_phonon_frames(tmp_path / "constants", cells="commensurate", check_units=False)
    assert [f.n_atoms for f in frames] == [4 * round(np.linalg.det(matrix)) for matrix in cells]
    for frame in (frames[0], frames[-1]):
        direct = hessian_columns(potential, frame.system.to_atoms(), frame.columns)
        np.testing.assert_allclose(frame.hessian, direct, atol=1e-8)
    kept = read_phonon_frames(tmp_path / "constants", cells="commensurate", max_atoms=8, check_units=False)
    assert kept and all(f.n_atoms <= 8 for f in kept)
