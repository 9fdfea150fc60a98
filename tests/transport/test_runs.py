"""Green-Kubo and HNEMD from a structure: exact laws, options, and the failures that a user must hear about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal import evaluate, green_kubo, hnemd
from jaxmd_thermal.errors import InputError, UnstableError, UnsupportedError
from jaxmd_thermal.observables.base import Observe
from jaxmd_thermal.observables.correlator import MultipleTauCorrelator
from jaxmd_thermal.potentials import LennardJones, Potential
from jaxmd_thermal.system import System
from jaxmd_thermal.transport.hnemd import hnemd_from_flux
from jaxmd_thermal.units import hnemd_prefactor

POTENTIAL = LennardJones(0.01042, 3.405, 6.0, "switch", 5.0)
SHORT = {"timestep": 4.0, "steps": 600, "equilibration_steps": 90, "sample_every": 3, "seed": 2, "skin": 0.5}


@pytest.fixture(scope="module")
def argon():
    return bulk("Ar", "fcc", a=5.3737, cubic=True) * (3, 3, 3)


@pytest.fixture(scope="module")
def reference(argon):
    return green_kubo(POTENTIAL, argon, 50.0, replicas=2, reduced_flux=True, **SHORT)


@pytest.mark.slow
def test_corresponding_states_hold_exactly(argon, reference):
    """kappa = (k_B/sigma^2) sqrt(epsilon/m) kappa*(T*, rho*): another epsilon, sigma and mass at the same reduced state.

    The trajectories are the same in reduced units, random numbers included; 2.8 ps are too short for rounding (1e-16) to
    grow, and 1e-6 leaves room for the analysis.
    """
    e, s, m = 1.7, 1.1, 0.6
    potential = LennardJones(0.01042 * e, 3.405 * s, 6.0 * s, "switch", 5.0 * s)
    atoms = argon.copy()
    atoms.set_cell(argon.cell * s, scale_atoms=True)
    atoms.set_masses(atoms.get_masses() * m)
    time = s * np.sqrt(m / e)
    options = {**SHORT, "timestep": 4.0 * time, "skin": 0.5 * s}
    scaled = green_kubo(potential, atoms, 50.0 * e, replicas=2, frequency_cutoff=4.0 / time, **options)
    plain = green_kubo(POTENTIAL, argon, 50.0, replicas=2, frequency_cutoff=4.0, **SHORT)
    assert scaled.mean_temperature == pytest.approx(plain.mean_temperature * e, rel=1e-9)
    assert scaled.isotropic == pytest.approx(plain.isotropic * np.sqrt(e / m) / s**2, rel=1e-6)
    assert np.allclose(scaled.kappa, plain.kappa * np.sqrt(e / m) / s**2, rtol=1e-6, atol=1e-9)


def test_result_is_complete(argon, reference, tmp_path):
    assert reference.kappa.shape == (3, 3) and reference.stderr.shape == (3, 3)
    assert np.allclose(reference.kappa, reference.kappa.T)
    assert reference.isotropic == pytest.approx(np.trace(reference.kappa) / 3)
    assert reference.isotropic_stderr > 0 and reference.n_atoms == 108
    assert reference.volume == pytest.approx(argon.get_volume())
    assert np.isfinite(reference.details["reduced_flux"]["isotropic"])
    folder = tmp_path / "run"
    stored = green_kubo(POTENTIAL, argon, 50.0, replicas=2, out=folder, **SHORT)
    again = green_kubo(POTENTIAL, argon, 50.0, replicas=2, out=folder, **SHORT)
    assert stored.isotropic == again.isotropic
    assert (folder / "results.json").exists() and (folder / "run.h5").exists()


@pytest.mark.slow
def test_the_correlator_in_the_scan_agrees_with_the_stored_flux(argon, tmp_path):
    import h5py

    observer = Observe(MultipleTauCorrelator(levels=4))
    result = green_kubo(POTENTIAL, argon, 50.0, observers=(observer,), out=tmp_path, **SHORT)
    found = result.details["observers"][0][0]
    with h5py.File(tmp_path / "run.h5") as h5:
        flux = h5["flux/potential"][()] + h5["flux/convective"][()]
    flux = flux[:, 0]
    # The first level correlates the samples themselves: plain sums are the oracle.
    for lag in range(16):
        expected = flux[: len(flux) - lag].T @ flux[lag:] / (len(flux) - lag)
        assert np.allclose(found["correlation"][lag], expected, rtol=1e-9, atol=1e-12 * np.abs(flux**2).max())


def test_reduced_flux_differs_by_a_bounded_derivative(argon):
    """Over a window the time integrals of the full and the reduced flux differ by sum_i W_i . (u_i(t) - u_i(0)) only."""
    from jaxmd_thermal.transport.green_kubo_run import site_virials

    system = System.from_atoms(argon)
    w = site_virials(POTENTIAL, system)
    v = np.random.default_rng(0).normal(size=(108, 3)) * 1e-3
    flux = evaluate(POTENTIAL, system, "heat_flux_potential", velocities=v)["heat_flux_potential"]
    # On the sites themselves the flux is W . v exactly: that is what W is.
    assert np.allclose(np.einsum("xna,na->x", w, v), flux, rtol=0, atol=1e-12 * np.abs(flux).max() + 1e-18)


@pytest.mark.slow
def test_driven_run_measures_the_drive(argon):
    """A strong field and few steps: the flux follows the field, and the spectrum integrates to the potential part."""
    result = hnemd(
        POTENTIAL, argon, 50.0, driving_force=[[0.02, 0, 0], [0, 0.02, 0], [0, 0, 0.02]], spectral_lags=20, **SHORT
    )
    assert np.all(np.isfinite(result.kappa))
    assert result.isotropic == pytest.approx(np.trace(result.kappa) / 3, rel=1e-9)
    assert result.isotropic > 0
    potential_part = result.details["spectral"]["integral"]
    # K(0) is the potential flux itself; the convective part is what is left (few percent in a crystal).
    assert potential_part == pytest.approx(result.isotropic, rel=0.15)
    one = hnemd(POTENTIAL, argon, 50.0, driving_force=[0.02, 0, 0], **SHORT)
    assert np.all(np.isfinite(one.kappa[:, 0])) and np.all(np.isnan(one.kappa[:, 1:]))


def test_hnemd_analysis_recovers_a_known_tensor():
    rng = np.random.default_rng(1)
    kappa = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 3.0]])
    fields = np.array([[1e-3, 0, 0], [0, 2e-3, 0], [0, 0, -1e-3], [1e-3, 1e-3, 0]])
    mean = fields @ kappa.T / hnemd_prefactor(1000.0, 300.0)
    noise = 1e-3 * np.abs(mean).max() * rng.normal(size=(4, 5, 400, 3))
    found = hnemd_from_flux(mean[:, None, None] + noise, fields, 1000.0, 300.0)
    assert np.all(np.abs(found["kappa"] - kappa) < 5 * found["stderr"])
    assert np.all(found["stderr"] < 0.01)


def test_hnemd_notices_a_field_beyond_the_linear_regime():
    rng = np.random.default_rng(2)
    fields = np.array([[1e-3, 0, 0], [4e-3, 0, 0]])
    kappa = np.array([1.0, 1.5])  # the stronger force conducts better: not linear
    mean = np.zeros((2, 3))
    mean[:, 0] = kappa * fields[:, 0] / hnemd_prefactor(1000.0, 300.0)
    noise = 1e-2 * np.abs(mean).max() * rng.normal(size=(2, 3, 500, 3))
    found = hnemd_from_flux(mean[:, None, None] + noise, fields, 1000.0, 300.0)
    assert not found["converged"] and "linear regime" in found["text"]
    assert found["isotropic_stderr"] > 0.1, "the error covers the disagreement"


def test_a_field_that_heats_stops_the_run(argon):
    with pytest.raises(UnstableError, match="lower the driving force"):
        hnemd(POTENTIAL, argon, 50.0, driving_force=[2.0, 0, 0], **SHORT)


@pytest.mark.slow
def test_a_melted_crystal_is_in_the_verdict(argon):
    options = {**SHORT, "equilibration_steps": 900}
    result = green_kubo(POTENTIAL, argon, 400.0, **options)
    assert not result.verdict.converged
    assert "melted" in result.verdict.text and "Å (rms)" in result.verdict.text


@pytest.mark.slow
def test_a_drifting_energy_is_in_the_verdict(argon):
    """A time step far too long for argon, but not long enough to explode."""
    abrupt = replace(POTENTIAL, truncation="cut", switch_start=None, cutoff=5.0)
    result = green_kubo(abrupt, argon, 60.0, **{**SHORT, "timestep": 20.0})
    assert "conserved energy drifted" in result.verdict.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"temperature": -10.0}, "temperature is -10 K"),
        ({"temperature": 0.0}, "temperature is 0 K"),
        ({"steps": 0}, "steps is 0"),
        ({"equilibration_steps": -1}, "equilibration_steps is -1"),
        ({"thickness": 3.0}, "periodic in two directions"),
        ({"thickness": 3.0, "volume": 9.0}, "state one of them"),
    ],
)
def test_bad_arguments_are_named(argon, change, message):
    with pytest.raises(InputError, match=message):
        green_kubo(POTENTIAL, argon, **{"temperature": 50.0, **SHORT, **change})


@pytest.mark.slow
def test_a_slab_needs_a_thickness(argon):
    slab = argon.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(InputError, match="state `volume`"):
        green_kubo(POTENTIAL, slab, 50.0, **SHORT)
    result = green_kubo(POTENTIAL, slab, 20.0, thickness=16.0, **SHORT)
    assert result.volume == pytest.approx(16.0 * argon.cell[0, 0] * argon.cell[1, 1])


@pytest.mark.parametrize("field", [[0, 0, 0], [1.0, 2.0], "x", [np.nan, 0, 0]])
def test_bad_fields_are_named(argon, field):
    with pytest.raises((InputError, ValueError), match=r"driving_force|convert"):
        hnemd(POTENTIAL, argon, 50.0, driving_force=field, **SHORT)


def test_long_range_terms_are_refused(argon):
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Ewald(Potential):
        cutoff = 5.0
        long_range = True

        def atomic_energies(self, graph):
            raise AssertionError("must not be evaluated")

    for function, extra in ((green_kubo, {}), (hnemd, {"driving_force": [1e-3, 0, 0]})):
        with pytest.raises(UnsupportedError, match="Ewald has long-range"):
            function(Ewald(), argon, 50.0, **extra, **SHORT)
