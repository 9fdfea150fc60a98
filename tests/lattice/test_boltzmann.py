"""The full solution of the Boltzmann equation: a collision operator written out in NumPy, phono3py's direct solution."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wigner_fixture import load

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import CapacityError, InputError, UnstableError
from jaxmd_thermal.lattice import boltzmann, phonons, scattering, strength
from jaxmd_thermal.lattice import conductivity as driver
from jaxmd_thermal.lattice.conductivity import kappa_function, thermal_conductivity
from jaxmd_thermal.lattice.force_constants import ForceConstants
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
    """Frequencies, velocities, and by statistics (classical or not) collision matrix, its diagonal and heat capacities.

    On the whole grid, without any symmetry. Shapes (N, bands), (N, 3, bands, bands), (N, bands, N, bands), (N, bands).
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

    def delta(y):
        return np.exp(-0.5 * (y / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))

    gammas, couplings = ({c: np.zeros(s) for c in statistics} for s in ((n, bands), (n, bands, n, bands)))
    for k, m in np.ndindex(n, n):
        last = int(np.flatnonzero(np.all((grid[k] + grid[m] + grid) % np.array(mesh) == 0, axis=1))[0])
        phi = transformed(fc, q[m], q[last], q[k])
        phi = np.einsum("xyz,xa,yb,zc->abc", phi, e[k], e[m], e[last], optimize=True)
        good = some[k][:, None, None] & some[m][:, None] & some[last]
        f0, f1, f2 = f[k][:, None, None], f[m][:, None], f[last]
        values = np.where(good, np.abs(phi) ** 2 / np.where(good, f0 * f1 * f2, 1.0), 0.0) * unit / n
        decay, absorb, emit = delta(f0 - f1 - f2), delta(f0 + f1 - f2), delta(f0 - f1 + f2)
        for classical, (occupied, sinh, zero_point, _) in statistics.items():
            n1, n2 = occupied[m][:, None], occupied[last]
            rate = (n1 + n2 + zero_point) * decay + (n1 - n2) * (absorb - emit)
            gammas[classical][k] += np.sum(values * rate, (1, 2))
            couplings[classical][k, :, m] += np.sum(values * (decay + absorb + emit) / sinh[last], 2)
    same = np.abs(f[:, :, None] - f[:, None]) < 1e-4
    mean = same / same.sum(-1, keepdims=True)
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
    unit = 1e2**2 / (fc.crystal.volume * 1e-30 * n) / (4 * np.pi * 1e12)  # THz Å is 100 m/s; 1/tau = 4 pi gamma
    rta = unit * np.einsum("xa,xb,x->ab", right, right, 1 / width)
    return unit * right.T @ np.linalg.solve(matrix, right) - rta, matrix / np.sqrt(np.outer(width, width))


class Parts:
    """Collision matrix of a small mesh, and solutions with it."""

    def __init__(self, fc, mesh, chunk_bytes=None, **options):
        self.fc, self.p = fc, driver.prepare(fc, mesh, isotopes=False, **options)
        p = self.p
        if chunk_bytes:
            one = strength.transform_bytes(fc.crystal, fc.images3)
            p = p._replace(work=scattering.plan(p.grid, p.triplets, one, chunk_bytes))
        with double_precision():
            self.unfolding = jax.tree.map(jnp.asarray, boltzmann.unfold(p.grid, p.reciprocal))
            modes = driver._modes(jnp.asarray(fc.fc2), p)
            three, _ = driver._three_phonon(jnp.asarray(fc.fc3), modes, p, scattering.solved, unfolding=self.unfolding)
            self.collisions, self.gamma = three.collisions[:, :, 0], three.gamma.sum(0)[0]
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


def agrees_with_brute_force(fc, mesh, sigma):
    _, velocity, made = brute_force(fc, mesh, sigma, 300.0)
    for classical, name in ((False, "quantum"), (True, "classical")):
        expected, matrix = brute_force_added(fc, velocity, *made[classical])
        assert np.abs(matrix - matrix.T).max() < 1e-12 and np.linalg.eigvalsh(matrix)[0] > 0
        parts = Parts(fc, mesh, sigma=sigma, populations=name)
        grid = np.stack(np.meshgrid(*[np.arange(m) for m in mesh], indexing="ij"), -1).reshape(-1, 3)
        rows = np.argsort(parts.p.grid.index(grid))[parts.p.grid.irreducible]
        np.testing.assert_allclose(np.asarray(parts.gamma), made[classical][0][rows], rtol=1e-10, atol=1e-15)
        for direct in (True, False):
            solution = parts.solve(direct=direct)
            assert np.abs(solution.added - expected).max() < 1e-10 * np.abs(expected).max()
            total = solution.modes.sum() / len(grid)
            assert total == pytest.approx(np.trace(expected) / 3, rel=1e-10)


