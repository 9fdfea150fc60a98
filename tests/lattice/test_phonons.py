"""Phonons against phonopy on the same force constants, closed forms, differences and published DFT sets."""

from __future__ import annotations

import csv
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmd_thermal import units
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.lattice import phonons as lattice_phonons
from jaxmd_thermal.lattice import symmetry
from jaxmd_thermal.lattice.crystal import Crystal
from jaxmd_thermal.lattice.density import density_of_states, mesh_phonons
from jaxmd_thermal.lattice.force_constants import ForceConstants, empty_force_constants, force_constants
from jaxmd_thermal.lattice.phonons import bands, interpolation, phonons
from jaxmd_thermal.lattice.thermodynamics import mean_square_displacements, thermodynamics
from jaxmd_thermal.potentials import StillingerWeber

RANDOM = np.random.default_rng(0).uniform(-0.5, 0.5, (12, 3))
SPECIAL = np.array([[0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 0]])


@pytest.fixture(scope="module")
def same_units():
    """phonopy with our constants: its own are those of 1986, which move frequencies by 1.3e-7."""
    from phonopy.physical_units import set_physical_units

    set_physical_units(
        KB_J=1.380649e-23,
        PlanckConstant=2e-15 * np.pi * units.PLANCK_REDUCED,
        Avogadro=6.02214076e23,
        AMU=units.ELEMENTARY_CHARGE * units.AMU_A2_FS2 * 1e-10,
        EV=units.ELEMENTARY_CHARGE,
    )
    yield
    set_physical_units()


@pytest.fixture(scope="module")
def silicon():
    return force_constants(StillingerWeber.silicon(), "silicon", (2, 2, 2), displacement=None)


def spring_crystal(lattice, supercell, spring):
    """One atom of mass 1 a cell; `spring(vector)` is the (3, 3) matrix that ties it to a neighbour at `vector`."""
    unit = Crystal(np.array(lattice, float), np.zeros((1, 3)), np.array([18]), np.array([1.0]))
    fc = empty_force_constants(symmetry.geometry_of(unit, supercell), np.zeros((1, int(np.prod(supercell)), 3, 3)))
    fc2, images = np.zeros_like(fc.fc2), fc.images2
    for atom, ((count, begin),) in enumerate(images.multiplicity):
        if atom != images.primitive_rows[0]:
            for vector in images.vectors[begin : begin + count] @ fc.crystal.lattice:
                fc2[0, atom] -= spring(vector)
    fc2[0, images.primitive_rows[0]] = -fc2[0].sum(axis=0)
    return fc.replace(fc2=fc2)


def published(shared, name):
    path = shared / "data" / name
    if not path.exists():
        pytest.skip(f"no data/{name}")
    if "fc3" in name:
        pytest.importorskip("phono3py")
    return ForceConstants.from_phono3py(path)


def theirs(fc, nac):
    phonopy = symmetry.phonopy_object(fc.geometry)
    phonopy.force_constants = np.array(fc.fc2)
    if nac:
        phonopy.nac_params = {
            "born": fc.crystal.born, "dielectric": fc.crystal.dielectric, "factor": units.COULOMB, "method": "gonze",
        }  # fmt: skip
    return phonopy


@pytest.mark.parametrize("name", ["dft_fc3/Si.yaml.xz", "dft_phonons/ZnO_wz.yaml.xz", "dft_phonons/TiPN3.yaml.xz"])
def test_equals_phonopy(shared, same_units, name):
    fc = published(shared, name)
    q = np.concatenate([RANDOM, SPECIAL])
    for nac in (False, True) if fc.crystal.born is not None else (False,):
        reference = theirs(fc, nac)
        reference.run_qpoints(q, with_eigenvectors=True, with_group_velocities=True)
        solved = phonons(fc, q, nac, velocities=True)
        assert np.max(np.abs(solved.frequencies - reference.qpoints.frequencies)) < 1e-6
        # With NAC phonopy takes differences of the dynamical matrix.
        tolerance = 3e-4 if nac else 1e-8
        velocities = solved.group_velocities[: len(RANDOM)]
        assert np.max(np.abs(velocities - reference.qpoints.group_velocities[: len(RANDOM)])) < tolerance
        if nac:
            reference.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 0.3, 0])
            along = phonons(fc, [[0, 0, 0]], nac, directions=[[1, 0.3, 0]])
            assert np.max(np.abs(along.frequencies - reference.qpoints.frequencies)) < 1e-6
    if fc.crystal.born is None:
        with pytest.raises(InputError, match="Born charges"):
            phonons(fc, q, nac=True)


