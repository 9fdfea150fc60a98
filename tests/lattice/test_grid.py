"""Grids and triplets against the published reference code's own (fixtures), and against counting."""

from __future__ import annotations

import numpy as np
import pytest
import spglib

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.grid import make_grid, make_triplets, relative_tetrahedra, shortest_addresses

FCC = 2.8538 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
ROCKSALT = (FCC, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17])
HEXAGONAL = (np.array([[3.1, 0, 0], [-1.55, 3.1 * 3**0.5 / 2, 0], [0, 0, 4.97]]),
             [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.38], [2 / 3, 1 / 3, 0.88]],
             [13, 13, 7, 7])  # fmt: skip


def rotations(cell):
    return spglib.get_symmetry(cell, symprec=1e-5)["rotations"]


def canonical(tetrahedra):
    return sorted(tuple(sorted(map(tuple, t.tolist()))) for t in tetrahedra)


@pytest.fixture(scope="module")
def nacl(shared):
    return np.load(shared / "data/phonondb103/fixtures/nacl_mesh9_tetra.npz")


def test_grid_and_triplets_agree_with_the_fixture(nacl):
    grid = make_grid(nacl["prim"], nacl["mesh"], rotations(ROCKSALT))
    address = nacl["addr"]
    assert np.array_equal(grid.weights, nacl["wq"])
    assert np.array_equal(grid.addresses[grid.irreducible], np.mod(address[nacl["gps"]], nacl["mesh"]))
    triplets = make_triplets(grid, nacl["prim"])
    assert np.array_equal(triplets.offsets, nacl["off"])
    assert np.array_equal(triplets.points, grid.index(address[nacl["tri"]]))
    assert np.array_equal(triplets.weights, nacl["wts"])
    assert canonical(grid.tetrahedra) == canonical(nacl["rel"])
    assert not grid.tetrahedra[:, 0].any()


def test_mesh_of_the_benchmark():
    grid = make_grid(FCC, (19, 19, 19), rotations(ROCKSALT))
    assert len(grid.irreducible) == 220 and grid.weights.sum() == 19**3
    triplets = make_triplets(grid, FCC)
    assert len(triplets.points) == 503_800 and np.diff(triplets.offsets).max() == 3430
    assert np.all(np.add.reduceat(triplets.weights, triplets.offsets[:-1]) == 19**3)


@pytest.mark.parametrize("cell, mesh", [(ROCKSALT, (4, 4, 4)), (HEXAGONAL, (5, 5, 3)), (HEXAGONAL, (4, 4, 2))])
def test_symmetry_is_lossless(cell, mesh):
    grid = make_grid(cell[0], mesh, rotations(cell))
    assert np.array_equal(grid.index(grid.addresses), np.arange(np.prod(mesh)))
    everything = make_grid(cell[0], mesh)
    every = make_triplets(everything, cell[0], np.arange(len(grid.addresses)))
    triplets = make_triplets(grid, cell[0])
    # A function of the star of each point, symmetric in the last two, has the same sum over either set.
    value = np.random.default_rng(1).uniform(size=len(grid.irreducible))[grid.star]
    for i, q in enumerate(triplets.first):

        def total(t, j):
            rows = t.points[t.offsets[j] : t.offsets[j + 1]]
            assert not np.mod(grid.addresses[rows].sum(1), mesh).any()
            return np.sum(t.weights[t.offsets[j] : t.offsets[j + 1]] * value[rows[:, 1]] * value[rows[:, 2]])

        assert total(triplets, i) == pytest.approx(total(every, q), rel=1e-12)


def test_tetrahedra_fill_space_once():
    for cell in (FCC, HEXAGONAL[0]):
        tetrahedra = relative_tetrahedra(np.linalg.inv(cell).T)
        assert len(canonical(tetrahedra)) == len(set(canonical(tetrahedra))) == 24
        volumes = np.abs(np.linalg.det(tetrahedra[:, 1:] - tetrahedra[:, :1])) / 6
        assert np.allclose(volumes, 1 / 6)


def test_normal_processes_are_those_without_a_reciprocal_vector():
    grid = make_grid(FCC, (4, 4, 4), rotations(ROCKSALT))
    triplets = make_triplets(grid, FCC)
    short = shortest_addresses(grid, FCC)
    assert np.array_equal(np.mod(short, 4), np.broadcast_to(grid.addresses[:, None], short.shape))
    images = [len({tuple(a) for a in rows.tolist()}) for rows in short]
    # 4^3 of an fcc lattice: L has 2 images, X 2, W 4; the rest lies inside.
    assert sorted(set(images)) == [1, 2, 4] and images.count(4) == 6
    expected = []
    for row in triplets.points:
        sums = short[row[0]][:, None, None] + short[row[1]][:, None] + short[row[2]]
        expected.append(not np.all(np.any(sums, -1)))
    assert np.array_equal(triplets.normal, expected)
    assert triplets.normal[: triplets.offsets[1]].all()  # Gamma: q' and -q'
    assert 0.2 < triplets.weights[triplets.normal].sum() / triplets.weights.sum() < 0.9


def test_errors_name_the_remedy():
    with pytest.raises(InputError, match="three positive whole numbers"):
        make_grid(FCC, (4, 4))
    with pytest.raises(InputError, match="three positive whole numbers"):
        make_grid(FCC, (4, 4, 0.5))
    with pytest.raises(InputError, match=r"\(4, 4, 5\) breaks the symmetry"):
        make_grid(FCC, (4, 4, 5), rotations(ROCKSALT))


@pytest.mark.parametrize(
    ("lattice", "equal"),
    [
        ([[-1.6, 1.6, 2.5], [1.6, -1.6, 2.5], [1.6, 1.6, -2.5]], "all"),  # body-centred tetragonal
        ([[-1.5, 1.8, 2.5], [1.5, -1.8, 2.5], [1.5, 1.8, -2.5]], "all"),  # body-centred orthorhombic
        ([[3.0, 0, 0], [-1.5, 1.5 * 3**0.5, 0], [0, 0, 5.0]], "two"),  # hexagonal
        ([[3.0, 0, 0], [0, 4.0, 0], [0, 0, 5.0]], "none"),
        ([[2.0, 1.5, 0], [-2.0, 1.5, 0], [-1.0, 0, 6.0]], "two"),  # centred monoclinic
    ],
)
def test_default_mesh_keeps_the_symmetry(lattice, equal):
    """Reciprocal vectors of different lengths are mixed by rotations of centred cells; any mesh that is chosen must be valid."""
    from ase import Atoms

    from jaxmd_thermal.cli.crystal import Source, default_mesh, plan

    source = Source(None, Atoms("Ar", cell=lattice, pbc=True), supercell=(1, 1, 1))
    mesh, crystal = default_mesh(source), plan(source).crystal
    make_grid(crystal.lattice, mesh, symmetry.point_group(crystal))
    assert len(set(mesh)) == {"all": 1, "two": 2, "none": 3}[equal]
    assert np.all(np.array(mesh) >= np.round(60 * np.linalg.norm(crystal.reciprocal, axis=1)))