def test_collision_operator_written_out_without_symmetry(nacl):
    agrees_with_brute_force(nacl, (3, 3, 3), 0.5)


@pytest.mark.slow
def test_collision_operator_of_an_even_mesh_with_points_that_are_their_own_inverse(nacl):
    agrees_with_brute_force(nacl, (4, 4, 4), 0.5)


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


def test_chunks_of_the_third_phonon_change_nothing(nacl, tetrahedra):
    one = strength.transform_bytes(nacl.crystal, nacl.images3)
    many = Parts(nacl, (4, 4, 4), chunk_bytes=30 * one, block_average=True)
    assert many.chunks == 3 and tetrahedra.chunks == 1
    np.testing.assert_allclose(many.collisions, tetrahedra.collisions, atol=1e-12 * np.max(tetrahedra.collisions))


def test_without_in_scattering_it_is_the_relaxation_time_approximation(tetrahedra):
    solution = tetrahedra.solve(collisions=0 * np.asarray(tetrahedra.collisions))
    assert np.abs(solution.added).max() < 1e-14
    assert np.abs(tetrahedra.solve().added).max() > 0.1


def test_a_matrix_that_is_not_positive_is_refused(tetrahedra):
    solution = tetrahedra.solve(collisions=-30 * np.asarray(tetrahedra.collisions))
    with pytest.raises(UnstableError, match=r"300 K .* not positive .* finer mesh"):
        boltzmann.check(solution, 300.0)


def test_public_function_with_isotopes_and_boundaries(nacl):
    options = {"sigma": 0.5, "temperatures": (300.0, 500.0)}
    full = thermal_conductivity(nacl, (3, 3, 3), method="lbte", **options)
    plain = thermal_conductivity(nacl, (3, 3, 3), method="rta", **options)
    np.testing.assert_allclose(full.kappa_populations, plain.kappa, rtol=1e-12)
    means = np.trace(full.kappa, axis1=1, axis2=2) / 3
    np.testing.assert_allclose(full.mode_kappa.sum((1, 2)) / 27, means, rtol=1e-12)
    assert np.all(np.abs(means / np.trace(plain.kappa, axis1=1, axis2=2) * 3 - 1) > 5e-3)
    # Walls nearer than the atoms leave nothing for phonons to scatter into: the correction dies as the square.
    added = [
        np.abs(x.kappa - x.kappa_populations).max() / x.kappa.max()
        for x in (thermal_conductivity(nacl, (3, 3, 3), method="lbte", boundary=b, **options) for b in (1e-2, 1e-3))
    ]
    assert added[0] < 1e-3 and added[1] == pytest.approx(added[0] / 10, rel=0.05)


def test_errors_of_the_full_solution(nacl):
    with pytest.raises(InputError, match="derivative"):
        kappa_function(nacl, (3, 3, 3), method="lbte")
    with pytest.raises(CapacityError, match="fewer temperatures"):
        thermal_conductivity(nacl, (60, 60, 60), np.arange(100.0, 1000.0, 10.0), method="lbte", memory=8)


def against_phono3py(shared, key, some):
    pytest.importorskip("phono3py")
    folder = shared / "data/dft_fc3"
    entries = [
        r for r in json.loads((folder / "reference.json").read_text()) if r["key"] == key and r["method"] == "LBTE"
    ]
    fc = ForceConstants.from_phono3py(folder / f"{key}.yaml.xz")
    entries = [r for r in entries if some(r)]
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


def test_silicon_against_phono3py(shared):
    against_phono3py(shared, "Si", lambda r: r["sigma"] is not None)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["Si", "NaCl", "AlN_wz"])
def test_all_of_the_reference(shared, key):
    against_phono3py(shared, key, lambda r: True)
