"""Green-Kubo and HNEMD from a structure: exact laws, options, and the failures that a user must hear about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from ase.build import bulk
from scipy.signal import lfilter

from jaxmd_thermal import evaluate, green_kubo, hnemd
from jaxmd_thermal.errors import InputError, UnstableError, UnsupportedError
from jaxmd_thermal.observables.base import Observe
from jaxmd_thermal.observables.correlator import MultipleTauCorrelator
from jaxmd_thermal.potentials import LennardJones, Potential
from jaxmd_thermal.system import System
from jaxmd_thermal.transport.hnemd import hnemd_from_flux
from jaxmd_thermal.transport.results import ConductivityResult, Verdict
from jaxmd_thermal.units import hnemd_prefactor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Untouched(Potential):
    """What is refused must be refused before the first evaluation."""

    cutoff = 5.0

    def atomic_energies(self, graph):
        raise AssertionError("must not be evaluated")


UNTOUCHED = Untouched()
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
def test_driven_run_measures_the_drive(argon, tmp_path):
    """A strong field and few steps: the flux follows the field, and the spectrum integrates to the potential part.

    K(0) is the mean of the potential flux over the samples after the onset, as stored: sums in another order, 1e-9.
    """
    import h5py

    result = hnemd(
        POTENTIAL, argon, 50.0, driving_force=[[0.02, 0, 0], [0, 0.02, 0], [0, 0, 0.02]], spectral_lags=20, out=tmp_path,
        **SHORT,
    )  # fmt: skip
    assert np.all(np.isfinite(result.kappa))
    assert result.isotropic == pytest.approx(np.trace(result.kappa) / 3, rel=1e-9)
    assert result.isotropic > 0
    start = result.details["spectral"]["discarded_frames"]
    assert 0 < result.details["discarded_frames"] <= start
    with h5py.File(tmp_path / "run.h5") as h5:
        scale = hnemd_prefactor(result.volume, result.mean_temperature) / 0.02
        potential, convective = (
            scale * np.trace(h5[f"flux/{part}"][start:].mean(axis=0)) / 3 for part in ("potential", "convective")
        )
    potential_part = result.details["spectral"]["integral"]
    assert potential_part == pytest.approx(potential, rel=1e-9)
    # The convective part is what is left (few percent in a crystal).
    assert potential_part == pytest.approx(potential + convective, rel=0.15)
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


def driven_flux(kappa, fields, frames, tau, noise=1e-3, replicas=4, seed=3):
    """(fields, replicas, frames, 3): the mean rises as 1 - exp(-t/tau), as of a system whose correlation is exp(-t/tau)."""
    rng = np.random.default_rng(seed)
    rise = 1.0 - np.exp(-np.arange(1, frames + 1) / tau)
    mean = fields[:, None, None] * np.reshape(kappa, (-1, 1, 1, 1)) * rise[:, None] / hnemd_prefactor(1000.0, 300.0)
    phi = np.exp(-1.0 / tau)
    white = np.sqrt(1.0 - phi**2) * rng.normal(size=(len(fields), replicas, frames, 3))
    return mean + noise * np.abs(mean).max() * lfilter([1.0], [1.0, -phi], white, axis=2)


X = np.array([[1e-3, 0.0, 0.0]])


@pytest.mark.parametrize("lengths", [10, 60])
def test_the_onset_of_the_response_is_left_out(lengths):
    """80 ps of tau = 8 ps: a mean of all frames is 10 % low (tau/T); what remains after twice the cutoff is below 1 %."""
    flux = driven_flux(0.4, X, 400 * lengths, 400.0)
    found = hnemd_from_flux(flux, X, 1000.0, 300.0, timestep=20.0)
    start = found["details"]["discarded_frames"]
    assert found["isotropic"] == pytest.approx(0.4, rel=0.01) and 400 < start <= 200 * lengths
    assert found["converged"] == (lengths == 60)
    assert ("correlation times long" in found["text"]) == (lengths == 10)
    running = found["details"]["running_kappa"][0]
    expected = flux[0, :, start:, 0].mean() * hnemd_prefactor(1000.0, 300.0) / 1e-3
    assert found["details"]["running_frames"][0] > start and running[-1] == pytest.approx(expected, rel=1e-3)


def test_a_negative_conductivity_is_not_converged():
    found = hnemd_from_flux(driven_flux(-0.39, X, 20000, 20.0), X, 1000.0, 300.0)
    assert not found["converged"] and "kappa = -0.39 W/(m K) is not positive" in found["text"]


@pytest.mark.parametrize("sigmas, linear", [(2.9, True), (3.1, False)])
def test_forces_disagree_beyond_three_combined_errors(sigmas, linear):
    """Chi-square of two values is the square of their distance in combined errors; p = 0.0027 is 3 of them."""
    fields = np.array([[1e-3, 0, 0], [2e-3, 0, 0]])
    flux = driven_flux([1.0, 1.0], fields, 4000, 5.0, noise=0.5)
    before = hnemd_from_flux(flux, fields, 1000.0, 300.0)["details"]
    gap = sigmas * np.hypot(*before["kappa_along_force_stderr"])
    # A constant changes the mean and no error.
    shift = gap - np.diff(before["kappa_along_force"])[0]
    flux[1, :, :, 0] += shift * 2e-3 / hnemd_prefactor(1000.0, 300.0)
    found = hnemd_from_flux(flux, fields, 1000.0, 300.0)
    assert np.diff(found["details"]["kappa_along_force"])[0] == pytest.approx(gap, rel=1e-9)
    assert found["converged"] == linear == ("linear regime" not in found["text"])


def test_a_driven_slab():
    """A plane of x and y + z: the forces along both give both conductivities; across them nothing is known."""
    b = np.array([0.0, 1.0, 1.0]) / np.sqrt(2.0)
    axes = np.array([[1.0, 0, 0], b])
    kappa = axes.T @ np.diag([2.0, 1.0]) @ axes
    fields = 1e-3 * axes
    mean = fields @ kappa.T / hnemd_prefactor(1000.0, 300.0)
    noise = 1e-2 * np.abs(mean).max() * np.random.default_rng(5).normal(size=(2, 4, 400, 3))
    directions = [[12.0, 0, 0], [3.0, 7.0, 7.0]]
    found = hnemd_from_flux(mean[:, None, None] + noise, fields, 1000.0, 300.0, directions=directions)
    assert abs(found["isotropic"] - 1.5) < 4 * found["isotropic_stderr"] < 0.05
    assert abs(found["kappa"][0, 0] - 2.0) < 4 * found["stderr"][0, 0] and np.isnan(found["kappa"]).sum() == 8
    assert "mean over x and [0.0, 0.707, 0.707]" in found["text"]


def test_the_plot_of_a_driven_run_shows_its_running_means():
    fields = np.array([[1e-3, 0, 0], [2e-3, 0, 0]])
    found = hnemd_from_flux(driven_flux([0.4, 0.4], fields, 400, 2.0), fields, 1000.0, 300.0, timestep=20.0)
    result = ConductivityResult(
        "hnemd", 300.0, found["kappa"], found["stderr"], found["isotropic"], found["isotropic_stderr"],
        Verdict(found["converged"], found["text"]), 1000.0, details=found["details"],
    )  # fmt: skip
    (axis,) = result.plot().axes
    curves = [line for line in axis.lines if len(line.get_xdata()) > 100]
    assert len(curves) == 2 and curves[0].get_xdata()[-1] == pytest.approx(400 * 20e-3)
    for curve, value in zip(curves, found["details"]["kappa_along_force"]):
        assert curve.get_ydata()[-1] == pytest.approx(value, rel=1e-12)
    band = axis.patches[0].get_bbox()
    assert band.ymax - band.ymin == pytest.approx(2 * found["isotropic_stderr"], rel=1e-9)


@pytest.mark.slow
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
        ({"sample_every": 0}, "sample_every is 0"),
        ({"steps": 100, "sample_every": 4}, "25 samples of the flux; at least 64 are needed: run 256 steps"),
        ({"frequency_cutoff": 0.01}, "200 frames in blocks of 4167 leave 0 samples"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(argon, change, message):
    with pytest.raises(InputError, match=message):
        green_kubo(UNTOUCHED, argon, **{"temperature": 50.0, **SHORT, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 50}, "17 samples of the flux; at least 64"),
        ({"spectral_lags": 200}, r"spectral_lags is 200, but the run has 200 samples"),
        ({"driving_force": [0.01, 0, 0.001]}, r"part of 0.001 1/Å across .* drive along x and y only"),
    ],
)
def test_a_driven_run_that_cannot_end_is_refused_before(argon, change, message):
    slab = argon.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(InputError, match=message):
        hnemd(UNTOUCHED, slab, 50.0, **{"driving_force": [0.01, 0, 0], "thickness": 16.0, **SHORT, **change})


def test_a_cluster_has_no_conductivity(argon):
    cluster = argon.copy()
    cluster.pbc = False
    with pytest.raises(InputError, match="no direction along which heat could flow"):
        green_kubo(UNTOUCHED, cluster, 50.0, volume=1e4, **SHORT)


@pytest.mark.slow
def test_a_slab_needs_a_thickness(argon):
    slab = argon.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(InputError, match="state `volume`"):
        green_kubo(POTENTIAL, slab, 50.0, **SHORT)
    result = green_kubo(POTENTIAL, slab, 20.0, thickness=16.0, **SHORT)
    assert result.volume == pytest.approx(16.0 * argon.cell[0, 0] * argon.cell[1, 1])
    assert result.isotropic == pytest.approx((result.kappa[0, 0] + result.kappa[1, 1]) / 2, rel=1e-12)
    assert np.isnan(result.kappa[2]).all() and np.isnan(result.kappa[:, 2]).all()


@pytest.mark.parametrize("field", [[0, 0, 0], [1.0, 2.0], "x", [np.nan, 0, 0]])
def test_bad_fields_are_named(argon, field):
    with pytest.raises((InputError, ValueError), match=r"driving_force|convert"):
        hnemd(POTENTIAL, argon, 50.0, driving_force=field, **SHORT)


def test_long_range_terms_are_refused(argon):
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Ewald(Untouched):
        long_range = True

    for function, extra in ((green_kubo, {}), (hnemd, {"driving_force": [1e-3, 0, 0]})):
        with pytest.raises(UnsupportedError, match="Ewald has long-range"):
            function(Ewald(), argon, 50.0, **extra, **SHORT)
