"""Phonons of a potential against files of DFT forces: the published table, and closed cases."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from jaxmd_thermal import force_constants, phonon_errors, relax
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.ase import builtin_structure
from jaxmd_thermal.io.models import load_potential
from jaxmd_thermal.potentials import EquivariantNetwork
from jaxmd_thermal.training.evaluation import METRICS, evaluate_phonons
from jaxmd_thermal.training.networks import with_block

COLUMNS = {
    "free_energy_kJ_mol": ("F_ml", "F_dft"), "entropy_J_mol_K": ("S_ml", "S_dft"), "heat_capacity_J_mol_K": ("CV_ml", "CV_dft")
}  # fmt: skip
WIDE_MESH = 7
"""Atoms of the primitive cell up to which the published table is of the grid 19^3; above it is of 9^3."""


def check_against_table(shared, monkeypatch, model, key, blocks=True):
    folder = shared / "data" / "dft_phonons"
    if not folder.exists():
        pytest.skip("no data/dft_phonons")
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(shared / "data"))
    with open(folder / "model_vs_dft.csv") as file:
        (row,) = (r for r in csv.DictReader(file) if r["key"] == key and r["model"] == model)
    with open(folder / "manifest.csv") as file:
        atoms = next(int(r["natoms_prim"]) for r in csv.DictReader(file) if r["key"] == key)
    mesh = 19 if atoms <= WIDE_MESH else 9
    potential = load_potential(model) if blocks else with_block(load_potential(model), None)
    found = phonon_errors(potential, folder / f"{key}.yaml.xz", mesh=mesh)
    assert found["force_constants_mae_meV_A2"] == pytest.approx(float(row["fc2_mae_meVA2"]), rel=1e-4)
    assert found["force_constants_relative"] == pytest.approx(float(row["fc2_relF"]), rel=1e-4)
    assert found["omega_max_K"] == pytest.approx(float(row["dwmax_K"]), abs=2e-3)
    for name, (ours, theirs) in COLUMNS.items():
        assert found[name] == pytest.approx(float(row[ours]) - float(row[theirs]), abs=2e-3), name


@pytest.mark.slow
def test_published_table(shared, monkeypatch):
    check_against_table(shared, monkeypatch, "nequix-mp-1", "ZnO_wz", blocks=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nequix-mp-1", "nequix-mp-1-pft"])
@pytest.mark.parametrize(
    "key",
    "NaCl Si_PBE_p3 Si_PBEsol_p3 ZnTe_zb ZnO_wz LiF Li3NbS4 CaTiO3_cubic MgB2 YbMg2Sb2 SnO2 ErAgTe2 HfSO KCaCO3F BaTiO3_P4mm "
    "ZrGeO4 TiPN3 KNbO3_Amm2 Al2O3 TiO2_anatase".split(),
)
def test_whole_published_table(shared, monkeypatch, model, key):
    if key.endswith(("_p3", "_zb")):
        pytest.importorskip("phono3py")
    check_against_table(shared, monkeypatch, model, key)


@pytest.fixture(scope="module")
def silicon(tmp_path_factory):
    """Folder with force constants of Stillinger-Weber silicon, and the potential."""
    potential = load_potential("sw-silicon")
    fc = force_constants(potential, builtin_structure("silicon"), (2, 2, 2), displacement=None)
    return fc.save(tmp_path_factory.mktemp("silicon")), potential


@pytest.mark.slow
def test_a_potential_has_no_errors_against_itself(silicon):
    folder, potential = silicon
    found = phonon_errors(potential, folder, mesh=5)
    assert all(abs(value) < 1e-7 for value in found.values()), found


@pytest.mark.slow
def test_scaled_energy_has_the_errors_of_scaled_frequencies(silicon):
    """Energies times 1.21: frequencies times 1.1, classical entropy and force constants in closed form."""
    folder, potential = silicon
    found = phonon_errors(replace(potential, epsilon=1.21 * potential.epsilon), folder, temperature=1e5, mesh=5)
    assert found["force_constants_relative"] == pytest.approx(0.21, rel=1e-9)
    boltzmann = 8.314462618
    modes = 6 - 3 / 125
    assert found["entropy_J_mol_K"] == pytest.approx(-modes * boltzmann * np.log(1.1), rel=1e-4)
    assert found["free_energy_kJ_mol"] == pytest.approx(1e2 * modes * boltzmann * np.log(1.1), rel=1e-4)


@pytest.mark.slow
def test_table(silicon):
    folder, potential = silicon
    soft = replace(potential, epsilon=0.9 * potential.epsilon)
    functionals = {"one": "PBE", "two": "PBEsol"}
    table = evaluate_phonons(soft, {"one": folder, "two": folder}, functionals=functionals, mesh=5)
    again = evaluate_phonons(potential, {"one": folder}, mesh=5)
    assert table.classification() == {"stable": 2, "unstable": 0, "missed": 0, "invented": 0, "failed": 0}
    single = table.means(functional="PBE")
    assert single == table.means() and single["omega_max_K"] > 10
    assert table.means(per_atom=True)["entropy_J_mol_K"] == pytest.approx(single["entropy_J_mol_K"] / 2)
    assert table.relative_to(table) == 1.0 and again.relative_to(table) < 1e-6
    assert np.isnan(table.means(functional="LDA")["omega_max_K"])
    records = table.records()
    assert [r["compound"] for r in records] == ["one", "two"] and all(name in records[0] for name in METRICS)
    assert "PBEsol" in table.to_text()
    # A network that does not know silicon fails for the compound, not for the table.
    stranger = EquivariantNetwork.create(0, ["Ar"], 4.0, 1, channels=2, lmax=0)
    failed = evaluate_phonons(stranger, [folder], mesh=5)
    assert failed.classification()["failed"] == 1 and "Si" in failed.rows[0].failure
    with pytest.raises(InputError, match="nothing"):
        phonon_errors(potential, folder / "nothing")


@pytest.mark.slow
def test_evaluation_after_relaxation(tmp_path):
    """From a strained cell back to the minimum: the errors are those of the reference, which was made there."""
    potential = load_potential("sw-silicon")
    relaxed = relax(potential, builtin_structure("silicon"), "converged")
    reference = force_constants(potential, relaxed, (1, 1, 1), displacement=None)
    stretched = replace(
        reference.geometry, unit=replace(reference.geometry.unit, lattice=1.01 * reference.geometry.unit.lattice)
    )
    reference.replace(geometry=stretched).save(tmp_path / "Si")
    here = evaluate_phonons(potential, {"Si": tmp_path / "Si"}, mesh=5)
    there = evaluate_phonons(potential, {"Si": tmp_path / "Si"}, mesh=5, relaxed="converged")
    assert here.geometry == "reference" and there.geometry == "converged"
    assert here.means()["force_constants_relative"] > 1e-2
    assert there.means()["force_constants_relative"] < 1e-4 and there.means()["omega_max_K"] < 0.05
