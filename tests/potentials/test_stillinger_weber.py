"""Stillinger-Weber silicon against plain loops and the known crystal."""

import numpy as np
import pytest
from ase.build import bulk

from jaxmd_thermal import evaluate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials import StillingerWeber
from tests import oracles

jax = pytest.importorskip("jax")
SW = StillingerWeber.silicon()


def test_energies_against_plain_loops():
    system = oracles.structure(symbols="Si6", seed=2, spacing=1.4)
    energies = evaluate(SW, system, ("energies",))["energies"]
    np.testing.assert_allclose(energies, oracles.stillinger_weber(system), rtol=1e-12)


def test_diamond():
    """Minus two epsilon per atom (parameters are given to 10 digits), at rest, lattice constant 5.431 Å."""
    lattice = 2.0951 * 4 * 2 ** (1 / 6) / np.sqrt(3)
    out = evaluate(SW, bulk("Si", "diamond", a=lattice), ("energy", "forces", "stress"))
    assert abs(out["energy"] / 2 / 2.1683 + 2) < 1e-8
    assert np.abs(out["forces"]).max() < 1e-12
    # The energy is lowest where the stress changes sign.
    low, high = (evaluate(SW, bulk("Si", a=a), ("stress",))["stress"][0, 0] for a in (5.430, 5.432))
    assert low < 0 < high
    assert abs(5.430 - 0.002 * low / (high - low) - 5.431) < 5e-4


@pytest.mark.slow
def test_smooth_and_finite_at_the_cutoff():
    """A dimer across the cutoff: no NaN in energy, force or gradients of the parameters, and nothing beyond it."""
    from ase import Atoms

    def at(r):
        return evaluate(SW, Atoms("Si2", positions=[[0, 0, 0], [r, 0, 0]]), ("energy", "forces"))

    for r in (SW.cutoff * (1 - 1e-6), SW.cutoff, SW.cutoff + 1e-9, SW.cutoff + 0.5):
        out = at(r)
        assert out["energy"] == 0 and np.all(out["forces"] == 0), r
    near = at(SW.cutoff - 0.05)
    assert -1e-15 < near["energy"] < 0 and np.all(np.isfinite(near["forces"]))

    from jaxmd_thermal.derivatives import calculate
    from jaxmd_thermal.neighbors import allocate
    from jaxmd_thermal.system import System

    with double_precision():
        system = System.from_atoms(Atoms("Si3", positions=[[0, 0, 0], [SW.cutoff, 0, 0], [0, 2.3, 0]]))
        neighbors = allocate(system, SW.cutoff, 0.5)

        @jax.jit
        @jax.grad
        def gradient(p):
            out = calculate(p, system.positions, system.cell, system.numbers, neighbors, ("energy", "forces"))
            return out["energy"] + (out["forces"] ** 2).sum()

        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(SW)))


def test_leaves_and_cutoff():
    assert SW.cutoff == pytest.approx(1.8 * 2.0951)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(SW)) and len(jax.tree.leaves(SW)) == 10
    with pytest.raises(InputError, match="cutoff"):
        StillingerWeber(1.0, 2.0, 7.0, 0.6, 4.0, 0.0, -1.8, 21.0, 1.2, -1 / 3)
