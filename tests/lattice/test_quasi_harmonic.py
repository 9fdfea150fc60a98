"""Quasi-harmonic approximation: exact equations of state, phonopy's, and the Grüneisen limit."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice.quasi_harmonic import fit_vinet, quasi_harmonic, vinet
from jaxmd_thermal.lattice.thermodynamics import Thermodynamics, free_energy
from jaxmd_thermal.units import BOLTZMANN, GPA, KJ_PER_MOL, THZ_ENERGY

VOLUMES = 40.0 * np.linspace(0.95, 1.05, 11)
TEMPERATURES = np.arange(0.0, 501.0, 20.0)


def einstein(volume, gamma=1.5, frequency=6.0, imaginary=""):
    """Six modes of one frequency that goes as V^-gamma."""
    f = frequency * (volume / 40.0) ** -gamma
    values = np.array([float(free_energy(np.float64(f), t)) for t in TEMPERATURES]) * 6 * KJ_PER_MOL
    zero = np.zeros_like(TEMPERATURES)
    return Thermodynamics(TEMPERATURES, values, zero, zero, 0.0, 0.0, imaginary)


@pytest.fixture(scope="module", autouse=True)
def precise():
    from jaxmd_thermal._backend import double_precision

    with double_precision():
        yield


def test_vinet_is_recovered():
    exact = np.array([-7.5, 25 * GPA, 5.1, 39.7])
    np.testing.assert_allclose(fit_vinet(VOLUMES, vinet(VOLUMES, *exact)), exact, rtol=1e-7)
    # Curvature at the minimum: B = V E''.
    h = 1e-2
    second = (vinet(39.7 + h, *exact) - 2 * vinet(39.7, *exact) + vinet(39.7 - h, *exact)) / h**2
    assert 39.7 * second == pytest.approx(25 * GPA, rel=1e-5)


def test_equals_phonopy_and_the_grueneisen_limit():
    from phonopy import PhonopyQHA

    energies = vinet(VOLUMES, -7.5, 60 * GPA, 4.5, 40.0)
    thermal = [einstein(v) for v in VOLUMES]
    found = quasi_harmonic(VOLUMES, energies, thermal)
    theirs = PhonopyQHA(
        volumes=VOLUMES, electronic_energies=energies, temperatures=TEMPERATURES,
        free_energy=np.array([t.free_energy for t in thermal]).T, cv=np.ones((len(TEMPERATURES), 11)),
        entropy=np.ones((len(TEMPERATURES), 11)), eos="vinet", t_max=400,
    )  # fmt: skip
    n = len(theirs.volume_temperature)
    np.testing.assert_allclose(found.volume[:n], theirs.volume_temperature, rtol=1e-6)
    np.testing.assert_allclose(found.bulk_modulus[:n], theirs.bulk_modulus_temperature, rtol=1e-4)
    k = 15  # 300 K: alpha_V = gamma C_V/(B_T V) exactly, as gamma does not depend on V
    f = 6.0 * (found.volume[k] / 40.0) ** -1.5
    x = THZ_ENERGY * f / (BOLTZMANN * 300.0)
    capacity = 6 * BOLTZMANN * x**2 * np.exp(x) / np.expm1(x) ** 2
    expected = 1.5 * capacity / (found.bulk_modulus[k] * GPA * found.volume[k])
    assert found.expansion[k] == pytest.approx(expected, rel=2e-2)


def test_errors():
    energies = vinet(VOLUMES, -7.5, 60 * GPA, 4.5, 40.0)
    with pytest.raises(InputError, match="one for each"):
        quasi_harmonic(VOLUMES, energies, [einstein(40.0)])
    with pytest.raises(InputError, match="imaginary modes"):
        quasi_harmonic(VOLUMES, energies, [einstein(v, imaginary="1 of 6") for v in VOLUMES])
    with pytest.raises(InputError, match="at least 5"):
        fit_vinet(VOLUMES[:4], energies[:4])
    with pytest.raises(InputError, match="outside of the volumes"):
        fit_vinet(VOLUMES[6:], energies[6:])
    with pytest.raises(InputError, match="opens downwards"):
        fit_vinet(VOLUMES, -energies)
