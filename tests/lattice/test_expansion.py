"""Thermal expansion of cubic and hexagonal crystals."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.models import load_potential
from jaxmd_thermal.lattice.density import mesh_phonons
from jaxmd_thermal.lattice.expansion import thermal_expansion
from jaxmd_thermal.lattice.force_constants import force_constants
from jaxmd_thermal.lattice.grueneisen import bulk_modulus, grueneisen
from jaxmd_thermal.lattice.relax import relax
from jaxmd_thermal.lattice.thermodynamics import thermodynamics
from jaxmd_thermal.potentials import LennardJones
from jaxmd_thermal.system import System
from jaxmd_thermal.units import GPA

ARGON = LennardJones(0.0103, 3.405, cutoff=6.0, truncation="switch", switch_start=4.5)
MESH, COLD = (4, 4, 3), np.array([15.0, 40.0])


@pytest.mark.slow
def test_hexagonal_expansion_follows_the_entropy():
    """Minimum of E + F: its strain moves with temperature as (volume stiffness)^-1 dS/d strain, here by differences of S."""
    atoms = relax(ARGON, bulk("Ar", "hcp", a=3.72, c=6.08), "converged")
    found = thermal_expansion(ARGON, atoms, (3, 3, 2), MESH, COLD, change=1e-3)
    assert found.strains.shape == (2, 3, 3)
    system, volume, h = System.from_atoms(atoms), atoms.get_volume(), 1e-3
    slope = []
    for strain in found.strains:
        entropies = []
        for sign in (1, -1):
            f = np.eye(3) + sign * h * strain
            moved = system.replace(positions=np.asarray(system.positions) @ f, cell=np.asarray(system.cell) @ f)
            fc = force_constants(ARGON, moved, (3, 3, 2), displacement=None)
            entropies.append(thermodynamics(mesh_phonons(fc, MESH), COLD).entropy / 96485.33212)  # J/(K mol) to eV/K
        slope.append((entropies[0] - entropies[1]) / (2 * h))
    expected = np.einsum("kt,kab->tab", np.linalg.solve(found.stiffness * GPA * volume, np.array(slope)), found.strains)
    # Second order of both differences in a strain of 1e-3, with Grüneisen parameters of about 10.
    np.testing.assert_allclose(found.expansion, expected, rtol=2e-3, atol=1e-9)
    assert found.expansion[1, 0, 0] == pytest.approx(found.expansion[1, 1, 1])
    assert abs(found.expansion[1, 2, 2] / found.expansion[1, 0, 0] - 1) > 1e-3
    np.testing.assert_allclose(found.volumetric, np.trace(expected, axis1=1, axis2=2), rtol=2e-3)
    atoms.set_cell(atoms.cell * 1.001, scale_atoms=True)
    with pytest.raises(InputError, match="needs a minimum"):
        thermal_expansion(ARGON, atoms, (3, 3, 2), MESH)
    with pytest.raises(InputError, match="change is 1"):
        thermal_expansion(ARGON, atoms, (3, 3, 2), MESH, change=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "salt, gamma, modulus, expansion, lattice", [("NaCl", 1.618, 23.7, 39.0e-6, 5.7150), ("LiBr", 2.292, 24.7, 57.7e-6, 5.5403)]
)  # fmt: skip
def test_salts_with_a_foundation_potential(shared, salt, gamma, modulus, expansion, lattice):
    """Reference values of an independent calculation, 1 % each, 300 K; cubic crystals need no tensor."""
    weights = shared / "data" / "nequix" / "nequix-mp-1-pft.nqx"
    if not weights.exists():
        pytest.skip("no data/nequix")
    potential = load_potential(str(weights))
    atoms = relax(potential, bulk(salt, "rocksalt", a=lattice, cubic=True), "converged")
    # The reference's cells are under 0.006 and 0.009 GPa by our stress (here 1e-12), which is 0.0007 Å with these moduli.
    assert atoms.cell.lengths() == pytest.approx(lattice, abs=1e-3)
    found = grueneisen(potential, atoms, (4, 4, 4), (19, 19, 19), displacement=0.03, relax_positions=False)
    b = bulk_modulus(potential, atoms, relax_positions=False)
    assert found.mean(300.0)[0] == pytest.approx(gamma, rel=0.01)
    assert b == pytest.approx(modulus, rel=0.01)
    assert found.linear_expansion(300.0, b)[0] == pytest.approx(expansion, rel=0.01)
    tensor = thermal_expansion(potential, atoms, (4, 4, 4), (19, 19, 19), displacement=0.03)
    np.testing.assert_allclose(tensor.expansion[0], expansion * np.eye(3), rtol=0.02, atol=1e-9)