def test_chain_and_cubic_closed_forms():
    # Equal springs in all directions on a simple cubic lattice: omega^2 = 4 k/m sum_i sin^2(q_i a/2).
    k, a = 0.7, 3.0
    fc = spring_crystal(np.eye(3) * a, (4, 4, 4), lambda v: k * np.eye(3) * (np.linalg.norm(v) < 1.1 * a))
    q = np.concatenate([RANDOM, SPECIAL])
    expected = units.THZ * np.sqrt(4 * k * np.sum(np.sin(np.pi * q) ** 2, axis=1))
    found = phonons(fc, q, velocities=True)
    np.testing.assert_allclose(found.frequencies, np.tile(expected[:, None], 3), atol=1e-6)
    speed = units.THZ**2 * 4 * k * np.sin(np.pi * q) * np.cos(np.pi * q) * np.pi * a / np.maximum(expected, 1)[:, None]
    np.testing.assert_allclose(found.group_velocities[:12, 1], speed[:12], atol=1e-9)
    assert np.all(found.velocity_operator[12] == 0)  # acoustic modes at Gamma: no velocity


def test_fcc_closed_form():
    # Central springs between nearest neighbours, along [100]: omega^2 = 8 k/m sin^2(q a/4) and twice 4 k/m sin^2(q a/4).
    k, a = 0.5, 4.0
    near = a / np.sqrt(2)
    lattice = 0.5 * a * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    fc = spring_crystal(lattice, (4, 4, 4), lambda v: k * np.outer(v, v) / near**2 * (np.linalg.norm(v) < 1.1 * near))
    x = np.linspace(0.05, 1, 7)
    found = phonons(fc, x[:, None] * np.array([[0, 0.5, 0.5]])).frequencies
    wave = units.THZ * np.abs(np.sin(np.pi * x / 2))
    np.testing.assert_allclose(found, np.stack([2 * wave, 2 * wave, np.sqrt(8) * wave], 1) * np.sqrt(k), atol=1e-6)


def test_velocities_are_differences_of_frequencies(silicon):
    step = 1e-5
    solved = phonons(silicon, RANDOM, velocities=True)
    numeric = np.zeros((len(RANDOM), 6, 3))
    for axis in range(3):
        shift = step * np.eye(3)[axis] @ silicon.crystal.lattice.T  # Cartesian step in fractions
        up, down = (phonons(silicon, RANDOM + s * shift).frequencies for s in (1, -1))
        numeric[..., axis] = (up - down) / (2 * step)
    assert np.max(np.abs(solved.group_velocities - numeric)) < 1e-5
    diagonal = np.real(np.einsum("qcss->qsc", solved.velocity_operator))
    assert np.max(np.abs(diagonal - numeric)) < 1e-5
    operator = solved.velocity_operator
    assert np.max(np.abs(operator - operator.conj().transpose(0, 1, 3, 2))) < 1e-10


def test_gradient_is_finite_and_right_at_degeneracies(silicon):
    at = jax.tree.map(np.asarray, interpolation(silicon.crystal, silicon.images2))
    with double_precision():
        fc2 = jnp.asarray(silicon.fc2)

        def total(scale, q):  # scaling keeps the symmetry, and so the degeneracies
            f, e = lattice_phonons.modes(fc2 * scale, at, jnp.asarray(q) @ silicon.crystal.reciprocal)
            return jnp.sum(f**3) + jnp.sum(jnp.abs(e[:3]) ** 2 * f**2)

        gradient, total = jax.jit(jax.grad(total)), jax.jit(total)
        for q in ([0.0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0]):
            slope = float(gradient(1.0, np.array(q)))
            numeric = float((total(1 + 1e-5, np.array(q)) - total(1 - 1e-5, np.array(q))) / 2e-5)
            assert np.isfinite(slope) and slope == pytest.approx(numeric, rel=1e-7)


