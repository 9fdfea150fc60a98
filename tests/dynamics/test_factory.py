"""Initial velocities, kinetic quantities and the choice of an ensemble by name, with the messages for bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.dynamics.base import degrees_of_freedom, maxwell_boltzmann_velocities, remove_drift, temperature
from jaxmd_thermal.dynamics.factory import ENSEMBLES, ensemble_from_name
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.units import GPA

T = 300.0


@pytest.fixture(autouse=True)
def _double():
    with double_precision():
        yield


def test_initial_velocities():
    masses = jnp.asarray(np.linspace(1.0, 200.0, 50))
    v = maxwell_boltzmann_velocities(jax.random.key(0), masses, 77.0, exact=True)
    np.testing.assert_allclose(temperature(v, masses), 77.0, rtol=1e-13)
    p = masses[:, None] * v
    assert jnp.abs(p.sum(0)).max() < 1e-13 * jnp.abs(p).sum()
    free = maxwell_boltzmann_velocities(jax.random.key(0), masses, 77.0, zero_momentum=False, exact=True)
    np.testing.assert_allclose(temperature(free, masses, zero_momentum=False), 77.0, rtol=1e-13)
    np.testing.assert_allclose(remove_drift(v + 0.3, masses), v, atol=1e-14)
    assert not np.any(maxwell_boltzmann_velocities(jax.random.key(0), masses, 0.0, exact=True))
    with pytest.raises(InputError, match=r"temperature is -1 K.*at least 0"):
        maxwell_boltzmann_velocities(jax.random.key(0), masses, -1.0)
    with pytest.raises(InputError, match="zero_momentum=False"):
        degrees_of_freedom(1)


def test_every_name_of_the_factory():
    for name in ENSEMBLES:
        pressure = 1.0 * GPA if name.startswith("npt") else None
        ensemble = ensemble_from_name(name, temperature=T, pressure=pressure, timestep=2.0, pbc=(True, True, True))
        assert ensemble.name == name
        assert ensemble.needs_stress == name.startswith("npt")
    assert ensemble_from_name("NOSE_HOOVER", temperature=T).name == "nose-hoover"
    assert ensemble_from_name("csvr", temperature=T, timestep=4.0).damping == 400.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("langevine", {"temperature": T}, "unknown ensemble 'langevine', did you mean 'langevin'?"),
        ("csvr", {"temperature": -5.0}, "temperature is -5 K.*above 0 K.*'nve'"),
        ("csvr", {"temperature": float("nan")}, "temperature is nan K"),
        ("nve", {"temperature": -5.0}, "temperature is -5 K"),
        ("nose-hoover", {}, "needs a temperature"),
        ("langevin", {"temperature": T, "pressure": 1.0}, "keeps the cell"),
        ("langevin", {"temperature": T, "damping": 0.0}, "damping is 0 fs"),
        ("npt", {"temperature": T, "pressure": float("inf")}, "pressure is inf"),
        ("npt", {"temperature": T, "stride": 0}, "stride is 0 steps"),
        ("npt-flexible", {"temperature": T, "pbc": (True, True, False)}, r"pbc = \(True, True, False\).*fixed cell"),
        ("csvr", {"temperature": T, "timestep": -1.0}, "timestep is -1 fs"),
    ],
)
def test_bad_input_is_refused_with_value_limit_and_remedy(name, options, message):
    with pytest.raises(InputError, match=message):
        ensemble_from_name(name, **options)
