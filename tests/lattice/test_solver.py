"""Force constants from displaced cells: our linear maps beside the solvers of phonopy and phono3py on the same forces."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import solver, symmetry
from jaxmd_thermal.lattice.displaced import displaced_forces
from jaxmd_thermal.lattice.plans import displacement_plan
from jaxmd_thermal.potentials import LennardJones

PAIR = LennardJones(
    [[0.5, 0.9, 0.0], [0.9, 0.7, 0.0], [0.0, 0.0, 0.6]], [[2.4, 1.9, 2.0], [1.9, 2.6, 2.0], [2.0, 2.0, 2.2]],
    cutoff=4.2, truncation="switch", switch_start=3.2, species=(13, 7, 14),
)  # fmt: skip


def wurtzite():
    atoms = bulk("AlN", "wurtzite", a=3.2, c=5.0, u=0.37)  # not relaxed: forces along c remain in the undisplaced cell
    atoms.set_chemical_symbols([("Al", "N")[k] for k in (0, 1, 0, 1)])
    return atoms


def triclinic():
    """Two atoms related by inversion alone."""
    cell = [[3.1, 0.0, 0.0], [0.7, 3.3, 0.0], [0.4, 0.9, 3.6]]
    return Atoms("Si2", cell=cell, scaled_positions=[[0.2, 0.23, 0.27], [-0.2, -0.23, -0.27]], pbc=True)


CASES = {
    "rocksalt": (lambda: bulk("AlN", "rocksalt", a=4.2), (3, 3, 3), (3, 2, 2)),
    "wurtzite": (wurtzite, (3, 3, 2), (2, 2, 1)),
    "triclinic": (triclinic, (2, 2, 2), (2, 1, 1)),
}


@pytest.mark.parametrize(
    "name", ["wurtzite", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rocksalt", "triclinic"))]
)
def test_equal_to_the_solvers_of_phonopy_and_phono3py(name):
    """Before the projections, to rounding: both solve the same least squares. After them, theirs are approximate."""
    pytest.importorskip("phono3py")
    build, second, third = CASES[name]
    geometry = symmetry.geometry_of(build(), second, third)
    theirs2, theirs3 = symmetry.phonopy_object(geometry), symmetry.phono3py_object(geometry)
    theirs2.generate_displacements(distance=0.03)
    theirs3.generate_displacements(distance=0.03)
    (_, plan2), (_, plan3) = (displacement_plan(geometry, order, 0.03) for order in (2, 3))
    for plan, supercell, cells in (
        (plan2, theirs2.supercell, theirs2.supercells_with_displacements),
        (plan3, theirs3.supercell, theirs3.supercells_with_displacements),
    ):
        moves = np.stack([c.positions - supercell.positions for c in cells])
        assert np.abs(moves - plan.moves).max() < 1e-12
    forces2, forces3 = (
        displaced_forces(PAIR, symmetry.system_of(t.supercell), p.moves)
        for t, p in ((theirs2, plan2), (theirs3, plan3))
    )
    with warnings.catch_warnings(), double_precision():
        warnings.simplefilter("ignore")
        theirs2.forces, theirs3.forces = forces2, forces3
        theirs2.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
        theirs3.produce_fc3()
        ours2 = np.asarray(jax.jit(solver.rows_of_fc2)(jnp.asarray(forces2), plan2))
        ours3 = np.asarray(jax.jit(solver.rows_of_fc3)(jnp.asarray(forces3), plan3))
    reference = theirs2.force_constants
    assert np.abs(ours2 - reference).max() < 1e-11 * np.abs(reference).max()
    reference = theirs3.fc3
    if reference.shape != ours3.shape:
        reference = reference[theirs3.primitive.p2s_map]
    # phono3py subtracts the fc2 of the undisplaced cell, which cancels over both signs only to rounding.
    assert np.abs(ours3 - reference).max() < 1e-10 * np.abs(reference).max()


def test_displacements_that_leave_a_direction_open_are_refused():
    geometry = symmetry.geometry_of(triclinic(), (1, 1, 1))
    phonopy = symmetry.phonopy_object(geometry)
    where = symmetry.operations_of(phonopy), symmetry.images_of(phonopy.primitive, phonopy.supercell)
    x, y, z = 0.03 * np.eye(3)
    with pytest.raises(InputError, match="direction of row 0 undetermined"):
        solver.second_order([(0, x), (0, y)], *where)
    inversion_alone = solver.second_order([(0, x), (1, x), (0, y), (1, y), (0, z), (1, z)], *where)
    assert np.abs(inversion_alone.terms.weights).max() > 0
    low = symmetry.phonopy_object(symmetry.geometry_of(Atoms("SiAlN", cell=triclinic().cell, pbc=True,
                                  scaled_positions=[[0, 0, 0], [0.3, 0.4, 0.5], [0.6, 0.8, 0.3]]), (1, 1, 1)))  # fmt: skip
    where = symmetry.operations_of(low), symmetry.images_of(low.primitive, low.supercell)
    with pytest.raises(InputError, match="not against it"):
        solver.second_order([(k, u) for k in range(3) for u in (x, y, z)], *where)
    with pytest.raises(InputError, match="no displaced atom is equivalent to atom 2"):
        solver.second_order([(k, s * u) for k in range(2) for u in (x, y, z) for s in (1, -1)], *where)
