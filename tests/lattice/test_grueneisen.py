"""Grüneisen parameters and thermal expansion."""

from __future__ import annotations

import numpy as np
import pytest
import springs
from ase import Atoms
from scipy.optimize import brentq

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.force_constants import force_constants
from jaxmd_thermal.lattice.grueneisen import (
    bulk_modulus,
    grueneisen,
    grueneisen_from_fc3,
    grueneisen_from_volumes,
    scaled,
)
from jaxmd_thermal.potentials import LennardJones

ARGON = LennardJones(0.0103, 3.405, cutoff=6.5, truncation="switch", switch_start=5.0)
MESH = (5, 5, 5)


@pytest.fixture(scope="module")
def volumes():
    return [force_constants(ARGON, scaled("argon", x), (2, 2, 2), displacement=None) for x in (0.99, 1.0, 1.01)]


def test_equals_phonopy(volumes):
    from phonopy import PhonopyGruneisen

    found = grueneisen_from_volumes(*volumes, MESH)
    cells = []
    for fc in volumes:
        phonopy = symmetry.phonopy_object(fc.geometry)
        phonopy.force_constants = fc.fc2
        cells.append(phonopy)
    theirs = PhonopyGruneisen(cells[1], cells[2], cells[0])
    theirs.set_mesh(list(MESH), is_gamma_center=True)
    _, weights, f, _, gamma = theirs.get_mesh()
    moving = f > 0.01
    ours = found.mesh.frequencies > 0.01
    # The same set of stars, perhaps by other representatives: compare weighted sums of powers.
    for power in (1, 2):
        expected = np.sum(weights[:, None] * np.where(moving, gamma, 0) ** power) / weights.sum()
        mine = np.sum(found.mesh.weights[:, None] * np.where(ours, found.gamma, 0) ** power)
        assert mine == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_third_order_equals_volume_differences():
    sets = [force_constants(ARGON, scaled("argon", x), (3, 3, 3), displacement=None) for x in (0.99, 1.0, 1.01)]
    fc = force_constants(ARGON, "argon", (3, 3, 3), (3, 3, 3), displacement=None)
    third, difference = grueneisen_from_fc3(fc, MESH), grueneisen_from_volumes(*sets, MESH)
    assert third.mean(300.0) == pytest.approx(difference.mean(300.0), rel=0.02)
    with pytest.raises(InputError, match="need fc3"):
        grueneisen_from_fc3(sets[0], MESH)


def layers(height, length=1.0):
    """Layers A, B, B of a face-centred lattice along z: symmetry leaves the height of B free."""
    cell = np.array([[3.55, 0, 0], [0, 3.55, 0], [1.775, 1.775, 8.0]])
    positions = np.array([[0, 0, 0], [1.775, 1.775, 8.0 * height], [0, 0, 8.0 * (1.0 - height)]])
    return Atoms("NeAr2", cell=length * cell, positions=length * positions, pbc=True)


def relaxed_layers(length):
    """The layers where the forces on the free coordinate vanish."""

    def force(height):
        atom, vectors, sizes = springs.neighbors(layers(height, length))
        return float(np.sum(springs.slopes(1, vectors, sizes)[atom == 1, 2]))

    return layers(brentq(force, 0.31, 0.36, xtol=1e-13), length)


def test_third_order_with_internal_strain():
    """Mode by mode against changes of volume with relaxed positions; with positions that do not relax gamma is 0.27 off."""
    lengths = [(1.0 + x) ** (1 / 3) for x in (-1e-3, 0.0, 1e-3)]
    sets = [springs.constants(relaxed_layers(x), (3, 3, 2)) for x in lengths]
    third, difference = grueneisen_from_fc3(sets[1], (2, 2, 2)), grueneisen_from_volumes(*sets, (2, 2, 2))
    moving = difference.mesh.frequencies > 0.1
    assert difference.mesh.frequencies.min() > -1e-3
    # Second order of the central difference, (1e-3)^2 with coefficients of about 100.
    np.testing.assert_allclose(third.gamma[moving], difference.gamma[moving], rtol=0, atol=1e-3)


def test_power_law_identity():
    """r^-12 alone: frequencies go as a^-7, so every Grüneisen parameter is 7/3."""
    soft = LennardJones(1e-6, 40.0, cutoff=5.0)  # (sigma/r)^12 exceeds (sigma/r)^6 by 1e6 at these distances
    found = grueneisen(soft, "argon", (2, 2, 2), (3, 3, 3), change=1e-3, relax_positions=False)
    moving = found.mesh.frequencies > 0.01
    assert moving.sum() >= 9
    np.testing.assert_allclose(found.gamma[moving], 7 / 3, rtol=1e-3)


def test_expansion(volumes):
    found = grueneisen_from_volumes(*volumes, MESH)
    t = np.array([20.0, 80.0, 300.0])
    b = bulk_modulus(ARGON, "argon", relax_positions=False)
    alpha = found.linear_expansion(t, b)
    np.testing.assert_allclose(
        alpha, found.mean(t) * found.heat_capacity(t) / (3 * b * 6.241509e-3 * volumes[1].crystal.volume), rtol=1e-6
    )
    assert np.all(np.diff(found.heat_capacity(t)) > 0) and 0 < b < 20
    with pytest.raises(InputError, match="bulk modulus is -1"):
        found.linear_expansion(t, -1.0)
    with pytest.raises(InputError, match="above 0 K"):
        found.mean(0.0)
    with pytest.raises(InputError, match="ascending"):
        grueneisen_from_volumes(volumes[2], volumes[1], volumes[0], MESH)
    with pytest.raises(InputError, match=r"change is 0\.5"):
        grueneisen(ARGON, "argon", (2, 2, 2), MESH, change=0.5)
