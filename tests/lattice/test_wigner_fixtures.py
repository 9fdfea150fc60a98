"""Linewidths and conductivities against phono3py's on the same force constants (items 1 to 3 and 9 of the acceptance)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wigner_fixture import load, solve, velocity

from jaxmd_thermal import units
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.lattice import scattering, strength, wigner
from jaxmd_thermal.lattice.grid import Triplets
from jaxmd_thermal.lattice.isotopes import solved_isotope_linewidths
from jaxmd_thermal.lattice.scattering import Modes

ROOM = np.array([300.0])


@pytest.fixture(autouse=True)
def in_double_precision():
    with double_precision():
        yield


def widths(z, modes, sigma, fc3=None, work=None, **options):
    fc3 = jnp.asarray(z.fc3 if fc3 is None else fc3)
    gamma, _ = scattering.solved_linewidths(
        fc3, modes, z.paths, jnp.asarray(z.masses), jnp.asarray(z.pos), work or z.work, jnp.asarray(ROOM),
        sigma=sigma, **options,
    )  # fmt: skip
    return gamma.sum(0)


def kappa(z, modes, gamma, fc2=None):
    at = Modes(*(x[z.gps] for x in modes))
    v = velocity(z.fc2 if fc2 is None else fc2, at, z)
    squares = wigner.squared_velocity(v, z.rots)
    return wigner.conductivity(at.frequencies, squares, gamma, jnp.asarray(z.wq), z.volume, jnp.asarray(ROOM))


def relative(got, expected):
    some = expected > 1e-8
    assert np.all(np.abs(got[~some]) < 1e-8)
    return np.abs(got[some] / expected[some] - 1).max()


@pytest.fixture(scope="module")
def tetra(shared):
    return load(shared, "nacl_mesh9_tetra")


def supplied(z):
    return Modes(jnp.asarray(z.qbz), jnp.asarray(z.freqs), jnp.asarray(z.evecs))


def test_gaussian(shared):
    z = load(shared, "nacl_mesh9_gauss0p2")
    modes = solve(z.fc2, jnp.asarray(z.qbz), z)
    assert np.abs(modes.frequencies - z.freqs).max() < 1e-6
    gamma = widths(z, modes, 0.2)
    assert relative(np.asarray(gamma[0]), z.gamma) < 1e-5
    k = kappa(z, modes, gamma)
    total = k.populations + k.coherences
    assert np.allclose(np.asarray(total[0]), 7.225950 * np.eye(3), atol=1e-5 * 7.2)
    assert float(k.populations[0, 0, 0]) == pytest.approx(z.kappaP[0, 0], rel=1e-5)
    assert float(k.coherences[0, 0, 0]) == pytest.approx(z.kappaC[0, 0], rel=1e-5)
    assert float(k.modes[0].sum() / z.wq.sum()) == pytest.approx(7.225950, rel=1e-5)


@pytest.mark.usefixtures("rule_of_phono3py_3")
def test_tetrahedra_with_supplied_modes(tetra):
    gamma = widths(tetra, supplied(tetra), None)
    assert relative(np.asarray(gamma[0]), tetra.gamma) < 1e-5
    k = kappa(tetra, supplied(tetra), gamma)
    assert float(k.populations[0, 0, 0]) == pytest.approx(7.539887, rel=1e-5)
    assert float(k.coherences[0, 0, 0]) == pytest.approx(0.076745, abs=1e-6)
    assert float(k.populations[0, 0, 0] + k.coherences[0, 0, 0]) == pytest.approx(7.616632, rel=1e-5)


def test_tetrahedra_with_own_modes(tetra):
    modes = solve(tetra.fc2, jnp.asarray(tetra.qbz), tetra)
    k = kappa(tetra, modes, widths(tetra, modes, None))
    assert float(k.populations[0, 0, 0] + k.coherences[0, 0, 0]) == pytest.approx(7.616632, rel=6e-3)


def mixed(modes, seed):
    """Eigenvectors multiplied by a random unitary matrix inside each degenerate block."""
    rng = np.random.default_rng(seed)
    f, e = np.asarray(modes.frequencies), np.array(modes.eigenvectors)
    for q in range(len(f)):
        for block in np.split(np.arange(f.shape[1]), np.flatnonzero(np.diff(f[q]) > 1e-4) + 1):
            m = rng.normal(size=(len(block),) * 2) + 1j * rng.normal(size=(len(block),) * 2)
            e[q][:, block] = e[q][:, block] @ np.linalg.qr(m)[0]
    return modes._replace(eigenvectors=jnp.asarray(e))


@pytest.mark.parametrize("sigma, blocks", [(0.3, False), (None, True)])
def test_gauge_is_free_with_gaussians_and_with_block_averages(shared, sigma, blocks):
    z = load(shared, "nacl_mesh5_gauss0p3")
    modes = solve(z.fc2, jnp.asarray(z.qbz), z)
    totals = []
    for m in (modes, mixed(modes, 1)):
        k = kappa(z, m, widths(z, m, sigma, blocks=blocks))
        isotopes, _ = solved_isotope_linewidths(
            m, jnp.array([1e-3, 2e-3]), jnp.asarray(z.gps), jnp.asarray(z.work.plus), z.work.corners, sigma, blocks
        )
        totals.append([float(k.populations[0, 0, 0] + k.coherences[0, 0, 0]), *np.asarray(isotopes).ravel()])
    assert np.allclose(*totals, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_chunks_and_normal_processes_change_nothing(tetra):
    z = tetra
    one = scattering.solved_linewidths(
        jnp.asarray(z.fc3), supplied(z), z.paths, jnp.asarray(z.masses), jnp.asarray(z.pos), z.work, jnp.asarray(ROOM)
    )[0]
    flags = np.random.default_rng(0).uniform(size=len(z.wts)) < 0.5
    triplets = Triplets(z.gps, z.off, z.tri, z.wts, flags)
    work = scattering.arrange(triplets, z.work.plus, z.work.minus, z.work.corners, 300)
    assert len(work.thirds) == 3
    many, capacity = scattering.solved_linewidths(
        jnp.asarray(z.fc3), supplied(z), z.paths, jnp.asarray(z.masses), jnp.asarray(z.pos), work, jnp.asarray(ROOM),
        capacity=1000,
    )  # fmt: skip
    assert capacity > 1000  # overflowed and was repaired
    assert np.allclose(many.sum(0), one.sum(0), rtol=1e-11, atol=1e-15)
    assert np.all(np.asarray(many) >= 0) and float(many[1].sum()) > 0.1 * float(one.sum())


@pytest.mark.parametrize("sigma", [pytest.param(0.3, marks=pytest.mark.slow), None])
def test_gradient_of_widths_is_that_of_the_forward_pass_kept_or_repeated(shared, monkeypatch, sigma):
    """What is kept for the reverse pass, and chunks, change no gradient; which is that of a central difference."""
    z = load(shared, "nacl_mesh5_gauss0p3")
    modes = solve(z.fc2, jnp.asarray(z.qbz), z)
    triplets = Triplets(z.gps, z.off, z.tri, z.wts, np.ones(len(z.wts), bool))
    chunks = scattering.arrange(triplets, z.work.plus, z.work.minus, z.work.corners, 50)
    assert len(chunks.thirds) > 1
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=(len(z.gps), modes.frequencies.shape[1])))
    fc3 = jnp.asarray(z.fc3)

    def total(x, work):
        out = scattering.linewidths.__wrapped__(
            x, modes, z.paths, jnp.asarray(z.masses), jnp.asarray(z.pos), work, jnp.asarray(ROOM), sigma=sigma,
            blocks=True, capacity=1 << 17,
        )  # fmt: skip
        return jnp.sum(jnp.sum(out.gamma, 0)[0] * weights) + jnp.where(out.needed <= 1 << 17, 0.0, jnp.nan)

    kept = jax.jit(jax.grad(total))(fc3, z.work)
    tolerance = 1e-10 * float(jnp.max(jnp.abs(kept)))
    assert np.allclose(jax.jit(jax.grad(total))(fc3, chunks), kept, rtol=0, atol=tolerance)
    monkeypatch.setattr(scattering, "KEPT_BYTES", 0)
    assert np.allclose(jax.jit(jax.grad(lambda x: total(x, z.work)))(fc3), kept, rtol=0, atol=tolerance)
    direction, step = jnp.asarray(rng.normal(size=fc3.shape)), 1e-5
    value = jax.jit(total)
    # |V|^2 is quadratic in fc3: the central difference is exact but for rounding.
    slope = (value(fc3 + step * direction, z.work) - value(fc3 - step * direction, z.work)) / (2 * step)
    assert float(jnp.vdot(kept, direction)) == pytest.approx(float(slope), rel=1e-7)


def test_mesh19_with_supplied_widths(shared, tetra):
    z = tetra
    given = np.load(shared / "data/phonondb103/fixtures/nacl_mesh19_gamma.npz")
    at = solve(z.fc2, jnp.asarray(given["qpoints"]), z)
    assert np.abs(np.asarray(at.frequencies) - given["frequencies"]).max() < 1e-6
    squares = wigner.squared_velocity(velocity(z.fc2, at, z), z.rots)
    gamma = jnp.asarray(given["gamma"] + given["gamma_isotope"])[None]
    k = wigner.conductivity(at.frequencies, squares, gamma, jnp.asarray(given["weights"]), z.volume, jnp.asarray(ROOM))
    assert float(k.populations[0, 0, 0]) == pytest.approx(given["kappa_P"][0], rel=1e-5)
    assert float(k.coherences[0, 0, 0]) == pytest.approx(given["kappa_C"][0], rel=1e-5)
    assert float(k.populations[0, 1, 1] + k.coherences[0, 1, 1]) == pytest.approx(6.74925, rel=1e-5)


@pytest.fixture(scope="module")
def line(shared):
    """kappa of (fc2, fc3) and its gradient, Gaussian, 5^3; both at NaCl; and the way from there to those of LiBr.

    The reference took the prefactor of the linewidths from phono3py's constants, which the fixture carries. It is 1e-6 below
    ours, so fc3 is scaled to it: that much the derivative changes, too.
    """
    a, b = load(shared, "nacl_mesh5_gauss0p3"), load(shared, "libr_mesh5_gauss0p3")
    hbar = units.PLANCK_REDUCED * 1e-15  # eV s
    theirs = 18 * np.pi / (2e12 * np.pi * hbar) ** 2 * float(a.conv_pp) * np.prod(a.mesh)
    scale = np.sqrt(theirs / strength.LINEWIDTH_UNIT)
    assert scale == pytest.approx(1, abs=1e-6)

    def total(fc2, fc3):
        modes = solve(fc2, jnp.asarray(a.qbz), a)
        result = scattering.linewidths(scale * fc3, modes, a.paths, jnp.asarray(a.masses), jnp.asarray(a.pos), a.work,
                                       jnp.asarray(ROOM), sigma=0.3)  # fmt: skip
        k = kappa(a, modes, result.gamma.sum(0), fc2)
        return k.populations[0, 0, 0] + k.coherences[0, 0, 0]

    with double_precision():
        compiled = jax.jit(total), jax.jit(jax.grad(total, (0, 1)))
        fc2, fc3 = jnp.asarray(a.fc2), jnp.asarray(a.fc3)
        return *compiled, (fc2, fc3), (jnp.asarray(b.fc2) - fc2, jnp.asarray(b.fc3) - fc3)


@pytest.mark.slow
def test_gradient_with_respect_to_force_constants(line):
    total, gradient, start, way = line
    assert float(total(*start)) == pytest.approx(8.74920919, rel=1e-5)
    slopes = gradient(*start)
    assert all(np.all(np.isfinite(x)) for x in slopes)
    # Along each of the two, central differences, extrapolated.
    for number in range(2):
        only = [x if place == number else 0 * x for place, x in enumerate(way)]

        def difference(h, only=only):
            ahead, behind = (total(*(x + s * h * d for x, d in zip(start, only, strict=True))) for s in (1, -1))
            return float(ahead - behind) / (2 * h)

        extrapolated = (4 * difference(1e-3) - difference(2e-3)) / 3
        assert float(jnp.vdot(slopes[number], way[number])) == pytest.approx(extrapolated, rel=1e-6)
    assert float(sum(jnp.vdot(x, d) for x, d in zip(slopes, way, strict=True))) == pytest.approx(-8.203373, rel=1e-6)
    # kappa goes as fc3^-2 in the populations; with this direction the derivative knows the exact exponent of the total.
    (fc2, fc3), step = start, 1e-5
    slope = (total(fc2, fc3 * (1 + step)) - total(fc2, fc3 * (1 - step))) / (2 * step)
    assert float(jnp.vdot(slopes[1], fc3)) == pytest.approx(float(slope), rel=1e-7)


def test_populations_scale_as_the_inverse_square_of_fc3(shared):
    z = load(shared, "nacl_mesh5_gauss0p3")
    modes = solve(z.fc2, jnp.asarray(z.qbz), z)
    one, other = (kappa(z, modes, widths(z, modes, 0.3, fc3=s * z.fc3)).populations[0, 0, 0] for s in (1.0, 1.7))
    assert float(other / one) == pytest.approx(1.7**-2, rel=1e-3)
