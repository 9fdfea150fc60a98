"""Relaxation by ASE's optimisers through our calculator."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.ase import atoms_from
from jaxmd_thermal.io.calculator import Calculator
from jaxmd_thermal.io.models import load_potential
from jaxmd_thermal.lattice.relax import relax
from jaxmd_thermal.potentials import StillingerWeber

SILICON = StillingerWeber.silicon()


def stretched():
    atoms = atoms_from("silicon")
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    return atoms


@pytest.mark.parametrize(
    "protocol, tolerance",
    [("leaderboard", 5e-3), ("converged", 1e-6), pytest.param("ksrme", 1e-4, marks=pytest.mark.slow)],
)
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


@pytest.mark.slow
@pytest.mark.parametrize("name, constant", [("nequix-mp-1", 5.7028), ("nequix-mp-1-pft", 5.7077)])
def test_leaderboard_lattice_constant(shared, name, constant):
    """Rocksalt NaCl of the phonon database by the published protocol."""
    from ase.io import read

    structures = shared / "data" / "phonondb103" / "phononDB-PBE-structures.extxyz"
    weights = shared / "data" / "nequix" / f"{name}.nqx"
    if not (structures.exists() and weights.exists()):
        pytest.skip("no data/phonondb103 or data/nequix")
    salts = [a for a in read(structures, ":") if a.get_chemical_formula(mode="metal", empirical=True) == "NaCl"]
    salt = next(a for a in salts if a.info.get("symm.no", 225) == 225)
    atoms = relax(load_potential(str(weights)), salt, "leaderboard")
    assert atoms.info["relaxation"]["symmetry_kept"]
    conventional = (4 * atoms.get_volume() / (len(atoms) / 2)) ** (1 / 3)
    assert conventional == pytest.approx(constant, abs=2e-4)
