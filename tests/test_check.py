"""check_heat_flux passes what is right and names what is wrong."""

import numpy as np
import pytest

from jaxmd_thermal import check, potentials
from jaxmd_thermal.check import check_heat_flux
from jaxmd_thermal.errors import CapacityError, InputError, UnsupportedError
from tests.oracles import Messages, Opaque, structure

SYSTEM = structure()
LJ = potentials.LennardJones(0.02, 2.0, 4.0, "switch", switch_start=3.0)


@pytest.mark.parametrize(
    "potential",
    [Opaque.of(LJ), pytest.param(Messages(np.asarray(0.3), 3.6) + LJ, marks=pytest.mark.slow)],
    ids=["duck-typed", "messages+lj"],
)
def test_passes(potential):
    report = check_heat_flux(potential, SYSTEM)
    assert report.passed, report.text
    assert report.error_unfolded < 1e-11 and report.error_cluster < 1e-6 and report.error_energies < 1e-12
    assert "passed" in str(report) and report.n_unfolded > 2 * SYSTEM.n_atoms


@pytest.mark.slow
def test_truncation_without_switch_passes():
    """The energy jumps where an edge crosses the cutoff; the step of the differences is short enough."""
    assert check_heat_flux(potentials.LennardJones(0.02, 2.0, 4.0), SYSTEM).passed


def test_finds_a_model_that_goes_around_the_door():
    report = check_heat_flux(Messages(np.asarray(0.3), 3.6, cheat=True), SYSTEM)
    assert not report.passed
    assert report.error_unfolded > 1e-3 and report.error_cluster > 1e-3 and report.error_energies < 1e-12
    assert "graph.gather" in report.text and "unfolding" in report.text and "cluster" in report.text


@pytest.mark.slow
def test_finds_a_range_that_is_promised_too_short():
    report = check_heat_flux(Messages(np.asarray(0.3), 3.6, 3, 1), SYSTEM)
    assert not report.passed
    assert report.error_energies > 1e-6 and report.error_cluster < 1e-6
    assert "too few interaction_steps" in report.text and "open cluster failed" not in report.text


def test_works_for_slabs_and_given_velocities():
    slab = structure(pbc=(True, False, True))
    assert check_heat_flux(LJ, slab, velocities=0.01 * np.eye(4, 3)).passed


def test_refusals(monkeypatch):
    class LongRange(Messages):
        long_range = True

    with pytest.raises(UnsupportedError, match="LongRange"):
        check_heat_flux(LongRange(np.asarray(0.3), 3.6), SYSTEM)
    with pytest.raises(InputError, match="shape"):
        check_heat_flux(LJ, SYSTEM, velocities=np.zeros((3, 3)))
    monkeypatch.setattr(check, "MAX_UNFOLDED", 10)
    with pytest.raises(CapacityError, match="smaller structure"):
        check_heat_flux(LJ, SYSTEM)
