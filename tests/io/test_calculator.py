"""The ASE calculator against ASE's own, finite differences and `evaluate`; what repeats is computed and compiled once."""

from __future__ import annotations

import ase.units
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.calculators.morse import MorsePotential
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from scipy.optimize import minimize_scalar

import jaxmd_thermal
from jaxmd_thermal import evaluate, load_potential
from jaxmd_thermal.errors import InputError, UnstableError, UnsupportedError
from jaxmd_thermal.io import calculator as module
from jaxmd_thermal.io.calculator import Calculator, evaluate_with
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 6.0
ALL = ("energy", "energies", "forces", "stress")


def argon():
    """ASE's Lennard-Jones subtracts the energy at the cutoff, as "shift" does."""
    return LennardJones(EPSILON, SIGMA, CUTOFF, "shift")


def ase_argon():
    return AseLennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF)


def crystal(repeat=2, moving=False, seed=0):
    """Argon in a skew cell with displaced atoms of several masses."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(repeat)
    rng = np.random.default_rng(seed)
    atoms.rattle(0.1, rng=rng)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.standard_normal((3, 3))), scale_atoms=True)
    atoms.set_masses(rng.uniform(36.0, 42.0, len(atoms)))
    if moving:
        sigma = np.sqrt(ase.units.kB * 60.0 / atoms.get_masses())[:, None]
        atoms.set_velocities(sigma * rng.standard_normal((len(atoms), 3)))
    return atoms


class Calls(list):
    """Quantities asked for, one entry an evaluation; `lists`: neighbour lists built; `compiled()`: programs so far."""


@pytest.fixture
def counted(monkeypatch):
    """What the calculators of a test do."""
    calls, lists = Calls(), []
    compute, allocate = module._compute, module.allocate

    def counting(*args, quantities, dtype):
        calls.append(quantities)
        return compute(*args, quantities=quantities, dtype=dtype)

    def counting_lists(*args, **more):
        lists.append(more)
        return allocate(*args, **more)

    monkeypatch.setattr(module, "_compute", counting)
    monkeypatch.setattr(module, "allocate", counting_lists)
    calls.lists, calls.compiled = lists, compute._cache_size
    return calls


# Numbers


@pytest.mark.parametrize("repeat", [1, 2])
def test_agrees_with_ase(repeat):
    atoms = crystal(repeat)
    reference = evaluate_with(ase_argon(), atoms, ALL)
    atoms.calc = Calculator(argon())
    close = dict(rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(atoms.get_potential_energy(), reference["energy"], **close)
    np.testing.assert_allclose(atoms.get_potential_energy(force_consistent=True), reference["energy"], **close)
    np.testing.assert_allclose(atoms.get_potential_energies(), reference["energies"], **close)
    np.testing.assert_allclose(atoms.get_forces(), reference["forces"], **close)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), reference["stress"], **close)
    assert atoms.get_stress().shape == (6,)


def test_agrees_with_finite_differences():
    atoms = crystal(1)
    atoms.calc = Calculator(argon())
    forces, stress = atoms.get_forces(), atoms.get_stress()
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, 1e-4), atol=1e-8)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, 1e-5), atol=1e-9)


def test_single_precision():
    atoms = crystal(1)
    single, double = (evaluate_with(Calculator(argon(), dtype=d), atoms, ALL) for d in ("float32", "float64"))
    for name in ALL:
        np.testing.assert_allclose(single[name], double[name], rtol=1e-4, atol=1e-6)
        assert not np.array_equal(single[name], double[name])


def test_clusters_and_slabs_have_no_stress():
    atoms = crystal(1)
    atoms.pbc = (True, True, False)
    atoms.calc = Calculator(argon())
    np.testing.assert_allclose(atoms.get_forces(), evaluate_with(ase_argon(), atoms)["forces"], atol=1e-13)
    assert "stress" not in atoms.calc.results
    for kind in (PropertyNotImplementedError, UnsupportedError):
        with pytest.raises(kind, match=r"periodic in three directions, not \[True, True, False\]"):
            atoms.get_stress()


# Heat flux


def network():
    return EquivariantNetwork.create(0, ["Ar"], 4.5, 2, channels=2, lmax=0, radial=4, hidden=4, references={"Ar": -3.0})


@pytest.mark.parametrize("potential", [argon, network])
def test_heat_flux_is_that_of_evaluate(potential):
    p, atoms = potential(), crystal(1, moving=True)
    calc = Calculator(p, skin=0.0 if potential is argon else None)
    flux = calc.get_property("heat_flux", atoms)
    expected = evaluate(
        p, atoms, ("heat_flux", "heat_flux_potential"), velocities=atoms.get_velocities() * ase.units.fs
    )
    np.testing.assert_allclose(flux, expected["heat_flux"], rtol=1e-12)
    np.testing.assert_allclose(calc.results["heat_flux_potential"], expected["heat_flux_potential"], rtol=1e-12)


def test_flux_and_forces_in_one_go(counted):
    atoms = crystal(1, moving=True)
    calc = Calculator(argon())
    calc.calculate(atoms, ["forces", "heat_flux"])
    assert len(counted) == 1
    together = dict(calc.results)
    calc.reset()
    for name in ("forces", "heat_flux", "energy"):
        np.testing.assert_allclose(calc.get_property(name, atoms), together[name], rtol=1e-12)


def test_new_velocities_renew_the_flux_and_nothing_else(counted):
    atoms = crystal(1, moving=True)
    calc = atoms.calc = Calculator(argon())
    energy, first = atoms.get_potential_energy(), calc.get_property("heat_flux", atoms)
    assert len(counted) == 2 and not set(counted[1]) & {"energy", "forces", "stress"}
    calc.get_property("heat_flux_convective", atoms)
    assert len(counted) == 2 and not calc.calculation_required(atoms, ["heat_flux"])
    atoms.set_momenta(-atoms.get_momenta())
    assert calc.calculation_required(atoms, ["heat_flux"]) and not calc.calculation_required(atoms, ["forces"])
    assert atoms.get_potential_energy() == energy and len(counted) == 2
    np.testing.assert_allclose(calc.get_property("heat_flux", atoms), -first, rtol=1e-12)
    atoms.set_masses(2 * atoms.get_masses())  # momenta stay, velocities change
    third = calc.get_property("heat_flux", atoms)
    expected = evaluate(argon(), atoms, "heat_flux", velocities=atoms.get_velocities() * ase.units.fs)["heat_flux"]
    np.testing.assert_allclose(third, expected, rtol=1e-12)
    assert len(counted) == 4
    atoms.positions[0] += 0.1
    assert calc.get_property("heat_flux", atoms, allow_calculation=False) is None
    assert calc.get_property("energy", atoms, allow_calculation=False) is None


def test_a_flux_needs_velocities():
    calc = Calculator(argon())
    with pytest.raises(InputError, match=r"heat flux needs velocities.*set_velocities"):
        calc.get_property("heat_flux", crystal(1))
    atoms = crystal(1, moving=True)
    atoms.set_momenta(np.full((len(atoms), 3), np.nan))
    with pytest.raises(InputError, match="velocities are not finite"):
        calc.get_property("heat_flux", atoms)


# With ASE's tools


def lattice_energy(a):
    """eV per atom of the perfect crystal: a sum over shells, written down here."""
    n = np.arange(-4, 5)
    i, j, k = (x.ravel() for x in np.meshgrid(n, n, n))
    even = ((i + j + k) % 2 == 0) & ((i != 0) | (j != 0) | (k != 0))
    r = a / 2 * np.sqrt(i**2 + j**2 + k**2)[even]
    r = r[r < CUTOFF]

    def phi(x):
        return 4 * EPSILON * ((SIGMA / x) ** 12 - (SIGMA / x) ** 6)

    return 0.5 * np.sum(phi(r) - phi(CUTOFF))


def test_relaxation_of_atoms_and_cell_finds_the_minimum(counted):
    best = minimize_scalar(lattice_energy, bounds=(5.1, 5.4), method="bounded", options={"xatol": 1e-9})
    atoms = bulk("Ar", "fcc", a=5.26, cubic=True)
    atoms.rattle(0.01, seed=0)
    atoms.calc = Calculator(argon())
    compiled = counted.compiled()
    optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
    assert optimizer.run(fmax=3e-5, steps=60)
    assert atoms.get_potential_energy() / len(atoms) == pytest.approx(best.fun, abs=1e-8)
    np.testing.assert_allclose(atoms.cell.lengths(), best.x, atol=2e-3)
    assert counted.compiled() == compiled + 1
    assert len(counted) <= optimizer.nsteps + 2  # energy, forces and stress of a step are one evaluation
    assert len(counted.lists) < len(counted) / 2


def test_dynamics_compiles_once_and_reuses_the_list(counted):
    atoms = crystal(2, moving=True)
    atoms.calc = Calculator(argon())
    energy = atoms.get_total_energy()
    compiled = counted.compiled()
    VelocityVerlet(atoms, 4.0 * ase.units.fs).run(150)
    assert counted.compiled() == compiled and len(counted) == 151
    assert 1 <= len(counted.lists) < 10
    assert atoms.get_total_energy() == pytest.approx(energy, abs=2e-6 * len(atoms))


def test_a_list_that_overflows_is_rebuilt_with_more_room(counted):
    atoms = crystal(2)
    calc = Calculator(argon())
    for scale in (1.0, 0.8):
        atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
        expected = evaluate_with(ase_argon(), atoms)
        assert calc.get_property("energy", atoms) == pytest.approx(float(expected["energy"]), rel=1e-12)
        np.testing.assert_allclose(calc.get_property("forces", atoms), expected["forces"], rtol=1e-9, atol=1e-12)
    assert len(counted.lists) == 2


def test_other_structures_with_the_same_calculator(counted):
    epsilon = {18: {18: 0.010, 36: 0.012}, 36: {18: 0.012, 36: 0.015}}
    p = LennardJones(np.array([list(row.values()) for row in epsilon.values()]), SIGMA, 8.0, species=(18, 36))

    def expected(atoms):
        pairs = ((i, j) for i in range(len(atoms)) for j in range(i))
        terms = [(epsilon[atoms.numbers[i]][atoms.numbers[j]], SIGMA / atoms.get_distance(i, j)) for i, j in pairs]
        return sum(4 * e * (s**12 - s**6) for e, s in terms if s > SIGMA / 8.0)

    calc = Calculator(p)
    a = crystal(1)
    a.pbc = False
    b, c = a.copy(), a.copy()
    b.numbers[0] = c.numbers[1] = 36
    for atoms in (a, b, c, a):
        assert calc.get_property("energy", atoms) == pytest.approx(expected(atoms), rel=1e-12)
    compiled = counted.compiled()
    for atoms in (b, c, b):  # other places of the same atoms: nothing new
        assert calc.get_property("energy", atoms) == pytest.approx(expected(atoms), rel=1e-12)
    assert counted.compiled() == compiled
    a.numbers[2] = 10
    with pytest.raises(InputError, match="does not know Ne"):
        calc.get_property("energy", a)
    a.numbers[2] = 18
    assert calc.get_property("energy", a) == pytest.approx(expected(a), rel=1e-12)


def test_results_are_written_to_files(tmp_path):
    atoms = crystal(1, moving=True)
    atoms.calc = Calculator(argon())
    atoms.get_forces()
    atoms.calc.get_property("heat_flux", atoms)
    write(tmp_path / "a.extxyz", atoms)
    write(tmp_path / "a.traj", atoms)
    for name in ("a.extxyz", "a.traj"):
        back = read(tmp_path / name)
        np.testing.assert_allclose(back.get_forces(), atoms.get_forces(), atol=1e-7)
    assert set(atoms.get_properties(["energy", "stress"])) >= {"energy", "stress"}


# Errors


def test_wrong_arguments():
    with pytest.raises(InputError, match="dtype is 'float16'"):
        Calculator(argon(), dtype="float16")
    with pytest.raises(InputError, match=r"skin is -1 Å"):
        Calculator(argon(), skin=-1)
    with pytest.raises(InputError, match="unknown potential 'lj-argn-gk', did you mean"):
        Calculator("lj-argn-gk")
    assert jaxmd_thermal.Calculator is Calculator


def test_impossible_structures():
    calc, atoms = Calculator(argon()), crystal(1)
    calc.get_property("energy", atoms)
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(InputError, match=r"atoms 0 and 1 are .* apart"):
        calc.get_property("energy", atoms)
    atoms.positions[0] = np.nan
    with pytest.raises(InputError, match="position of atom 0"):
        calc.get_property("energy", atoms)
    hot = Calculator(LennardJones(np.nan, SIGMA, CUTOFF, "shift"))
    with pytest.raises(UnstableError, match="energies, energy, forces, stress that are not finite"):
        hot.get_property("energy", crystal(1))


# Other calculators as references


def test_other_calculators_as_references():
    atoms = crystal(1)
    atoms.calc = mine = Calculator(argon())
    found = evaluate_with(ase_argon(), atoms, ALL)
    assert {k: v.shape for k, v in found.items()} == {
        "energy": (), "energies": (4,), "forces": (4, 3), "stress": (3, 3)
    }  # fmt: skip
    assert atoms.calc is mine and mine.results == {}
    here = evaluate_with(mine, atoms, ALL)
    for name in ALL:
        np.testing.assert_allclose(here[name], found[name], rtol=1e-10, atol=1e-13)


def test_what_a_calculator_cannot_give():
    with pytest.raises(
        UnsupportedError, match=r"MorsePotential gives no 'heat_flux'.*it has energy, energies, .*stress"
    ):
        evaluate_with(MorsePotential(), crystal(1, moving=True), "heat_flux")
    with pytest.raises(UnsupportedError, match="gives no 'stress' for this structure"):
        evaluate_with(AseLennardJones(), molecule("H2O"), "stress")
    with pytest.raises(InputError, match="unknown quantities"):
        evaluate_with(AseLennardJones(), crystal(1), "force")


def test_published_potential_by_name(shared, monkeypatch):
    monkeypatch.setenv("JAXMD_THERMAL_MODELS", str(shared / "data"))
    assert Calculator("so3krates-snse").potential.species == load_potential("so3krates-snse").species
