"""Lennard-Jones against the formulas written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from jaxmd_thermal import evaluate
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials import LennardJones
from tests.oracles import lennard_jones

DISTANCES = np.array([1.9, 2.3, 3.9, 4.1, 4.6, 4.99, 5.2])

MATRIX, KINDS = np.array([[0.02, 0.03], [0.03, 0.05]]), ("cut", None, (18, 36))


def dimers(distances):
    """One pair at each distance along y, the pairs 20 Å apart."""
    positions = [[20.0 * n, y, 0.0] for n, r in enumerate(distances) for y in (0.0, r)]
    return Atoms(f"Ar{len(positions)}", positions=positions)


@pytest.mark.parametrize("truncation, start", [("cut", None), ("shift", None), ("switch", 4.0)])
def test_dimer(truncation, start):
    potential = LennardJones(0.02, 2.0, 5.0, truncation, switch_start=start)
    phi, slope = lennard_jones(DISTANCES, 0.02, 2.0, 5.0, start)
    if truncation == "shift":
        phi = np.where(DISTANCES < 5.0, phi - 4 * 0.02 * ((2 / 5) ** 12 - (2 / 5) ** 6), 0.0)
    out = evaluate(potential, dimers(DISTANCES), ("energies", "forces"))
    np.testing.assert_allclose(out["energies"], np.repeat(phi / 2, 2), rtol=1e-12, atol=1e-18)
    forces = out["forces"].reshape(-1, 2, 3)
    np.testing.assert_allclose(forces[:, 0, 1], slope, rtol=1e-12, atol=1e-16)
    np.testing.assert_array_equal(forces[:, 0], -forces[:, 1])


def test_species_choose_their_parameters():
    epsilon, sigma = np.array([[0.02, 0.03], [0.03, 0.05]]), np.array([[2.0, 2.2], [2.2, 2.5]])
    potential = LennardJones(epsilon, sigma, 6.0, species=(18, 36))
    pairs = dimers([2.6] * 4)
    pairs.numbers = [18, 18, 18, 36, 36, 18, 36, 36]
    kinds = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]).T
    expected = lennard_jones(2.6, epsilon[tuple(kinds)], sigma[tuple(kinds)], 6.0)[0]
    energies = evaluate(potential, pairs, "energies")["energies"]
    np.testing.assert_allclose(energies, np.repeat(expected / 2, 2), rtol=1e-12)
    with pytest.raises(InputError, match="Si"):
        evaluate(potential, Atoms("Si2", positions=[[0, 0, 0], [2.6, 0, 0]]))


@pytest.mark.parametrize(
    "arguments, word",
    [
        ((0.02, 2.0, 5.0, "smooth"), "smooth"),
        ((0.02, 2.0, -5.0), "cutoff"),
        ((0.02, 2.0, 5.0, "switch"), "switch_start"),
        ((0.02, 2.0, 5.0, "switch", 6.0), "switch_start"),
        (([[0.02, 0.03], [0.03, 0.05]], 2.0, 5.0), "species"),
        # The pair route takes phi_ij = phi_ji: without symmetry the forces would not be the gradient of the energy.
        (
            (MATRIX + np.array([[0, 0.01], [0, 0]]), 2.0, 5.0, *KINDS),
            r"epsilon is 0.04 eV for the species \(18, 36\) and 0.03 eV for",
        ),
        (
            (0.02, 80 * MATRIX + np.array([[0, 0], [0.1, 0]]), 5.0, *KINDS),
            r"sigma is .* Å for .* make the matrix symmetric",
        ),
        ((MATRIX, np.full((3, 3), 2.0), 5.0, *KINDS), r"sigma has the shape \(3, 3\), and species is \(18, 36\)"),
        (([0.02, 0.03], 2.0, 5.0, *KINDS), r"epsilon has the shape \(2,\)"),
        ((0.02, np.array([2.0]), 5.0), r"sigma has the shape \(1,\), and species is None"),
    ],
)
def test_refusals(arguments, word):
    with pytest.raises(InputError, match=word):
        LennardJones(*arguments)


def test_matrices_stay_leaves_of_a_pytree():
    """Through jit and grad (traced), as a tree of shapes, stacked, and as gradients that are not symmetric."""
    potential = LennardJones(MATRIX, 2.0, 5.0, *KINDS)
    assert jax.tree.leaves(jax.tree.map(lambda _: object(), potential)) and jax.eval_shape(lambda p: p, potential)
    assert jax.jit(lambda p: p)(potential).epsilon.shape == (2, 2)
    assert jax.tree.map(lambda *x: jnp.stack(x), potential, potential).sigma.shape == (2,)
    gradient = jax.grad(lambda p: p.epsilon[0, 1])(potential)
    np.testing.assert_array_equal(gradient.epsilon, [[0.0, 1.0], [0.0, 0.0]])
