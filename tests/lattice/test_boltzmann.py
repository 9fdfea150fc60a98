"""The full solution of the Boltzmann equation: a collision operator written out in NumPy, phono3py's direct solution."""

from __future__ import annotations

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wigner_fixture import load

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import CapacityError, InputError, UnstableError
from jaxmd_thermal.lattice import boltzmann, occupation, phonons, problem, scattering, strength, symmetry
from jaxmd_thermal.lattice import conductivity as driver
from jaxmd_thermal.lattice.conductivity import kappa_function, thermal_conductivity
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.lattice.grid import make_grid, relative_tetrahedra
from jaxmd_thermal.lattice.tetrahedron import point_weight, vertex_table
from jaxmd_thermal.units import AMU_A2_FS2

BOLTZMANN, PLANCK = 1.380649e-23, 6.62607015e-34


@pytest.fixture(scope="module")
def nacl(shared):
    z = load(shared, "nacl_mesh5_gauss0p3")
    return ForceConstants(fc2=z.fc2, fc3=z.fc3, crystal=z.crystal, images2=z.images2, images3=z.images3)


def transformed(fc, q1, q2, q0):
    """Phi3(q0, q1, q2) of a triplet, (3P, 3P, 3P), mean over the choice of the reference atom; sums written out."""
    images, pos, fc3 = fc.images3, fc.crystal.positions, fc.fc3
    prim, n = images.primitive_of, len(fc.crystal.masses)

    def phase(q):
        out = np.zeros((len(prim), n), complex)
        for s, p in np.ndindex(*out.shape):
            count, begin = images.multiplicity[s, p]
            out[s, p] = np.exp(2j * np.pi * images.vectors[begin : begin + count] @ q).mean()
        return out

    qs = (q0, q1, q2)
    phases = [phase(q) for q in qs]
    total = np.zeros((n, n, n, 3, 3, 3), complex)
    for reference in range(3):
        other, last = [i for i in range(3) if i != reference]
        for i in range(n):
            # exp(i (q + q' + q'').x_i): a reciprocal vector of the triplet, at the reference atom
            common = np.exp(2j * np.pi * (np.sum(qs, 0) @ pos[i]))
            for j in range(n):
                for k in range(n):
                    at_j, at_k = np.flatnonzero(prim == j), np.flatnonzero(prim == k)
                    block = np.einsum(
                        "stabc,s,t->abc", fc3[i][np.ix_(at_j, at_k)], phases[other][at_j, i], phases[last][at_k, i]
                    )
                    atoms, axes = [0, 0, 0], [0, 0, 0]
                    atoms[reference], atoms[other], atoms[last] = i, j, k
                    axes[reference], axes[other], axes[last] = 0, 1, 2
                    total[tuple(atoms)] += common * block.transpose(axes) / 3
    return total.transpose(0, 3, 1, 4, 2, 5).reshape(3 * n, 3 * n, 3 * n)


