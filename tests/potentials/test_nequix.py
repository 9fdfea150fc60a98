"""Nequix: agreement with the reference implementation, symmetries, its weight files and what can be wrong with them.

The parity cases are one graph: all reference structures side by side, with neighbours from explicit image loops. So one
compilation serves 36 cases, and our neighbour list is not trusted with its own proof; `evaluate` is checked on top.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from scipy.special import expit, ndtri

from jaxmd_thermal import check_heat_flux, evaluate, hessian_columns, simulate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.derivatives import calculate
from jaxmd_thermal.dynamics import driver
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.graph import PADDING, Graph
from jaxmd_thermal.io.nqx import read_nqx
from jaxmd_thermal.neighbors import NeighborList, NeighborPlan, allocate
from jaxmd_thermal.potentials import Nequix
from jaxmd_thermal.potentials.nequix import SILU_NORM, activation, envelope, radial_basis
from jaxmd_thermal.potentials.tensor_product import paths, spherical_harmonics
from jaxmd_thermal.system import System
from tests.oracles import brute_force_pairs, structure

jax = pytest.importorskip("jax")
jnp = jax.numpy
MODELS = ("nequix-mp-1", "nequix-mp-1-pft", "nequix-oam-1", "nequix-oam-1-pft")
SMALL = Nequix.create(3, ("Si", "Ge"), 3.6, channels=(6, 4, 3), layers=2, radial=4, hidden=(8, 8), neighbors=8.0)


@pytest.fixture(scope="module")
def models(shared):
    return {name: read_nqx(shared / "data" / "nequix" / f"{name}.nqx") for name in (*MODELS, "nequix-omat-1")}


@pytest.fixture(scope="module")
def inputs(shared):
    return read(shared / "data" / "parity" / "inputs.extxyz", ":")


def reference(shared, atoms, model):
    return np.load(shared / "data" / "parity" / "f64" / f"{atoms.info['name']}__{model}.npz")


def side_by_side(structures, cutoff):
    """Positions, numbers and neighbours of many structures as one; every edge is a ghost of its own."""
    positions = np.concatenate([a.positions for a in structures])
    rows, owners, shifts, first = [], [], [], 0
    for a in structures:
        i, j, vectors = brute_force_pairs(a.positions, a.cell.array, a.pbc, cutoff)
        rows.append(first + i), owners.append(first + j)
        shifts.append(vectors - (a.positions[j] - a.positions[i]))
        first += len(a)
    rows, owners, shifts = np.concatenate(rows), np.concatenate(owners), np.concatenate(shifts)
    n, slots = len(positions), max(np.bincount(rows).max(), 1)
    index = np.tile(np.arange(n, dtype=np.int32)[:, None], (1, slots))
    for atom in range(n):
        mine = np.flatnonzero(rows == atom)
        index[atom, : len(mine)] = n + mine
    neighbors = NeighborList(
        index=index,
        owner=owners.astype(np.int32),
        shift=np.concatenate([np.zeros((n, 3)), shifts]),  # Cartesian: the cell is the unit matrix
        reference_positions=positions,
        reference_cell=np.eye(3),
        status=np.uint32(0),
        required=np.zeros(5, np.int32),
        plan=NeighborPlan(cutoff, 0.0, (False,) * 3, slots, (0, 0, 0), (0, 0, 0), (1, 1, 1), 1),
    )
    return positions, np.concatenate([a.numbers for a in structures]), neighbors


@pytest.fixture(scope="module")
def together(inputs):
    """`together(potential, dtype, structures)` -> energies, forces of each structure; compiled once a precision."""

    @jax.jit
    def run64(potential, positions, numbers, neighbors):
        return calculate(potential, positions, jnp.eye(3), numbers, neighbors, ("energies", "forces"))

    @jax.jit
    def run32(potential, positions, numbers, neighbors):
        return calculate(
            potential, positions, jnp.eye(3), numbers, neighbors, ("energies", "forces"), dtype=jnp.float32
        )

    ends = np.cumsum([len(a) for a in inputs])[:-1]

    def run(potential, dtype="float64", structures=inputs):
        positions, numbers, neighbors = side_by_side(structures, potential.cutoff)
        with double_precision():
            out = {"float64": run64, "float32": run32}[dtype](potential, positions, numbers, neighbors)
            return np.split(np.asarray(out["energies"]), ends), np.split(np.asarray(out["forces"]), ends)

    return run


@pytest.mark.parametrize("model", [MODELS[0], *(pytest.param(m, marks=pytest.mark.slow) for m in MODELS[1:])])
def test_parity_float64(model, models, inputs, together, shared):
    """Independent implementations agree to rounding: 1e-12 eV per atom, 1e-11 eV/Å."""
    for atoms, energies, forces in zip(inputs, *together(models[model]), strict=True):
        expected = reference(shared, atoms, model)
        np.testing.assert_allclose(energies, expected["node_energies"].ravel(), rtol=0, atol=1e-12)
        assert abs(energies.sum() - expected["energy"]) <= 1e-12 * len(atoms)
        np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_parity_float32(model, models, inputs, together, shared):
    """Single precision loses 1e-6 of energies of 5 eV in a network of this depth: 2e-5 eV per atom, 1e-4 eV/Å."""
    for atoms, energies, forces in zip(inputs, *together(models[model], "float32"), strict=True):
        expected = reference(shared, atoms, model)
        assert abs(energies.sum() - expected["energy"]) <= 2e-5 * len(atoms)
        np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-4)


def test_parity_of_evaluate_with_stress(models, inputs, shared):
    """The whole way through our own neighbour list, many images of a small cell included."""
    atoms = next(a for a in inputs if a.info["name"] == "NaCl_rs_rs1")
    for model in MODELS[:2]:
        expected, out = reference(shared, atoms, model), evaluate(models[model], atoms, ("energy", "forces", "stress"))
        assert abs(out["energy"] - expected["energy"]) <= 1e-12 * len(atoms)
        np.testing.assert_allclose(out["forces"], expected["forces"], rtol=0, atol=1e-11)
        np.testing.assert_allclose(out["stress"], expected["stress"], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Si_dia", "Si_dia_rs1", "NaCl_rs", "BeO_wz", "BeO_wz_rs1", "SnSe32_rattled"])
def test_parity_of_stress_and_hessians(name, models, inputs, shared):
    atoms = next(a for a in inputs if a.info["name"] == name)
    for model in MODELS:
        expected = reference(shared, atoms, model)
        out = evaluate(models[model], atoms, ("energy", "forces", "stress"))
        np.testing.assert_allclose(out["stress"], expected["stress"], rtol=0, atol=1e-12)
        if "hessian" in expected:
            columns = hessian_columns(models[model], atoms, range(3 * len(atoms)))
            np.testing.assert_allclose(
                columns.reshape(expected["hessian"].shape).T, expected["hessian"], rtol=0, atol=1e-9
            )


@pytest.mark.slow
def test_model_without_references(models, inputs, together):
    """nequix-omat-1: forces are the slope of its energy, and both turn with the structure."""
    model = models["nequix-omat-1"]
    energies, forces = together(model)
    rng = np.random.default_rng(1)
    along, step = [rng.standard_normal(a.positions.shape) for a in inputs], 1e-4

    def moved(sign):
        out = [a.copy() for a in inputs]
        for a, d in zip(out, along, strict=True):
            a.positions += sign * step * d
        return together(model, structures=out)[0]

    for e1, e0, f, d in zip(moved(1), moved(-1), forces, along, strict=True):
        slope = (e1.sum() - e0.sum()) / (2 * step)
        # Central differences: step squared times the third derivative (up to 1e2 eV/Å^3), and rounding of 1e-14/step.
        assert abs(slope + np.sum(f * d)) < 1e-5 * max(1.0, np.abs(f).max())
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turned = [Atoms(a.numbers, a.positions @ turn.T, cell=a.cell.array @ turn.T, pbc=a.pbc) for a in inputs]
    again, turned_forces = together(model, structures=turned)
    for e1, e0, f1, f0 in zip(again, energies, turned_forces, forces, strict=True):
        np.testing.assert_allclose(e1, e0, rtol=0, atol=1e-11)
        np.testing.assert_allclose(f1, f0 @ turn.T, rtol=0, atol=1e-11)


def test_edge_functions():
    """Fingerprints of the architecture: basis at 2.5 Å and near the cutoff, harmonics of (1, 2, 3), paths, the silu norm."""
    with double_precision():
        basis = np.asarray(radial_basis(jnp.array([2.5, 5.9, 12.0]) ** 2, 6.0, 8, 6))
        harmonics = np.asarray(spherical_harmonics(jnp.array([[1.0, 2.0, 3.0]]), 3))[0]
    expected = [0.1209416287, 0.0626039937, -0.0885354170, -0.1084332979]
    np.testing.assert_allclose(basis[0, :4], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(basis[1, :3], [7.199349e-7, -1.437896e-6, 2.151917e-6], rtol=1e-6)
    assert np.all(basis[2] == 0)
    x, y, z = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    s = np.sqrt(3.0)
    second = [s * x * z, s * x * y, y * y - (x * x + z * z) / 2, s * y * z, s / 2 * (z * z - x * x)]
    np.testing.assert_allclose(harmonics[1:4], s * np.array([x, y, z]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(harmonics[4:9], np.sqrt(5.0) * np.array(second), rtol=0, atol=1e-14)
    third = [1.0381744, 1.1736912, 0.1855769, -1.1111678, 0.5567306, 1.5649216, 0.7187361]
    np.testing.assert_allclose(harmonics[9:16], third, rtol=0, atol=1e-7)
    assert [len(paths(*x)) for x in ((0, 3, 3), (3, 3, 3), (3, 3, 0))] == [4, 23, 4]
    normal = ndtri(np.linspace(0, 1, 1000003)[1:-1])
    assert abs(np.sqrt(np.mean((normal * expit(normal)) ** 2)) - SILU_NORM) < 1e-15


def test_cutoff_is_smooth_to_second_order():
    with double_precision():
        function = envelope
        for order in range(3):
            inside = float(function(1.0 - 1e-6, 6))
            assert abs(inside) < 1e3 * 1e-6 ** (3 - order) + 1e-12  # rounding of terms of order 50
            assert float(function(1.0 + 1e-6, 6)) == 0.0
            function = jax.grad(function)
        assert float(envelope(0.0, 6)) == 1.0


def test_activation_has_unit_second_moment():
    x = np.random.default_rng(0).standard_normal(400_000)
    assert abs(np.mean(np.asarray(activation(x)) ** 2) - 1.0) < 0.02  # four standard errors


@pytest.mark.slow
def test_blocks_and_empty_slots_do_not_matter():
    system = structure(symbols="Si3Ge2")
    results = []
    with double_precision():
        plan = allocate(system, SMALL.cutoff, 0.0).plan
        for block, more in ((8, 0), (2, 0), (3, 5), (None, 0)):
            potential = replace(SMALL, network=SMALL.network.clone(block=block))
            neighbors = allocate(system, SMALL.cutoff, 0.0, plan=replace(plan, slots=plan.slots + more))
            out = jax.jit(calculate, static_argnums=5)(
                potential, system.positions, system.cell, system.numbers, neighbors, ("energies", "forces")
            )
            results.append(jax.tree.map(np.asarray, out))
    assert np.abs(results[0]["forces"]).max() > 1e-3
    for other in results[1:]:
        for name, values in results[0].items():
            np.testing.assert_allclose(other[name], values, rtol=0, atol=1e-13 * max(1.0, np.abs(values).max()))


def test_heat_flux():
    """The exact flux of the network against the unfolded reference and the open cluster.

    With 16 and 32 channels sums over features go in vectors of that width, as they do with the published weights.
    """
    small = Nequix.create(3, ("Si", "Ge"), 3.6, channels=(16, 32, 3), layers=2, radial=4, hidden=(8, 8), neighbors=8.0)
    report = check_heat_flux(small, structure(symbols="Si2Ge2", seed=4))
    assert report.passed and report.error_unfolded < 1e-10, str(report)


def test_empty_slots_feel_nothing():
    with double_precision():
        far = jnp.array([[PADDING * 3.6, 0.0, 0.0]])
        slope = jax.jacfwd(lambda x: radial_basis(jnp.sum(x**2, axis=-1), 3.6, 4, 6))(far)
    assert np.all(np.asarray(slope) == 0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_isolated_atom(dtype):
    """Its own energy of the model, whatever stands in the references, and no force."""
    out = evaluate(SMALL, Atoms("Si"), ("energy", "forces"), dtype=dtype)
    assert np.isfinite(out["energy"]) and np.all(out["forces"] == 0)


def test_unknown_element_and_coinciding_atoms():
    with pytest.raises(InputError, match=r"does not know Ga.*Si, Ge"):
        evaluate(SMALL, bulk("GaAs", "zincblende", a=5.65))
    with pytest.raises(InputError, match="one site"):
        evaluate(SMALL, Atoms("Si2", [[0, 0, 0], [0, 0, 1e-5]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"channels": (4, 4, 4, 4), "l_edge": 2}, "degrees"),
        ({"channels": ()}, "degrees"),
        ({"neighbors": 0.0}, "neighbors"),
        ({"cutoff": -1.0}, "cutoff"),
    ],
)
def test_sizes_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Nequix.create(0, ("Si",), **{"cutoff": 4.0, **options})


class Killed(Exception):
    pass


@pytest.mark.slow
def test_network_in_the_run_loop_resumes_bitwise_and_conserves_energy(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "CHUNK_SECONDS", 1e-9)  # one frame a chunk
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    options = {"timestep": 1.0, "temperature": 300.0, "seed": 2}

    def kill(progress):
        if progress.step >= 6:
            raise Killed

    strong = replace(SMALL, scale=np.asarray(1000.0))  # random weights bind weakly
    whole = simulate(strong, atoms, "nve", 12, **options)
    with pytest.raises(Killed):
        simulate(strong, atoms, "nve", 12, out=tmp_path, progress=kill, **options)
    resumed = simulate(strong, atoms, "nve", 12, out=tmp_path, **options)
    assert np.array_equal(resumed.positions, whole.positions) and np.array_equal(resumed.velocities, whole.velocities)
    kinetic, total = whole.samples["kinetic_energy"][:, 0], whole.samples["conserved_energy"][:, 0]
    # Velocity Verlet: what is not conserved is of second order in the step, here (1 fs/100 fs)^2 of what is exchanged.
    assert np.ptp(kinetic) > 1e-3 and np.ptp(total) < 2e-2 * np.ptp(kinetic)


# --- weight files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(shared):
    return (shared / "data" / "nequix" / "nequix-mp-1.nqx").read_bytes()


def test_only_architecture_and_units_come_from_the_file(models):
    text = str(models["nequix-mp-1"].network) + str(models["nequix-mp-1"].species)
    assert "/" not in text and models["nequix-mp-1"].network.channels == (128, 64, 32, 32)
    assert sum(x.size for x in jax.tree.leaves(models["nequix-mp-1"].params)) + 89 == 707_658


def test_reading_weights_leaves_the_devices_to_the_command(shared, tmp_path):
    """The command line makes every core a device for the replicas, which only works before JAX has begun to compute."""
    code = (
        "import sys, jax\n"
        "from jaxmd_thermal.io.models import load_potential\n"
        "load_potential(sys.argv[1])\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert jax.device_count() == 3, jax.devices()"
    )
    weights = str(shared / "data" / "nequix" / "nequix-mp-1.nqx")
    done = subprocess.run([sys.executable, "-c", code, weights], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_damaged_files(weights, tmp_path):
    header, _, body = weights.partition(b"\n")
    fields = json.loads(header)

    def written(content: bytes):
        path = tmp_path / "model.nqx"
        path.write_bytes(content)
        return path

    def with_header(**changes):
        return written(json.dumps({**fields, **changes}).encode() + b"\n" + body)

    for cut in (len(weights) // 2, len(header) + 10, len(weights) - 300):
        with pytest.raises(InputError, match=r"ends or is damaged at its record .*get the file again"):
            read_nqx(written(weights[:cut]))
    with pytest.raises(InputError, match="does not begin with a line of JSON"):
        read_nqx(written(weights[100:]))
    with pytest.raises(InputError, match="lacks cutoff, atomic_numbers"):
        read_nqx(written(b"{}\n" + body))
    with pytest.raises(InputError, match=r"another architecture.*linear_2_0.*\(89, 256\) instead of .*\(89, 240\)"):
        read_nqx(with_header(hidden_irreps="128x0e + 64x1o + 32x2e + 16x3o"))
    with pytest.raises(InputError, match="like '128x0e"):
        read_nqx(with_header(hidden_irreps="128x0e + 64x1e"))
    with pytest.raises(InputError, match="index_weights = True"):
        read_nqx(with_header(index_weights=True))
    with pytest.raises(InputError, match="layers is 0"):
        read_nqx(with_header(n_layers=0))
    with pytest.raises(InputError, match="add_repulsion = True"):
        read_nqx(with_header(add_repulsion=True))
    strange = [
        ("scale", None), ("scale", float("nan")), ("scale", [1, 2]), ("scale", "abc"), ("shift", None), ("shift", float("inf")),
        ("cutoff", float("nan")), ("n_layers", 4.9), ("atomic_numbers", [1.5] * 89), ("radial_polynomial_p", float("inf")),
    ]  # fmt: skip
    for key, value in strange:
        with pytest.raises(InputError, match="cannot be understood"):
            read_nqx(with_header(**{key: value}))
    with pytest.raises(InputError, match="no elements"):
        read_nqx(with_header(atomic_numbers=[-1, *fields["atomic_numbers"][1:]]))
    broken = bytearray(weights)
    broken[len(weights) // 2 : len(weights) // 2 + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(InputError, match="not finite"):
        read_nqx(written(bytes(broken)))
    with pytest.raises(InputError, match="cannot read the weights"):
        read_nqx(tmp_path / "absent.nqx")
    first = len(header) + 1  # of the first record; whatever byte of its own header is lost, the error is ours
    for place in range(first, first + 128, 3):
        damaged = bytearray(weights)
        damaged[place] ^= 0x15
        try:
            read_nqx(written(bytes(damaged)))
        except InputError:
            pass
    for start in (b"PK\x03\x04", b"\x80\x04"):
        with pytest.raises(InputError, match="ends or is damaged at its record 'atomic energies'"):
            read_nqx(written(weights[:first] + start + weights[first + len(start) :]))


@pytest.mark.slow
def test_gradients_reach_every_weight(models):
    """Forces depend on all parameters that act on them, so a fit can move them: none is cut off by blocks or splits."""
    system = System.from_atoms(bulk("Si", cubic=True))
    with double_precision():
        neighbors = allocate(system, SMALL.cutoff, 0.0)

        def loss(potential):
            x = system.positions + 0.1 * np.sin(np.arange(24)).reshape(8, 3)
            graph = Graph.of(x, system.cell, system.numbers, neighbors, potential.cutoff)
            return jnp.sum(potential.atomic_energies(graph) ** 2)

        gradient = jax.jit(jax.grad(loss))(SMALL)
    kinds = jax.tree.leaves(jax.tree.map(lambda g: float(np.abs(g).max()), gradient.params))
    assert min(kinds) > 0


@pytest.mark.slow
def test_foundation_model_conserves_energy(models):
    """4 ps of RbI: the total energy of velocity Verlet fluctuates but must not drift."""
    atoms = bulk("RbI", "rocksalt", a=7.44, cubic=True)
    atoms.rattle(0.05, seed=1)
    options = {"timestep": 4.0, "temperature": 300.0, "seed": 2}
    samples = simulate(models["nequix-mp-1"], atoms, "nve", 1000, **options).samples
    total = samples["conserved_energy"][:, 0] / len(atoms)
    kinetic = samples["kinetic_energy"][:, 0] / len(atoms)
    time = 4e-6 * np.arange(len(total))  # ns
    drift = np.polyfit(time, total, 1)[0]
    blocks = total.reshape(10, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(10) / np.ptp(time)
    print(f"drift {drift:.1e} eV/atom/ns (error {error:.0e}), fluctuation {total.std():.1e} eV/atom")
    assert kinetic.std() > 1e-3
    assert total.std() < 2e-2 * kinetic.std()
    assert abs(drift) < 5 * error + 1e-4
