"""Derivatives of force constants, relaxed cells and the conductivity with respect to the parameters of a potential."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import equilibrium
from jaxmd_thermal.lattice.conductivity import kappa_function
from jaxmd_thermal.lattice.force_constants import force_constants
from jaxmd_thermal.lattice.relax import relax
from jaxmd_thermal.lattice.sensitivity import differentiable_force_constants
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones, StillingerWeber
from jaxmd_thermal.system import System

ARGON = LennardJones(0.0103, 3.405, cutoff=6.0, truncation="switch", switch_start=4.5)
SILICON = StillingerWeber.silicon()


def settled(potential, system):
    """The minimum next to a relaxed cell, for finite differences."""
    positions, lattice = equilibrium.minimum(potential, system)
    return system.replace(positions=positions, cell=lattice)


def lonsdaleite():
    """Hexagonal silicon: two strains and one internal coordinate are free."""
    atoms = bulk("SiSi", "wurtzite", a=3.84, c=6.27)
    return Atoms("Si4", cell=atoms.cell, scaled_positions=atoms.get_scaled_positions(), pbc=True)


def along(potential, change, step):
    return jax.tree.map(lambda x, d: x + step * d, potential, change)


class Conductivity:
    """Mean of the diagonal of kappa as a function of the potential, relaxation included, and its derivative."""

    def __init__(self, potential, atoms, supercell, mesh, relaxed=True, **options):
        self.system, self.sizes, self.mesh = System.from_atoms(atoms), (supercell, supercell), mesh
        self.options = {"sigma": 0.5, "isotopes": False} | options
        self.relaxed = relaxed
        if relaxed:
            self.system = settled(potential, self.system)
        self.fc = force_constants(potential, self.system, *self.sizes)

    def value(self, potential):
        """By the ordinary route: relax, force constants, conductivity."""
        system = settled(potential, self.system) if self.relaxed else self.system
        fc = force_constants(potential, system, *self.sizes)
        with double_precision():
            return float(jnp.trace(kappa_function(fc, self.mesh, **self.options)(fc.fc2, fc.fc3)[0]) / 3)

    def value_and_gradient(self, potential):
        with double_precision():
            constants = differentiable_force_constants(potential, self.system, *self.sizes, relaxed=self.relaxed)
            kappa = kappa_function(self.fc, self.mesh, **self.options)
            value, gradient = jax.value_and_grad(lambda p: jnp.trace(kappa(*constants(p))[0]) / 3)(potential)
        return float(value), jax.tree.map(np.asarray, gradient)


def test_force_constants_and_cell_of_argon_against_differences():
    """Weighted sums of fc2 and of the lattice along a change of both parameters, the cell relaxed again for each."""
    system = settled(ARGON, System.from_atoms("argon"))
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((1, 32, 3, 3)), rng.standard_normal((3, 3))
    change = replace(ARGON, epsilon=0.6 * ARGON.epsilon, sigma=-0.8 * ARGON.sigma)

    def measure(fc2, lattice):
        return (weights[0] * fc2).sum() + (weights[1] * lattice).sum()

    def value(step):
        potential = along(ARGON, change, step)
        fc = force_constants(potential, settled(potential, system), (2, 2, 2))
        return float(measure(fc.fc2, fc.crystal.lattice))

    with double_precision():
        constants = differentiable_force_constants(ARGON, system, (2, 2, 2))

        def function(potential):
            made = constants(potential)
            return measure(made.fc2, made.lattice)

        exact, gradient = jax.value_and_grad(function)(ARGON)
    assert float(exact) == pytest.approx(value(0.0), rel=1e-10)
    slope = float(gradient.epsilon) * change.epsilon + float(gradient.sigma) * change.sigma
    h = 1e-4
    assert slope == pytest.approx((value(h) - value(-h)) / (2 * h), rel=1e-6)


@pytest.mark.slow
def test_conductivity_of_argon_against_differences():
    """Both parameters at once, cell relaxed again for every difference; and the law of corresponding states."""
    k = Conductivity(ARGON, "argon", (2, 2, 2), (3, 3, 3), temperatures=(30.0,))
    value, gradient = k.value_and_gradient(ARGON)
    h = 1e-4
    change = replace(ARGON, epsilon=0.6 * ARGON.epsilon, sigma=-0.8 * ARGON.sigma)
    slope = (k.value(along(ARGON, change, h)) - k.value(along(ARGON, change, -h))) / (2 * h)
    exact = gradient.epsilon * change.epsilon + gradient.sigma * change.sigma
    assert exact == pytest.approx(slope, rel=1e-5)  # h^2 of the difference; the goal is 1e-4
    assert value == pytest.approx(k.value(ARGON), rel=1e-9)
    # Corresponding states: kappa depends on T k_B/epsilon, sigma and hbar/(sigma sqrt(m epsilon)) in one way only, so that
    # (a epsilon, b sigma, m/(a b^2), a T) has the conductivity a/b kappa.
    a, b = 1.3, 0.9
    other = replace(ARGON, epsilon=a * ARGON.epsilon, sigma=b * ARGON.sigma, cutoff=b * 6.0, switch_start=b * 4.5)
    system = k.system.replace(
        positions=b * np.asarray(k.system.positions), cell=b * np.asarray(k.system.cell),
        masses=np.asarray(k.system.masses) / (a * b**2),
    )  # fmt: skip
    fc = force_constants(other, system, *k.sizes, displacement=0.03 * b)
    with double_precision():
        f = np.sqrt(a / b**2 / (1 / (a * b**2)))  # frequencies scale by this, and the smearing with them
        scaled = kappa_function(fc, k.mesh, temperatures=(30.0 * a,), sigma=0.5 * f, isotopes=False)(fc.fc2, fc.fc3)
    assert float(jnp.trace(scaled[0]) / 3) == pytest.approx(a / b * value, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "atoms, mesh", [("silicon", (4, 4, 4)), (lonsdaleite(), (3, 3, 2))], ids=["cubic", "hexagonal"]
)
@pytest.mark.parametrize("relaxed", [True, False])
def test_silicon_against_differences(atoms, mesh, relaxed):
    """A random direction in all parameters; hexagonal silicon has an internal coordinate that follows them."""
    atoms = relax(SILICON, atoms, "converged")
    k = Conductivity(SILICON, atoms, (2, 2, 2) if len(atoms) == 8 else (3, 3, 2), mesh, relaxed)
    value, gradient = k.value_and_gradient(SILICON)
    leaves, tree = jax.tree.flatten(SILICON)
    rng = np.random.default_rng(0)
    change = tree.unflatten([np.asarray(0.3 * x * rng.standard_normal()) for x in leaves])
    exact = sum(float(np.sum(g * d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(change), strict=True))
    h = 1e-4
    slope = (k.value(along(SILICON, change, h)) - k.value(along(SILICON, change, -h))) / (2 * h)
    assert value == pytest.approx(k.value(SILICON), rel=1e-9)
    assert exact == pytest.approx(slope, rel=1e-4)


@pytest.mark.slow
def test_weights_of_a_network_against_differences():
    """A pair term that holds the crystal together, and a network whose weights move along a random direction."""
    network = EquivariantNetwork.create(jax.random.key(0), (18,), cutoff=4.2, layers=1, channels=4)
    potential = ARGON + jax.tree.map(lambda x: np.asarray(x, np.float64), network)
    k = Conductivity(potential, relax(potential, "argon", "converged"), (2, 2, 2), (3, 3, 3), temperatures=(30.0,))
    _, gradient = k.value_and_gradient(potential)
    leaves, tree = jax.tree.flatten(potential)
    rng = np.random.default_rng(1)
    change = tree.unflatten([np.asarray(rng.standard_normal(np.shape(x)) * np.std(x)) if np.ndim(x) else np.zeros(())
                             for x in leaves])  # fmt: skip
    exact = sum(float(np.sum(g * d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(change), strict=True))
    h = 1e-4
    slope = (k.value(along(potential, change, h)) - k.value(along(potential, change, -h))) / (2 * h)
    assert abs(slope) > 1e-6
    assert exact == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(
    "atoms, strains, shifts",
    [(bulk("Al", "fcc", 4.0), 1, 0), (bulk("AlN", "wurtzite", a=3.2, c=5.1), 2, 1),
     (Atoms("Si2", cell=[[3, 0, 0], [0.7, 3.3, 0], [0.4, 0.9, 3.6]], positions=[[0.3, 0.4, 0.5], [1.9, 1.8, 1.7]], pbc=True),
      6, 3)],
    ids=["fcc", "wurtzite", "inversion"],
)  # fmt: skip
def test_freedom_of_a_cell(atoms, strains, shifts):
    freedom = equilibrium.freedom_of(System.from_atoms(atoms))
    sizes = np.linalg.norm(freedom.strains, axis=(1, 2))
    assert np.sum(np.isclose(sizes, 1)) == strains and np.sum(np.isclose(sizes, 0)) == shifts
    assert np.abs(freedom.shifts.sum(axis=1)).max() < 1e-12
    assert np.abs(freedom.strains - freedom.strains.transpose(0, 2, 1)).max() < 1e-12


@pytest.mark.slow
def test_relaxed_cell_follows_the_potential():
    """Implicit derivative of c/a and the internal coordinate of hexagonal silicon against relaxed cells."""
    system = settled(SILICON, System.from_atoms(lonsdaleite()))

    def measures(positions, lattice):
        fractions = positions @ jnp.linalg.inv(lattice)
        return jnp.stack([lattice[2, 2] / lattice[0, 0], fractions[1, 2] - fractions[0, 2], lattice[0, 0]])

    with double_precision():
        cell = equilibrium.cell_of(SILICON, system)
        freedom = equilibrium.freedom_of(system)
        coordinates = equilibrium.relaxed_coordinates(SILICON, cell, freedom)
        place = jax.jit(lambda p: measures(*equilibrium.placed(freedom, cell.positions, cell.lattice, coordinates(p))))
        found = jax.jacrev(place)(SILICON)
        h = 1e-4
        both = [settled(replace(SILICON, cos_theta0=SILICON.cos_theta0 + s * h), system) for s in (1, -1)]
        plus, minus = (np.asarray(measures(jnp.asarray(x.positions), jnp.asarray(x.cell))) for x in both)
    np.testing.assert_allclose(found.cos_theta0, (plus - minus) / (2 * h), rtol=1e-5, atol=1e-7)


def test_cells_that_are_not_relaxed_are_refused():
    atoms = bulk("Si", "diamond", a=5.44)
    with pytest.raises(InputError, match=r'needs a minimum.*"converged"'):
        differentiable_force_constants(SILICON, atoms, (1, 1, 1))
    with pytest.raises(InputError, match="displacement is 1"):
        differentiable_force_constants(SILICON, atoms, (1, 1, 1), displacement=1.0, relaxed=False)