def brute_force(fc, mesh, sigma, temperature):
    """Frequencies, velocities, and by statistics (classical or not) diagonal, collision matrix and heat capacities.

    On the whole grid, without any symmetry; sigma None: tetrahedra, |V|^2 averaged over degenerate modes. Shapes (N, bands),
    (N, 3, bands, bands), (N, bands, N, bands), (N, bands).
    """
    grid = np.stack(np.meshgrid(*[np.arange(m) for m in mesh], indexing="ij"), -1).reshape(-1, 3)
    q, n = grid / np.array(mesh), len(grid)
    solved = phonons.phonons(fc, q, velocities=True)
    f, e, v = solved.frequencies, solved.eigenvectors, solved.velocity_operator
    bands = f.shape[1]
    e = e / np.sqrt(np.repeat(fc.crystal.masses, 3))[:, None]
    some = f > 1e-4
    x = PLANCK * 1e12 * np.where(some, f, 1.0) / (BOLTZMANN * temperature)
    # Occupation, sinh(x/2), what stands for the zero point, heat capacity
    statistics = {
        False: (1 / np.expm1(x), np.sinh(x / 2), 1.0, BOLTZMANN * (x / 2 / np.sinh(x / 2)) ** 2),
        True: (1 / x, x / 2, 0.0, BOLTZMANN * np.ones_like(x)),
    }
    # 18 pi/hbar^2 (hbar/2)^3/36 |Phi|^2/(m^3 omega^3) in SI; the delta function in ordinary frequency, half widths in THz
    ev, hbar = 1.602176634e-19, PLANCK / (2 * np.pi)
    amu = AMU_A2_FS2 * ev * 1e-10  # the package's, 1.3e-8 from today's
    unit = 18 * np.pi / hbar**2 * (hbar / 2) ** 3 / 36 * (ev * 1e30) ** 2 / amu**3 / (2 * np.pi * 1e12) ** 5

    same = np.abs(f[:, :, None] - f[:, None]) < 1e-4
    mean = same / same.sum(-1, keepdims=True)
    index = {tuple(a): i for i, a in enumerate(grid.tolist())}
    vertices, corners = vertex_table(relative_tetrahedra(fc.crystal.reciprocal / np.array(mesh)[:, None]))
    summed = jax.jit(point_weight)

    def around(at, sign):
        return f[[index[tuple(a)] for a in np.mod(grid[at] + sign * vertices, mesh).tolist()]]

    def deltas(k, m, last):
        """delta(f - f' - f''), delta(f + f' - f''), delta(f - f' + f''): (bands, bands, bands) each."""
        f0, f1, f2 = f[k][:, None, None], f[m][:, None], f[last]
        if sigma is not None:
            return [
                np.exp(-0.5 * (y / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
                for y in (f0 - f1 - f2, f0 + f1 - f2, f0 - f1 + f2)
            ]
        one, two = around(m, 1)[:, :, None], around(last, -1)[:, None]
        kinds = ((1, two + one), (1, two - one), (-1, two - one))
        values = [np.broadcast_to(x[:, None], (len(x), bands, bands, bands)).reshape(len(x), -1) for _, x in kinds]
        at = [np.broadcast_to(s * f0, (bands, bands, bands)).ravel() for s, _ in kinds]
        with double_precision():
            return np.asarray(summed(np.concatenate(at), np.concatenate(values, 1), corners)).reshape(
                3, bands, bands, bands
            )

    gammas, couplings = ({c: np.zeros(s) for c in statistics} for s in ((n, bands), (n, bands, n, bands)))
    for k, m in np.ndindex(n, n):
        last = int(np.flatnonzero(np.all((grid[k] + grid[m] + grid) % np.array(mesh) == 0, axis=1))[0])
        phi = transformed(fc, q[m], q[last], q[k])
        phi = np.einsum("xyz,xa,yb,zc->abc", phi, e[k], e[m], e[last], optimize=True)
        good = some[k][:, None, None] & some[m][:, None] & some[last]
        f0, f1, f2 = f[k][:, None, None], f[m][:, None], f[last]
        values = np.where(good, np.abs(phi) ** 2 / np.where(good, f0 * f1 * f2, 1.0), 0.0) * unit / n
        if sigma is None:
            values = np.einsum("abc,ax,by,cz->xyz", values, mean[k], mean[m], mean[last])
        decay, absorb, emit = deltas(k, m, last)
        for classical, (occupied, sinh, zero_point, _) in statistics.items():
            n1, n2 = occupied[m][:, None], occupied[last]
            rate = (n1 + n2 + zero_point) * decay + (n1 - n2) * (absorb - emit)
            gammas[classical][k] += np.sum(values * rate, (1, 2))
            couplings[classical][k, :, m] += np.sum(values * (decay + absorb + emit) / sinh[last], 2)
    out = {}
    for c, (_, _, _, heat) in statistics.items():
        coupling = np.einsum("kst,ktlb,lbd->ksld", mean, couplings[c], mean)
        out[c] = np.einsum("kst,kt->ks", mean, gammas[c]), coupling, np.where(some, heat, 0.0)
    return f, np.einsum("kcss,kts->ktc", v, mean).real, out


def brute_force_added(fc, mean_velocity, gamma, coupling, heat):
    """What the in-scattering adds to the relaxation-time approximation, (3, 3) W/(m K), and the scaled matrix."""
    n = len(gamma)
    good = gamma.ravel() > 0
    width = gamma.ravel()[good]
    matrix = coupling.reshape(gamma.size, -1)[good][:, good] + np.diag(width)
    right = (np.sqrt(heat)[..., None] * mean_velocity).reshape(-1, 3)[good]
    both_ways = 0.5 * (matrix + matrix.T)
    unit = 1e2**2 / (fc.crystal.volume * 1e-30 * n) / (4 * np.pi * 1e12)  # THz Å is 100 m/s; 1/tau = 4 pi gamma
    rta = unit * np.einsum("xa,xb,x->ab", right, right, 1 / width)
    return unit * right.T @ np.linalg.solve(both_ways, right) - rta, matrix / np.sqrt(np.outer(width, width))


class Parts:
    """Collision matrix of a small mesh, and solutions with it."""

    def __init__(self, fc, mesh, chunk_bytes=None, normal=None, **options):
        self.fc, self.p = fc, driver.prepare(fc, mesh, isotopes=False, **options)
        p = self.p
        if chunk_bytes:
            one = strength.transform_bytes(fc.crystal, fc.images3)
            p = p._replace(work=scattering.plan(p.grid, p.triplets, one, chunk_bytes))
        if normal is not None:
            p = p._replace(work=p.work._replace(normal=np.full_like(p.work.normal, normal)))
        with double_precision():
            self.unfolding = jax.tree.map(jnp.asarray, boltzmann.unfold(p.grid, p.reciprocal))
            modes = driver._modes(jnp.asarray(fc.fc2), p)
            three, _ = driver._three_phonon(jnp.asarray(fc.fc3), modes, p, scattering.solved, unfolding=self.unfolding)
            self.collisions, self.gamma = three.collisions[:, :, 0], three.gamma.sum(0)[0]
        self.normal, self.umklapp = np.asarray(three.gamma[:, 0])
        self.chunks = len(p.work.thirds)
        self.at = phonons.phonons(fc, p.grid.qpoints[p.grid.irreducible], velocities=True)

    def matrix(self):
        with double_precision():
            made = boltzmann.collision_matrix(
                self.collisions, self.gamma, jnp.asarray(self.at.frequencies), jnp.asarray(self.p.grid.weights)
            )
        return np.asarray(made[0])

    def solve(self, collisions=None, **options):
        p = self.p
        with double_precision():
            found = boltzmann.solve(
                self.collisions if collisions is None else collisions, self.gamma, jnp.asarray(self.at.frequencies),
                jnp.asarray(self.at.velocity_operator), jnp.asarray(p.grid.weights), p.volume, p.temperatures[0],
                self.unfolding.kept, jnp.asarray(p.rotations), classical=p.options["classical"], **options,
            )  # fmt: skip
        return boltzmann.Solution(*map(np.asarray, found))


def agrees_with_brute_force(fc, mesh, sigma, statistics, limit=1e-10):
    _, velocity, made = brute_force(fc, mesh, sigma, 300.0)
    for name in statistics:
        classical = name == "classical"
        expected, matrix = brute_force_added(fc, velocity, *made[classical])
        assert np.linalg.eigvalsh(matrix + matrix.T)[0] > 0
        assert sigma is None or np.abs(matrix - matrix.T).max() < 1e-12
        parts = Parts(fc, mesh, sigma=sigma, populations=name, block_average=sigma is None)
        grid = np.stack(np.meshgrid(*[np.arange(m) for m in mesh], indexing="ij"), -1).reshape(-1, 3)
        rows = np.argsort(parts.p.grid.index(grid))[parts.p.grid.irreducible]
        np.testing.assert_allclose(np.asarray(parts.gamma), made[classical][0][rows], rtol=limit, atol=1e-15)
        for direct in (True, False):
            solution = parts.solve(direct=direct)
            assert np.abs(solution.added - expected).max() < limit * np.abs(expected).max()
            total = solution.modes.sum() / len(grid)
            assert total == pytest.approx(np.trace(expected) / 3, rel=limit)


def test_collision_operator_written_out_without_symmetry(nacl):
    agrees_with_brute_force(nacl, (3, 3, 3), 0.5, ("quantum",))


@pytest.mark.slow
def test_collision_operator_of_classical_waves(nacl):
    agrees_with_brute_force(nacl, (3, 3, 3), 0.5, ("classical",))


def test_factors_of_occupations():
    f, t = jnp.asarray([0.5e-4, 0.3, 2.0, 11.0]), (30.0, 300.0)
    with double_precision():
        quantum, waves = (np.asarray(occupation.occupation(f, t, c)) for c in (False, True))
        both, half = (np.asarray(occupation.inverse_sinh(f, t, c)) for c in (False, True))
    x = PLANCK * 1e12 * np.asarray(f)[1:] / (BOLTZMANN * np.array(t)[:, None])
    np.testing.assert_allclose(quantum[:, 1:], 1 / np.expm1(x), rtol=1e-5)
    np.testing.assert_allclose(both, 2 * np.sqrt(quantum * (quantum + 1)), rtol=1e-5)
    np.testing.assert_allclose(waves[:, 1:], 1 / x, rtol=1e-5)
    np.testing.assert_allclose(half, 2 * waves, rtol=1e-12)  # n(n + 1) is (kT/hf)^2
    assert not np.any(both[:, 0]) and not np.any(waves[:, 0])


@pytest.mark.slow
def test_collision_operator_with_tetrahedra(nacl, monkeypatch):
    # Tetrahedra round one diagonal break the crystal's symmetry: take none but time reversal.
    monkeypatch.setattr(symmetry, "point_group", lambda *_: np.eye(3, dtype=int)[None])
    # Acoustic frequencies at Gamma, vertices of tetrahedra, are rounding.
    agrees_with_brute_force(nacl, (3, 3, 3), None, ("quantum",), limit=1e-6)


@pytest.mark.slow
def test_collision_operator_of_an_even_mesh_with_points_that_are_their_own_inverse(nacl):
    agrees_with_brute_force(nacl, (4, 4, 4), 0.5, ("quantum",))


@pytest.fixture(scope="module")
def tetrahedra(nacl):
    return Parts(nacl, (4, 4, 4), block_average=True)


def test_iteration_and_direct_solution_agree(tetrahedra):
    direct, iterated = (tetrahedra.solve(direct=d) for d in (True, False))
    assert np.abs(direct.added - iterated.added).max() < 1e-8 * np.abs(direct.added).max()
    assert np.abs(direct.modes - iterated.modes).max() < 1e-8 * np.abs(direct.modes).max()
    assert 0 < iterated.steps < 60 and iterated.residual < 1e-9
    boltzmann.check(iterated, 300.0)


def test_collision_matrix_is_symmetric_and_positive(tetrahedra):
    matrix = tetrahedra.matrix()
    assert np.array_equal(matrix, matrix.T)
    lowest = np.linalg.eigvalsh(matrix)[0]
    assert lowest > 0.0, lowest


@pytest.mark.slow
def test_chunks_of_the_third_phonon_change_nothing(nacl, tetrahedra):
    one = strength.transform_bytes(nacl.crystal, nacl.images3)
    many = Parts(nacl, (4, 4, 4), chunk_bytes=30 * one, block_average=True)
    assert many.chunks == 3 and tetrahedra.chunks == 1
    np.testing.assert_allclose(many.collisions, tetrahedra.collisions, atol=1e-12 * np.max(tetrahedra.collisions))


@pytest.mark.parametrize("normal", [True, False])
def test_flags_decide_what_counts_as_normal(nacl, tetrahedra, normal):
    flagged = Parts(nacl, (4, 4, 4), normal=normal, block_average=True)
    some, none = (flagged.normal, flagged.umklapp) if normal else (flagged.umklapp, flagged.normal)
    assert np.all(none == 0) and tetrahedra.normal.sum() > 0 < tetrahedra.umklapp.sum()
    np.testing.assert_allclose(some, tetrahedra.normal + tetrahedra.umklapp, rtol=1e-11, atol=1e-15)


def test_without_in_scattering_it_is_the_relaxation_time_approximation(tetrahedra):
    solution = tetrahedra.solve(collisions=0 * np.asarray(tetrahedra.collisions))
    assert np.abs(solution.added).max() < 1e-14
    assert np.abs(tetrahedra.solve().added).max() > 0.1


def test_a_matrix_that_is_not_positive_is_refused(tetrahedra):
    solution = tetrahedra.solve(collisions=-30 * np.asarray(tetrahedra.collisions))
    with pytest.raises(UnstableError, match=r"300 K .* not positive .* finer mesh"):
        boltzmann.check(solution, 300.0)


@pytest.mark.slow
def test_public_function_with_isotopes_and_boundaries(nacl, tmp_path):
    options = {"sigma": 0.5, "temperatures": (300.0, 500.0)}
    full = thermal_conductivity(nacl, (3, 3, 3), method="lbte", **options)
    plain = thermal_conductivity(nacl, (3, 3, 3), method="rta", **options)
    np.testing.assert_allclose(full.kappa_populations, plain.kappa, rtol=1e-12)
    means = np.trace(full.kappa, axis1=1, axis2=2) / 3
    np.testing.assert_allclose(full.mode_kappa.sum((1, 2)) / 27, means, rtol=1e-12)
    assert np.all(np.abs(means / np.trace(plain.kappa, axis1=1, axis2=2) * 3 - 1) > 5e-3)
    with h5py.File(full.save(tmp_path)) as file:
        assert "mode_kappa" not in file
        np.testing.assert_allclose(file["kappa"][:, 0], full.kappa[:, 0, 0], rtol=1e-12)
        totals = file["mode_kappa_RTA"][()].sum((1, 2)) / 27
        np.testing.assert_allclose(totals[:, :3], np.diagonal(plain.kappa, axis1=1, axis2=2), rtol=1e-10)
        np.testing.assert_allclose(totals, file["kappa_RTA"], rtol=1e-10, atol=1e-10)
    # Walls nearer than the atoms leave nothing for phonons to scatter into: relative to kappa the correction goes as their
    # distance.
    added = [
        np.abs(x.kappa - x.kappa_populations).max() / x.kappa.max()
        for x in (thermal_conductivity(nacl, (3, 3, 3), method="lbte", boundary=b, **options) for b in (1e-2, 1e-3))
    ]
    assert added[0] < 1e-3 and added[1] == pytest.approx(added[0] / 10, rel=0.05)


def test_bound_of_irreducible_points(nacl):
    rotations = symmetry.point_group(nacl.crystal)
    for mesh in ((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (9, 9, 9), (12, 12, 12)):
        exact = len(make_grid(nacl.crystal.lattice, mesh, rotations).irreducible)
        assert exact <= problem._stars_at_most(nacl, mesh) <= 2 * exact + 6


def test_errors_of_the_full_solution(nacl):
    with pytest.raises(InputError, match="derivative"):
        kappa_function(nacl, (3, 3, 3), method="lbte")
    with pytest.raises(CapacityError, match="fewer temperatures"):
        thermal_conductivity(nacl, (60, 60, 60), np.arange(100.0, 1000.0, 10.0), method="lbte", memory=8)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["Si", "NaCl", "AlN_wz"])
def test_against_the_direct_solution_of_phono3py(shared, key):
    pytest.importorskip("phono3py")
    folder = shared / "data/dft_fc3"
    entries = [
        r for r in json.loads((folder / "reference.json").read_text()) if r["key"] == key and r["method"] == "LBTE"
    ]
    fc = ForceConstants.from_phono3py(folder / f"{key}.yaml.xz")
    assert entries
    for r in entries:
        x = thermal_conductivity(fc, r["mesh"], sigma=r["sigma"], isotopes=False, nac=r["nac"], method="lbte")
        full, plain = np.diag(x.kappa[0]), np.diag(x.kappa_populations[0])
        expected, expected_plain = np.array(r["kappa_LBTE"][0][:3]), np.array(r["kappa_RTA"][0][:3])
        np.testing.assert_allclose(full, expected, rtol=1.5e-2)
        np.testing.assert_allclose(full / plain, expected / expected_plain, rtol=5e-3)
        if r["sigma"] is not None:
            # The reference's velocities are diagonal, which only changes the part that is not fed by other modes.
            np.testing.assert_allclose(full - plain, expected - expected_plain, rtol=1e-4)
