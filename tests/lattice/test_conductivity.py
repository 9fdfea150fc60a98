"""The conductivity from force constants: real DFT data beside phono3py (item 4), isotopes, boundaries, derivatives."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wigner_fixture import load

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import CapacityError, InputError
from jaxmd_thermal.lattice.conductivity import thermal_conductivity, transport_function
from jaxmd_thermal.lattice.force_constants import ForceConstants
from jaxmd_thermal.lattice.isotopes import MASS_VARIANCE, mass_variances


def fixture(shared, name="nacl_mesh5_gauss0p3"):
    z = load(shared, name)
    return z, ForceConstants(fc2=z.fc2, fc3=z.fc3, crystal=z.crystal, images2=z.images2, images3=z.images3)


@pytest.fixture(scope="module")
def nacl(shared):
    return fixture(shared)


def agrees(got, expected, limit):
    got, expected = np.asarray(got)[0], np.asarray(expected)[0]
    rounding = 5e-6  # the reference is stored with five decimals, coherences of 0.05 W/(m K) among it
    assert np.all(np.abs(np.diag(got) - expected[:3]) < limit * expected[:3] + rounding), (np.diag(got), expected)
    assert np.abs(got - np.diag(np.diag(got))).max() < limit * got.max()


@pytest.fixture(scope="module")
def dft(shared):
    pytest.importorskip("phono3py")
    folder = shared / "data/dft_fc3"
    entries = json.loads((folder / "reference.json").read_text())
    made = {}

    def get(key):
        if key not in made:
            made[key] = ForceConstants.from_phono3py(folder / f"{key}.yaml.xz")
        return made[key], [r for r in entries if r["key"] == key and r["method"] == "RTA+Wigner"]

    return get


def against_phono3py(fc, entries, some):
    count = 0
    for r in entries:
        if some(r):
            count += 1
            x = thermal_conductivity(fc, r["mesh"], sigma=r["sigma"], isotopes=r["isotope"], nac=r["nac"])
            limit = 6e-3 if r["sigma"] is None else 1e-4
            agrees(x.kappa_populations, r["kappa_P"], limit)
            agrees(x.kappa_coherences, r["kappa_C"], limit)
            assert x.mode_kappa.sum() / x.weights.sum() == pytest.approx(np.trace(x.kappa[0]) / 3)
            assert not x.invalid
    assert count


def test_silicon_with_isotopes(dft):
    against_phono3py(*dft("Si"), lambda r: r["isotope"] and r["sigma"] is None)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["Si", "NaCl", "AlN_wz"])
@pytest.mark.usefixtures("rule_of_phono3py_3")
def test_all_of_the_reference(dft, key):
    against_phono3py(*dft(key), lambda r: True)


def test_own_grid_agrees_with_the_fixture(nacl):
    z, fc = nacl
    x = thermal_conductivity(fc, (5, 5, 5), sigma=0.3, isotopes=False)
    assert np.allclose(x.kappa[0], 8.74920919 * np.eye(3), atol=1e-5 * 8.7)
    assert np.array_equal(x.weights, z.wq)
    some = z.gamma > 1e-8
    assert np.abs(x.gamma[0][some] / z.gamma[some] - 1).max() < 1e-5
    assert np.allclose(x.gamma_normal + x.gamma_umklapp, x.gamma, rtol=1e-12)
    share = x.gamma_umklapp.sum() / x.gamma.sum()
    assert 0.1 < share < 0.9
    populations = thermal_conductivity(fc, (5, 5, 5), sigma=0.3, isotopes=False, method="rta")
    assert np.array_equal(populations.kappa, x.kappa_populations)
    assert populations.mode_kappa.sum() / x.weights.sum() == pytest.approx(populations.kappa[0, 0, 0])


def test_tetrahedra_with_isotopes_beside_the_phono3py_of_today(dft):
    """By our own rule: the references of the test above are of a version that leaves out some tetrahedra."""
    import phono3py

    from jaxmd_thermal.lattice import symmetry

    if int(phono3py.__version__.split(".")[0]) < 4:
        pytest.skip("phono3py 3 leaves out tetrahedra with a vertex at the frequency")
    fc, _ = dft("NaCl")
    phonon = symmetry.phono3py_object(fc.geometry)
    phonon.fc2, phonon.fc3, phonon.mesh_numbers = fc.fc2, fc.fc3, (9, 9, 9)
    phonon.init_phph_interaction()
    phonon.run_thermal_conductivity(temperatures=[300.0], is_isotope=True)
    expected = np.ravel(phonon.thermal_conductivity.kappa)[:3]
    found = np.diag(thermal_conductivity(fc, (9, 9, 9), method="rta").kappa[0])
    # Measured 8e-4; each has its own eigenvectors of degenerate modes.
    assert np.abs(found / expected - 1).max() < 6e-3


def isotope_linewidths_of_the_benchmark_mesh(shared):
    """Ours on the 19^3 points of NaCl, and those of the fixture."""
    from jaxmd_thermal.lattice import conductivity, isotopes

    _, fc = fixture(shared, "nacl_mesh9_tetra")
    given = np.load(shared / "data/phonondb103/fixtures/nacl_mesh19_gamma.npz")
    with double_precision():
        p = conductivity.prepare(fc, (19, 19, 19))
        modes = conductivity._modes(jnp.asarray(fc.fc2), p)
        where = (jnp.asarray(p.grid.irreducible), jnp.asarray(p.work.plus), p.work.corners)
        gamma, _ = isotopes.solved_isotope_linewidths(modes, jnp.asarray(p.variances), *where)
    assert np.array_equal(p.grid.weights, given["weights"])
    return np.asarray(gamma), given["gamma_isotope"]


@pytest.mark.slow
@pytest.mark.usefixtures("rule_of_phono3py_3")
def test_isotope_linewidths_of_the_benchmark_mesh(shared):
    gamma, expected = isotope_linewidths_of_the_benchmark_mesh(shared)
    # Another gauge inside degenerate blocks moves tetrahedron weights (measured: 0.6 % of the sum); the formula itself is
    # pinned by the Gaussian conductivities with isotopes above, to 1e-4.
    assert gamma.sum() == pytest.approx(expected.sum(), rel=1e-2)


@pytest.mark.slow
def test_isotope_linewidths_of_the_benchmark_mesh_with_all_tetrahedra(shared):
    gamma, expected = isotope_linewidths_of_the_benchmark_mesh(shared)
    assert np.all(gamma >= 0.98 * expected) and 1.02 < gamma.sum() / expected.sum() < 1.04


def written_out(x):
    """kappa of populations and coherences, and K(q, s), by three loops over the definition in SI; means over directions."""
    k_b, h = 1.380649e-23, 6.62607015e-34
    volume = x.crystal.volume * 1e-30 * x.weights.sum()
    classical = x.settings["populations"] == "classical"
    kappa, modes = np.zeros((2, len(x.temperatures))), np.zeros(x.mode_kappa.shape)
    for t, kelvin in enumerate(x.temperatures):
        for q, weight in enumerate(x.weights):
            for s in range(x.frequencies.shape[1]):
                for other in range(x.frequencies.shape[1]):
                    f, g = x.frequencies[q, s], x.frequencies[q, other]
                    if min(f, g) <= 1e-4:
                        continue
                    heats = [
                        k_b * (1.0 if classical else y**2 * np.exp(y) / np.expm1(y) ** 2)
                        for y in (h * 1e12 * f / (k_b * kelvin), h * 1e12 * g / (k_b * kelvin))
                    ]
                    wide = 2e12 * np.pi * (x.gamma_total[t, q, s] + x.gamma_total[t, q, other])  # mean of 4 pi gamma
                    speed2 = np.sum(np.abs(x.velocity_operator[q, :, s, other]) ** 2) * 1e4 / 3
                    value = (f + g) / 4 * (heats[0] / f + heats[1] / g) * speed2 * wide
                    value *= weight / volume / ((2e12 * np.pi * (f - g)) ** 2 + wide**2)
                    same = abs(f - g) < 1e-4
                    kappa[0 if same else 1, t] += value
                    share = 1.0 if same else 2 * heats[0] / sum(heats)
                    modes[t, q, s] += share * value * x.weights.sum()
    return kappa, modes


@pytest.mark.parametrize("populations", ["quantum", "classical"])
def test_modes_written_out(nacl, populations):
    _, fc = nacl
    x = thermal_conductivity(fc, (3, 3, 3), (80.0, 300.0), sigma=0.5, boundary=1e4, populations=populations)
    kappa, modes = written_out(x)
    np.testing.assert_allclose(np.trace(x.kappa_populations, axis1=1, axis2=2) / 3, kappa[0], rtol=1e-9)
    np.testing.assert_allclose(np.trace(x.kappa_coherences, axis1=1, axis2=2) / 3, kappa[1], rtol=1e-9)
    np.testing.assert_allclose(x.mode_kappa, modes, rtol=1e-9, atol=1e-12)
    y = 4.135667696923859e-3 * np.maximum(x.frequencies, 1e-4) / (8.617333262145178e-5 * x.temperatures[:, None, None])
    heat = 8.617333262145178e-5 * np.where(populations == "classical", 1.0, (y / 2 / np.sinh(y / 2)) ** 2)
    np.testing.assert_allclose(x.heat_capacity, np.where(x.frequencies > 1e-4, heat, 0.0), rtol=1e-9)


def test_boundaries_and_temperatures(nacl):
    _, fc = nacl
    free, bound = (thermal_conductivity(fc, (3, 3, 3), (300, 5000.0), sigma=0.5, boundary=b) for b in (None, 100.0))
    assert np.allclose(bound.gamma_total - free.gamma_total, bound.group_speed / (4 * np.pi * 100.0))
    assert np.array_equal(bound.gamma, free.gamma) and np.all(free.gamma_total >= free.gamma + free.gamma_isotope)
    assert bound.kappa[0, 0, 0] < free.kappa[0, 0, 0] and free.kappa[1, 0, 0] < free.kappa[0, 0, 0]
    # The classical occupation stands for n + 1/2, so both statistics agree to second order in hf/kT.
    classical = thermal_conductivity(fc, (3, 3, 3), (300, 5000.0), sigma=0.5, populations="classical")
    assert np.allclose(classical.kappa[1], free.kappa[1], rtol=1e-3)
    assert not np.allclose(classical.kappa[0], free.kappa[0], rtol=1e-3)


@pytest.mark.slow
def test_strengths_in_single_precision(nacl):
    _, fc = nacl
    double, single = (
        thermal_conductivity(fc, (3, 3, 3), (80.0, 300.0), sigma=0.5, boundary=1e4, dtype=d)
        for d in ("float64", "float32")
    )
    assert single.gamma.dtype == np.float64
    np.testing.assert_allclose(single.kappa, double.kappa, rtol=2e-6, atol=1e-6)
    some = double.gamma > 1e-8
    worst = np.abs(single.gamma / np.where(some, double.gamma, 1.0) - 1)[some].max()
    assert 1e-9 < worst < 1e-5


def test_gradient_of_the_public_function(nacl):
    """kappa, frequencies, linewidths and heat capacities along a change that keeps the symmetry: fc2 and fc3 scaled."""
    _, fc = nacl
    function = transport_function(fc, (3, 3, 3), sigma=0.5, boundary=1e4)
    with double_precision():
        fc2, fc3 = jnp.asarray(fc.fc2), jnp.asarray(fc.fc3)

        def along(x):
            y = function(fc2 * (1 + x), fc3 * (1 + 0.7 * x))
            seen = y.frequencies[1:]  # at Gamma acoustic modes are rounding
            return jnp.stack([y.kappa[0, 0, 0], seen.mean(), y.gamma_total.mean(), y.heat_capacity.mean()])

        f = jax.jit(along)
        value, slope = f(0.0), jax.jit(jax.jacrev(along))(0.0)
        coarse, fine = (np.asarray(f(h) - f(-h)) / (2 * h) for h in (2e-3, 1e-3))
    np.testing.assert_allclose(slope, (4 * fine - coarse) / 3, rtol=1e-6)
    value = value[0]
    direct = thermal_conductivity(fc, (3, 3, 3), sigma=0.5, boundary=1e4, block_average=True)
    assert float(value) == pytest.approx(direct.kappa[0, 0, 0], rel=1e-9)


@pytest.mark.parametrize("buffer", [pytest.param("capacity", marks=pytest.mark.slow), "iso_capacity"])
def test_small_buffers_are_not_hidden(nacl, buffer):
    """What the tetrahedra do not find room for is missing everywhere, not only in the sum."""
    _, fc = nacl
    function = transport_function(fc, (3, 3, 3), isotopes=buffer == "iso_capacity")
    with double_precision():
        whole = function(jnp.asarray(fc.fc2), jnp.asarray(fc.fc3))
        short = partial(function.func, *function.args, **(function.keywords | {buffer: 1}))(
            jnp.asarray(fc.fc2), jnp.asarray(fc.fc3)
        )
    for name in ("kappa", "populations", "coherences", "gamma", "gamma_total"):
        assert np.all(np.isfinite(getattr(whole, name))) and np.all(np.isnan(getattr(short, name))), name
    np.testing.assert_array_equal(short.frequencies, whole.frequencies)


def test_imaginary_modes_leave_no_conductivity(nacl):
    """The pure function has no words to say it: NaN, and the frequencies that are the reason."""
    _, fc = nacl
    function = transport_function(fc, (3, 3, 3), sigma=0.5)
    with double_precision():
        fc2, fc3 = jnp.asarray(fc.fc2), jnp.asarray(fc.fc3)
        own = np.flatnonzero(fc.images2.primitive_of == 0)[0]
        softened = fc2.at[0, own].add(-1.5 * jnp.eye(3))  # a crystal whose first atom wants to leave its site
        found, steady = function(softened, fc3), function(fc2, fc3)
    assert np.min(found.frequencies) < -0.1 and np.all(np.isnan(found.kappa)) and np.all(np.isnan(found.gamma))
    assert np.min(steady.frequencies) > -1e-2 and np.all(np.isfinite(steady.kappa))


def test_derivatives_of_isotope_linewidths(monkeypatch):
    """By tetrahedra, against central differences, with and without memory for the forward pass. Frequencies are random: in a
    crystal some stand exactly at a vertex, where the weight has a kink."""
    from jaxmd_thermal.lattice import isotopes
    from jaxmd_thermal.lattice.grid import make_grid
    from jaxmd_thermal.lattice.scattering import Modes
    from jaxmd_thermal.lattice.tetrahedron import vertex_table

    rng = np.random.default_rng(5)
    grid = make_grid(3.0 * np.eye(3) + 0.2 * rng.random((3, 3)), (4, 4, 3), np.eye(3, dtype=int)[None])
    vertices, corners = vertex_table(grid.tetrahedra)
    plus = grid.index(grid.addresses[:, None] + vertices)
    n = len(plus)
    vectors = np.linalg.qr(rng.normal(size=(n, 6, 6)) + 1j * rng.normal(size=(n, 6, 6)))[0]
    frequencies, weights = 1.0 + 4.0 * rng.random((n, 6)), rng.normal(size=(n, 6))
    direction, step = rng.normal(size=(n, 6)), 1e-6
    with double_precision():

        def total(f):
            gamma, _ = isotopes.isotope_linewidths.__wrapped__(
                Modes(None, f, jnp.asarray(vectors)), jnp.array([1e-3, 2e-3]), jnp.arange(n), jnp.asarray(plus), corners,
                capacity=n * 36,
            )  # fmt: skip
            return jnp.sum(gamma * weights)

        value, f = jax.jit(total), jnp.asarray(frequencies)
        kept = jax.jit(jax.grad(total))(f)
        monkeypatch.setattr(isotopes, "KEPT_BYTES", 0)
        again = jax.jit(jax.grad(lambda x: total(x)))(f)
        slope = float(value(f + step * direction) - value(f - step * direction)) / (2 * step)
    np.testing.assert_allclose(again, kept, rtol=0, atol=1e-12 * float(np.max(np.abs(kept))))
    # Weights are cubic splines: the third derivative at the scale of their width leaves 1e-6 or less.
    assert float(np.vdot(kept, direction)) == pytest.approx(slope, rel=1e-5)


def test_mass_variances():
    assert mass_variances([11, 17]) == pytest.approx([0.0, 5.827e-4], rel=1e-3)
    assert mass_variances([14]) == pytest.approx([2.007e-4], rel=1e-3)
    assert all(0 <= g < 2e-3 for g in MASS_VARIANCE.values())
    with pytest.raises(InputError, match="43"):
        mass_variances([43])


def test_errors_name_value_limit_and_remedy(nacl):
    _, fc = nacl
    with pytest.raises(CapacityError, match=r"\(300, 300, 300\) needs about .* GiB .* coarser mesh"):
        thermal_conductivity(fc, (300, 300, 300), memory=8)
    for options, words in (
        ({"method": "lbt"}, "wigner"), ({"populations": "cold"}, "classical"), ({"sigma": -1.0}, "positive width"),
        ({"dtype": "float16"}, "float32"), ({"boundary": 0.0}, "positive length"), ({"temperatures": (0.0,)}, "positive numbers"),
        ({"mesh": (4, 4)}, "three positive"), ({"mesh": (4, 4, 5)}, "breaks the symmetry"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            thermal_conductivity(fc, **{"mesh": (4, 4, 4), **options})
    with pytest.raises(InputError, match="third order"):
        thermal_conductivity(fc.replace(fc3=None, images3=None), (4, 4, 4))
