"""Quasi-harmonic approximation: exact equations of state, phonopy's, and the Grüneisen limit."""

from __future__ import annotations

import numpy as np
import pytest
import springs
from ase.build import bulk

from jaxmd_thermal.derivatives import evaluate
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.ase import atoms_from
from jaxmd_thermal.io.relax import relaxed_positions
from jaxmd_thermal.lattice.grueneisen import grueneisen, grueneisen_from_volumes, scaled
from jaxmd_thermal.lattice.quasi_harmonic import fit_vinet, quasi_harmonic, quasi_harmonic_from_volumes, vinet
from jaxmd_thermal.lattice.thermodynamics import Thermodynamics, entropy, free_energy
from jaxmd_thermal.potentials import LennardJones
from jaxmd_thermal.units import BOLTZMANN, GPA, KJ_PER_MOL, THZ_ENERGY

VOLUMES = 40.0 * np.linspace(0.95, 1.05, 11)
TEMPERATURES = np.arange(0.0, 501.0, 20.0)


def einstein(volume, gamma=1.5, frequency=6.0, imaginary=""):
    """Six modes of one frequency that goes as V^-gamma."""
    f = frequency * (volume / 40.0) ** -gamma
    values, disorder = (
        np.array([float(g(np.float64(f), t)) for t in TEMPERATURES]) * 6 * KJ_PER_MOL for g in (free_energy, entropy)
    )
    return Thermodynamics(TEMPERATURES, values, 1e3 * disorder, np.zeros_like(values), 0.0, 0.0, imaginary)


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
    found = quasi_harmonic_from_volumes(VOLUMES, energies, thermal)
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
    assert found.expansion[k] == pytest.approx(expected, rel=1e-4)
    # The same by differences of the volumes, to second order of 20 K.
    np.testing.assert_allclose(
        found.expansion[8:-1], np.gradient(found.volume, TEMPERATURES)[8:-1] / found.volume[8:-1], rtol=1e-2
    )


def test_errors():
    energies = vinet(VOLUMES, -7.5, 60 * GPA, 4.5, 40.0)
    with pytest.raises(InputError, match="one for each"):
        quasi_harmonic_from_volumes(VOLUMES, energies, [einstein(40.0)])
    with pytest.raises(InputError, match="imaginary modes"):
        quasi_harmonic_from_volumes(VOLUMES, energies, [einstein(v, imaginary="1 of 6") for v in VOLUMES])
    with pytest.raises(InputError, match="at least 5"):
        fit_vinet(VOLUMES[:4], energies[:4])
    with pytest.raises(InputError, match="outside of the volumes"):
        fit_vinet(VOLUMES[6:], energies[6:])
    with pytest.raises(InputError, match=r"at 0 K: .*outside of the volumes .*add volumes on that side"):
        quasi_harmonic_from_volumes(VOLUMES[6:], energies[6:], [einstein(v) for v in VOLUMES[6:]])
    with pytest.raises(InputError, match="opens downwards"):
        fit_vinet(VOLUMES, -energies)


def thermal_pressure(modes, kelvin):
    """eV/Å^3: sum gamma E/V of the modes, zero-point energy included."""
    f = modes.mesh.frequencies
    moving = f > 0.01
    x = THZ_ENERGY * np.where(moving, f, 1.0) / (BOLTZMANN * kelvin)
    each = np.where(moving, modes.gamma * THZ_ENERGY * f * (0.5 + 1.0 / np.expm1(x)), 0.0)
    return np.sum(modes.mesh.weights[:, None] * each) / modes.volume


def test_the_crystal_is_at_its_own_pressure(monkeypatch):
    """Springs at 40 K: at the volume that is found the pressures of the lattice at rest and of its modes cancel, and the
    expansion is gamma C_V/(B_T V); gamma from changes of the dynamical matrix."""
    home = "jaxmd_thermal.lattice.quasi_harmonic."
    monkeypatch.setattr(
        "jaxmd_thermal.io.relax.relaxed_positions", lambda _, x, shape: atoms_from(x)
    )  # nothing is free
    monkeypatch.setattr(home + "evaluate", lambda _, x, what: {"energy": springs.energy(x)})
    monkeypatch.setattr(home + "force_constants", lambda _, x, s, **options: springs.constants(x, s, third=False))
    crystal, mesh, t = bulk("Ar", a=5.48), (3, 3, 3), 40.0
    found = quasi_harmonic(None, crystal, (3, 3, 3), mesh, [0.0, t], volumes=(0.98, 1.06), points=6)
    there = [atoms_from(scaled(crystal, x * found.volume[1] / crystal.get_volume())) for x in (1 - 1e-3, 1.0, 1 + 1e-3)]
    modes = grueneisen_from_volumes(*(springs.constants(x, (3, 3, 3), third=False) for x in there), mesh)
    # Six points of an equation of state over 8 % of volume.
    assert thermal_pressure(modes, t) == pytest.approx(-springs.pressure(there[1]), rel=3e-3)
    expected = modes.mean(t) * modes.heat_capacity(t) / (found.bulk_modulus[1] * GPA * found.volume[1])
    assert found.expansion[1] == pytest.approx(expected[0], rel=3e-3) and found.expansion[0] == 0
    assert found.volume[1] > 1.002 * found.volume[0]
    with pytest.raises(InputError, match=r"volumes are 1\.1 to 0\.9 with 11 points"):
        quasi_harmonic(None, crystal, (3, 3, 3), mesh, volumes=(1.1, 0.9))


@pytest.mark.slow
def test_argon_is_at_its_own_pressure():
    """The same of a potential at 40 K, with exact second derivatives and the stress of `evaluate`."""
    argon = LennardJones(0.0103, 3.405, cutoff=4.9, truncation="switch", switch_start=4.4)
    crystal, mesh, cells = bulk("Ar", a=5.5), (3, 3, 3), (3, 3, 3)
    found = quasi_harmonic(argon, crystal, cells, mesh, [40.0], volumes=(1.0, 1.09), points=7)
    there = scaled(crystal, found.volume[0] / crystal.get_volume())
    modes = grueneisen(argon, there, cells, mesh, change=2e-3, relax_positions=False)
    rest = np.trace(evaluate(argon, there, "stress")["stress"]) / 3.0
    assert thermal_pressure(modes, 40.0) == pytest.approx(rest, rel=2e-3)
    expected = modes.mean(40.0) * modes.heat_capacity(40.0) / (found.bulk_modulus * GPA * found.volume)
    assert found.expansion == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_the_shape_follows_the_volume():
    """Hexagonal argon 4 % larger: the two stresses are equal at the relaxed shape, and not before."""
    argon = LennardJones(0.0103, 3.405, cutoff=6.0, truncation="switch", switch_start=4.5)
    start = bulk("Ar", "hcp", a=3.8, c=6.3)
    found = relaxed_positions(argon, start, shape=True)
    assert found.get_volume() == pytest.approx(start.get_volume(), rel=1e-10)
    before, after = (np.diag(evaluate(argon, x, "stress")["stress"]) for x in (start, found))
    # eV/Å^3: 1e-6 eV/Å of generalised force over the volume.
    assert abs(before[2] - before[0]) > 1e-5 and abs(after[2] - after[0]) < 1e-7
