"""The public estimate from a flux series: unit prefactor, tensor, verdicts, files, messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.signal import lfilter

from jaxmd_thermal import green_kubo_from_flux
from jaxmd_thermal.errors import InputError, OutputError
from jaxmd_thermal.transport.results import ConductivityResult, Verdict, results_document
from jaxmd_thermal.units import green_kubo_prefactor, hnemd_prefactor

VOLUME, TEMPERATURE = 9000.0, 80.0


def flux_of(frames=20000, tau=20.0, replicas=3, seed=0, scale=(1.0, 1.0, 1.0)):
    phi = np.exp(-1.0 / tau)
    rng = np.random.default_rng(seed)
    start = phi * rng.standard_normal((replicas, 1, 3))
    white = np.sqrt(1 - phi**2) * rng.standard_normal((replicas, frames, 3))
    return lfilter([1.0], [1.0, -phi], white, axis=1, zi=start)[0] * np.sqrt(scale)


@pytest.fixture(scope="module")
def result():
    settings = {"steps": np.int64(5)}
    return green_kubo_from_flux(flux_of(), 4.0, VOLUME, TEMPERATURE, n_atoms=256, seed=7, settings=settings)


def test_prefactors_against_si():
    """One eV Å/fs in SI: e * 1e-10 / 1e-15 W m; exact constants, so rounding only."""
    e, k = 1.602176634e-19, 1.380649e-23
    flux, volume, temperature, time = e * 1e-10 / 1e-15, VOLUME * 1e-30, TEMPERATURE, 1e-15
    si = flux**2 * time / (k * temperature**2 * volume)
    assert green_kubo_prefactor(VOLUME, TEMPERATURE) == pytest.approx(si, rel=1e-14)
    assert hnemd_prefactor(VOLUME, TEMPERATURE) == pytest.approx(flux / (volume * temperature * 1e10), rel=1e-14)


def test_known_answer(result):
    """An exponential of 80 fs: prefactor * 80 fs, within 3.5 of the stated errors, all estimators."""
    exact = green_kubo_prefactor(VOLUME, TEMPERATURE) * 0.5 * 4.0 * (1 + np.exp(-0.05)) / (1 - np.exp(-0.05))
    assert abs(result.isotropic - exact) < 3.5 * result.isotropic_stderr < 0.3 * exact
    for name, estimate in result.details["estimators"].items():
        if name != "cepstral_aic":
            assert abs(estimate["value"] - exact) < 3.5 * estimate["stderr"], name
    assert np.all(np.abs(result.kappa - exact * np.eye(3)) < 4 * result.stderr)
    assert np.trace(result.kappa) / 3 == pytest.approx(result.isotropic, rel=1e-12)
    np.testing.assert_array_equal(result.kappa, result.kappa.T)
    assert result.verdict == Verdict(True, result.verdict.text)
    assert result.details["correlation_time_fs"] == pytest.approx(80.0, rel=0.25)


def test_temperature_and_volume_scale_as_the_formula(result):
    other = green_kubo_from_flux(flux_of(), 4.0, 2 * VOLUME, TEMPERATURE, mean_temperature=2 * TEMPERATURE)
    assert other.isotropic == pytest.approx(result.isotropic / 8, rel=1e-12)
    assert (other.temperature, other.mean_temperature) == (TEMPERATURE, 2 * TEMPERATURE)


@pytest.mark.parametrize("estimator", ["filtered", "direct"])
def test_headline_estimator(estimator, result):
    other = green_kubo_from_flux(flux_of(), 4.0, VOLUME, TEMPERATURE, estimator=estimator)
    assert other.isotropic == result.details["estimators"][estimator]["value"]
    assert np.trace(other.kappa) / 3 == pytest.approx(other.isotropic, rel=1e-12)


def test_anisotropic_tensor():
    """20 : 1 : 1, within 4 stated errors in each direction."""
    x = flux_of(replicas=4, scale=(20.0, 1.0, 1.0))
    r = green_kubo_from_flux(x, 4.0, VOLUME, TEMPERATURE)
    one = green_kubo_prefactor(VOLUME, TEMPERATURE) * 80.0
    assert np.all(np.abs(np.diag(r.kappa) - np.array([20.0, 1.0, 1.0]) * one) < 4 * np.diag(r.stderr))
    assert r.details["effective_components"] == pytest.approx(4 * 22**2 / 402, rel=0.1)


def test_a_slab_conducts_in_its_plane_only():
    """Across a slab the flux is the derivative of a bounded signal. In the plane 3 : 1, within 4 stated errors; the mean is
    that of two directions, whichever way the plane lies (rounding: the pooled spectrum has no axes).
    """
    x = flux_of(replicas=4, scale=(3.0, 1.0, 1.0))
    x[:, :, 2] = np.gradient(x[:, :, 2], axis=1)
    r = green_kubo_from_flux(x, 4.0, VOLUME, TEMPERATURE, directions=[[30.0, 0, 0], [10.0, 25.0, 0]])
    one = green_kubo_prefactor(VOLUME, TEMPERATURE) * 80.0
    plane = np.ix_([0, 1], [0, 1])
    assert np.all(np.abs(r.kappa[plane] - np.diag([3.0, 1.0]) * one) < 4 * r.stderr[plane])
    assert r.isotropic == pytest.approx(np.trace(r.kappa[plane]) / 2, rel=1e-12)
    assert np.isnan(r.kappa).sum() == np.isnan(r.stderr).sum() == 5 and "mean over x and y" in r.verdict.text
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    turned = green_kubo_from_flux(x @ turn, 4.0, VOLUME, TEMPERATURE, directions=turn[:2])
    assert turned.isotropic == pytest.approx(r.isotropic, rel=1e-9)
    assert turned.isotropic_stderr == pytest.approx(r.isotropic_stderr, rel=1e-9)
    wire = green_kubo_from_flux(x @ turn, 4.0, VOLUME, TEMPERATURE, directions=turn[:1])
    assert abs(wire.isotropic - 3.0 * one) < 4 * wire.isotropic_stderr


def test_short_series_is_not_converged():
    r = green_kubo_from_flux(flux_of(frames=600, replicas=1), 4.0, VOLUME, TEMPERATURE, expected_runtime=1800.0)
    assert not r.verdict.converged
    assert r.verdict.text.startswith("not converged: sigma/kappa = ")
    assert "x longer needed, about " in r.verdict.text and r.verdict.text.split(";")[1].endswith(" here")
    tiny = green_kubo_from_flux(flux_of(frames=240, tau=100.0), 4.0, VOLUME, TEMPERATURE, target_error=10.0)
    assert not tiny.verdict.converged


def test_disagreement_is_raised_and_covered():
    """A sharp zero-frequency peak (tau = 2000 frames) under strong white noise: the plain AIC at 1 THz misses it.

    Whatever the estimators then say, the stated error spans their differences and the verdict names them.
    """
    slow = flux_of(frames=60000, tau=2000.0, replicas=2, seed=3)
    x = 0.1 * slow + flux_of(frames=60000, tau=1.0, replicas=2, seed=4)
    r = green_kubo_from_flux(x, 20.0, VOLUME, TEMPERATURE, frequency_cutoff=12.5)
    assert not r.verdict.converged and "estimate differs" in r.verdict.text
    for name in ("filtered", "direct"):
        e = r.details["estimators"][name]
        assert abs(e["value"] - r.isotropic) <= np.hypot(r.isotropic_stderr, e["stderr"])
    assert r.isotropic_stderr > r.details["statistical_stderr"]


def test_scattering_replicas_widen_the_error():
    """Replicas of different strength have a spread that one pooled spectrum does not show."""
    x = flux_of(replicas=5) * np.array([0.2, 0.5, 1.0, 2.0, 4.0])[:, None, None]
    r = green_kubo_from_flux(x, 4.0, VOLUME, TEMPERATURE)
    assert r.isotropic_stderr >= r.details["spread"]["replica_stderr"] > 0
    assert not r.verdict.converged


def test_document_and_file(result, tmp_path):
    path = result.save(tmp_path / "new")
    document = json.loads(path.read_text())
    assert path.name == "results.json" and not list(path.parent.glob("*.partial"))
    assert set(document) == {"results", "n_atoms", "volume_A3", "settings", "versions", "seed"}
    (entry,) = document["results"]
    assert set(entry) == {"method", "temperature_K", "thermal_conductivity_W_mK", "verdict", "details"}
    kappa = entry["thermal_conductivity_W_mK"]
    assert set(kappa) == {"tensor", "tensor_stderr", "isotropic", "stderr"}
    np.testing.assert_array_equal(kappa["tensor"], result.kappa)
    assert (kappa["isotropic"], kappa["stderr"]) == (result.isotropic, result.isotropic_stderr)
    assert entry["verdict"] == {"converged": True, "text": result.verdict.text}
    assert (document["n_atoms"], document["volume_A3"], document["seed"]) == (256, VOLUME, 7)
    assert document["settings"] == {"steps": 5} and "traces" not in entry["details"]


def test_what_is_invalid_becomes_null():
    kappa = np.full((3, 3), np.nan)
    kappa[:, 0] = [1.0, np.inf, 0.0]
    r = ConductivityResult("hnemd", 80.0, kappa, None, float("nan"), None, Verdict(False, "x"), VOLUME)
    entry = results_document([r, r], None, VOLUME, {}, {}, None)["results"][1]["thermal_conductivity_W_mK"]
    assert entry["tensor"] == [[1.0, None, None], [None, None, None], [0.0, None, None]]
    assert entry["tensor_stderr"] is None and entry["isotropic"] is None and entry["stderr"] is None


def test_unwritable_path(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"could not be written.*Free some space"):
        result.save(tmp_path / "file" / "results.json")


def test_plot_shows_all_estimates(result):
    figure = result.plot()
    labels = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert len(figure.axes) == 2
    assert any("cepstral" in t for t in labels) and any("filtered" in t for t in labels)
    bare = ConductivityResult("hnemd", 80.0, np.eye(3), None, 1.0, None, Verdict(False, "x"), VOLUME)
    assert len(bare.plot().axes) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.zeros((2, 3, 100))}, r"shape \(2, 3, 100\), expected \(replicas, frames, 3\)"),
        ({"flux": np.zeros((2, 20, 3))}, r"20 frames; at least 64"),
        ({"flux": np.ones((2, 200, 3))}, r"component x of the flux is constant"),
        ({"flux": np.ones((2, 200, 3), complex)}, r"complex128, expected real"),
        ({"temperature": -5.0}, r"temperature is -5.0; it must be a finite number above 0 K"),
        ({"temperature": np.nan}, r"temperature is nan"),
        ({"volume": 0.0}, r"volume is 0.0; .* above 0 Å\^3"),
        ({"timestep": -1.0}, r"timestep is -1.0; .* above 0 fs"),
        ({"frequency_cutoff": 0.0}, r"frequency_cutoff is 0.0"),
        ({"frequency_cutoff": 0.001}, r"leave \d+ samples; at least 8"),
        ({"estimator": "cepstrum"}, r"'cepstrum' is not one of .* did you mean 'cepstral'"),
    ],
)
def test_bad_input(change, message):
    arguments = {"flux": flux_of(frames=200), "timestep": 4.0, "volume": VOLUME, "temperature": TEMPERATURE} | change
    with pytest.raises(InputError, match=message):
        green_kubo_from_flux(**arguments)


def test_a_frame_that_is_not_finite_is_named():
    x = flux_of(frames=200)
    x[1, 17, 2] = np.inf
    with pytest.raises(InputError, match=r"inf in frame 17, replica 1, component z"):
        green_kubo_from_flux(x, 4.0, VOLUME, TEMPERATURE)
