"""The conductivity from force constants: real DFT data beside phono3py (item 4), isotopes, boundaries, derivatives."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wigner_fixture import load

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import CapacityError, InputError
from jaxmd_thermal.lattice.conductivity import kappa_function, thermal_conductivity
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


@pytest.mark.slow
def test_isotope_linewidths_of_the_benchmark_mesh(shared):
    from jaxmd_thermal.lattice import conductivity, isotopes

    _, fc = fixture(shared, "nacl_mesh9_tetra")
    given = np.load(shared / "data/phonondb103/fixtures/nacl_mesh19_gamma.npz")
    with double_precision():
        p = conductivity.prepare(fc, (19, 19, 19))
        modes = conductivity._modes(jnp.asarray(fc.fc2), p)
        gamma = isotopes.solved_isotope_linewidths(
            modes, jnp.asarray(p.variances), jnp.asarray(p.grid.irreducible), jnp.asarray(p.work.plus), p.work.corners
        )
    assert np.array_equal(p.grid.weights, given["weights"])
    expected = given["gamma_isotope"]
    # Another gauge inside degenerate blocks moves tetrahedron weights (measured: 0.6 % of the sum); the formula itself is
    # pinned by the Gaussian conductivities with isotopes above, to 1e-4.
    assert np.asarray(gamma).sum() == pytest.approx(expected.sum(), rel=1e-2)


def test_boundaries_and_temperatures(nacl):
    _, fc = nacl
    free, bound = (thermal_conductivity(fc, (3, 3, 3), (300, 5000.0), sigma=0.5, boundary=b) for b in (None, 100.0))
    assert np.allclose(bound.gamma - free.gamma, bound.group_speed / (4 * np.pi * 100.0))
    assert bound.kappa[0, 0, 0] < free.kappa[0, 0, 0] and free.kappa[1, 0, 0] < free.kappa[0, 0, 0]
    # The classical occupation stands for n + 1/2, so both statistics agree to second order in hf/kT.
    classical = thermal_conductivity(fc, (3, 3, 3), (300, 5000.0), sigma=0.5, populations="classical")
    assert np.allclose(classical.kappa[1], free.kappa[1], rtol=1e-3)
    assert not np.allclose(classical.kappa[0], free.kappa[0], rtol=1e-3)


def test_gradient_of_the_public_function(nacl):
    _, fc = nacl
    function = kappa_function(fc, (3, 3, 3), sigma=0.5, boundary=1e4)
    with double_precision():
        fc2, fc3 = jnp.asarray(fc.fc2), jnp.asarray(fc.fc3)
        scale = jnp.asarray([1.0, 0.7])  # a change that keeps the symmetry: fc2 and fc3 scaled

        def along(x):
            return function(fc2 * (1 + x * scale[0]), fc3 * (1 + x * scale[1]))[0, 0, 0]

        value, slope = jax.jit(jax.value_and_grad(along))(0.0)
        f = jax.jit(along)
        numeric = [(f(h) - f(-h)) / (2 * h) for h in (2e-3, 1e-3)]
    assert float(slope) == pytest.approx(float(4 * numeric[1] - numeric[0]) / 3, rel=1e-6)
    direct = thermal_conductivity(fc, (3, 3, 3), sigma=0.5, boundary=1e4, block_average=True)
    assert float(value) == pytest.approx(direct.kappa[0, 0, 0], rel=1e-9)


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
        ({"boundary": 0.0}, "positive length"), ({"temperatures": (0.0,)}, "positive numbers"),
        ({"mesh": (4, 4)}, "three positive"), ({"mesh": (4, 4, 5)}, "breaks the symmetry"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            thermal_conductivity(fc, **{"mesh": (4, 4, 4), **options})
    with pytest.raises(InputError, match="third order"):
        thermal_conductivity(fc.replace(fc3=None, images3=None), (4, 4, 4))