def test_imaginary_modes_are_reported(silicon):
    assert phonons(silicon, np.concatenate([RANDOM, SPECIAL])).imaginary == []
    upside_down = phonons(silicon.replace(fc2=-silicon.fc2), RANDOM)
    assert len(upside_down.imaginary) == RANDOM.shape[0] * 6
    assert "worst is band 0" in upside_down.describe_imaginary() and "not a minimum" in upside_down.describe_imaginary()


def test_bands(silicon):
    found = bands(silicon, points=21)
    assert [s[0] for s in found.segments][:2] == ["Γ", "X"]
    assert all(len(d) == len(p.qpoints) for d, p in zip(found.distances, found.phonons, strict=True))
    assert np.all(np.diff(np.concatenate(found.distances)) >= 0)
    np.testing.assert_allclose(found.phonons[0].frequencies[0, :3], 0, atol=1e-5)


def test_density_of_states_equals_phonopy(silicon, same_units):
    reference = theirs(silicon, False)
    mesh = mesh_phonons(silicon, (7, 7, 7), eigenvectors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.run_mesh([7, 7, 7], is_gamma_center=True)
        assert len(reference.mesh.frequencies) == len(mesh.frequencies)
        at = np.linspace(-1, 20, 43)
        for sigma in (None, 0.3):
            reference.run_total_dos(
                sigma=sigma, freq_min=-1, freq_max=20, freq_pitch=0.5, use_tetrahedron_method=sigma is None
            )
            found = density_of_states(mesh, sigma, at, projected=True)
            np.testing.assert_allclose(reference.total_dos.frequency_points, at, atol=1e-9)
            np.testing.assert_allclose(found.total, reference.total_dos.dos, atol=2e-5)
            np.testing.assert_allclose(found.projected.sum(axis=0), found.total, atol=1e-12)
            np.testing.assert_allclose(found.projected[0], found.projected[1], atol=1e-12)
    fine = density_of_states(mesh, None, points=2001)
    assert np.trapezoid(fine.total, fine.frequencies) == pytest.approx(6.0, abs=0.05)  # flat bands between the points
    with pytest.raises(InputError, match="sigma is -1"):
        density_of_states(mesh, -1.0)
    with pytest.raises(InputError, match="eigenvectors=True"):
        density_of_states(mesh_phonons(silicon, (2, 2, 2)), projected=True)


def test_thermodynamics_equals_phonopy(silicon, same_units):
    reference = theirs(silicon, False)
    temperatures = [0.0, 20.0, 300.0, 1500.0]
    mesh = mesh_phonons(silicon, (7, 7, 7), eigenvectors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.run_mesh([7, 7, 7], is_gamma_center=True)
        reference.run_thermal_properties(temperatures=temperatures, cutoff_frequency=0.01)
        expected = reference.thermal_properties
        found = thermodynamics(mesh, temperatures)
        np.testing.assert_allclose(found.free_energy, expected.free_energy, rtol=1e-8)
        np.testing.assert_allclose(found.entropy, expected.entropy, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found.heat_capacity, expected.heat_capacity, rtol=1e-8, atol=1e-12)
        reference.run_mesh([7, 7, 7], is_gamma_center=True, is_mesh_symmetry=False, with_eigenvectors=True)
        reference.run_thermal_displacement_matrices(temperatures=temperatures, freq_min=0.01)
        moved = reference.thermal_displacement_matrices.thermal_displacement_matrices
    np.testing.assert_allclose(mean_square_displacements(mesh, temperatures), moved, rtol=1e-6, atol=1e-9)
    assert found.imaginary == "" and found.excluded == pytest.approx(3 / (343 * 6))
    slope = (thermodynamics(mesh, 301).free_energy - thermodynamics(mesh, 299).free_energy) / 2 * -1e3
    np.testing.assert_allclose(slope, found.entropy[2], rtol=1e-5)
    with pytest.raises(InputError, match="temperatures"):
        thermodynamics(mesh, [-3.0])


@pytest.mark.slow
def test_published_sets_equal_the_manifest(shared):
    folder = shared / "data" / "dft_phonons"
    if not folder.exists():
        pytest.skip("no data/dft_phonons")
    with open(folder / "manifest.csv") as file:
        rows = list(csv.DictReader(file))
    worst = {}
    for row in rows:
        if int(row["natoms_prim"]) > 7:  # the manifest's grid of 19^3 is theirs
            continue
        if row["key"].endswith("_p3") or row["key"].endswith("_zb") or row["key"].endswith("_rd444"):
            pytest.importorskip("phono3py")
        fc = ForceConstants.from_phono3py(folder / f"{row['key']}.yaml.xz")
        mesh = mesh_phonons(fc, (19, 19, 19), nac=bool(int(row["nac"])))
        thermal = thermodynamics(mesh, 300.0)
        found = {
            "fmax_THz": mesh.frequencies.max(), "fmin_THz": mesh.frequencies.min(), "F300_kJmol": thermal.free_energy[0],
            "S300_JKmol": thermal.entropy[0], "CV300_JKmol": thermal.heat_capacity[0],
        }  # fmt: skip
        worst[row["key"]] = {name: abs(value - float(row[name])) for name, value in found.items()}
        assert (thermal.imaginary != "") == (float(row["fmin_THz"]) < -0.01), row["key"]
    for key, difference in worst.items():
        assert difference["fmax_THz"] < 3e-4 and difference["fmin_THz"] < 3e-3, (key, difference)
        assert difference["F300_kJmol"] < 3e-4 and difference["S300_JKmol"] < 1e-3, (key, difference)
        assert difference["CV300_JKmol"] < 5e-4, (key, difference)


def test_correction_keeps_the_symmetry_of_the_grid(shared, same_units):
    """The sum over dipoles is cut off at a sphere round q, so its value depends on which of equivalent q-points is taken. In
    the first Brillouin zone stars are equal to rounding, and phonopy's frequencies of its own grid are ours."""
    fc = published(shared, "dft_phonons/TiO2_anatase.yaml.xz")  # body-centred: a skewed primitive cell
    mesh = (4, 4, 4)
    grid = mesh_phonons(fc, mesh, True).grid
    everywhere = phonons(fc, grid.qpoints, True).frequencies
    stars = everywhere[grid.irreducible][grid.star]
    assert np.abs(everywhere - stars).max() < 1e-8
    outside = phonons(fc, grid.addresses / grid.mesh, True).frequencies
    assert np.abs(outside - stars).max() > 1e-4  # so it matters
    reference = theirs(fc, True)
    reference.run_mesh(mesh, is_gamma_center=True)
    found, weights = reference.mesh.frequencies, reference.mesh.weights
    assert np.array_equal(np.sort(weights), np.sort(grid.weights))
    mine = np.sort(np.repeat(everywhere[grid.irreducible], grid.weights, axis=0), axis=0)
    assert np.abs(mine - np.sort(np.repeat(found, weights, axis=0), axis=0)).max() < 1e-6


@pytest.mark.parametrize("name", ["Si", "NaCl", "NaCl_nac", pytest.param("AlN_wz_nac", marks=pytest.mark.slow)])
def test_published_frequencies(shared, name):
    """phono3py's frequencies of the same DFT forces: to 1e-12 but for its units, and with NAC for its e^2 of 1986 (4e-7)."""
    nac = name.endswith("_nac")
    fc = published(shared, f"dft_fc3/{name.removesuffix('_nac')}.yaml.xz")
    reference = np.load(shared / "data" / "dft_fc3" / f"{name}_tetrahedron.npz")
    found = phonons(fc, reference["qpoints"], nac).frequencies
    difference = np.abs(found - reference["frequencies"] * units.THZ / 15.633302300230191)
    assert difference.max() < (5e-6 if nac else 1e-6)
    assert nac or difference[1:].max() < 1e-10
