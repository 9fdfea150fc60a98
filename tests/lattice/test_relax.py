"""Relaxation by ASE's optimisers through our calculator."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.ase import atoms_from
from jaxmd_thermal.io.calculator import Calculator
from jaxmd_thermal.lattice.relax import relax
from jaxmd_thermal.potentials import StillingerWeber

SILICON = StillingerWeber.silicon()


def stretched():
    atoms = atoms_from("silicon")
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("protocol, tolerance", [("leaderboard", 5e-3), ("ksrme", 1e-4), ("converged", 1e-6)])
def test_protocols_find_the_minimum(protocol, tolerance):
    atoms = relax(SILICON, stretched(), protocol)
    exact = 4 / np.sqrt(3) * 2 ** (1 / 6) * 2.0951
    np.testing.assert_allclose(atoms.cell.lengths(), exact, atol=10 * tolerance)
    done = atoms.info["relaxation"]
    assert done["protocol"] == protocol and done["converged"] and done["symmetry_kept"]
    assert done["space_group"] == "Fd-3m"
    atoms.calc = Calculator(SILICON)
    assert np.abs(atoms.get_stress()).max() < tolerance


def test_errors():
    with pytest.raises(InputError, match="did you mean 'converged'"):
        relax(SILICON, "silicon", "converge")
    atoms = atoms_from("silicon")
    atoms.pbc = (True, True, False)
    with pytest.raises(InputError, match="periodicity"):
        relax(SILICON, atoms)
