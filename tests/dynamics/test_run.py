"""The run loop: exactness of overflow repair, restart and replicas; energy conservation; failures that say what to do."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

import jaxmd_thermal.dynamics.driver as run_module
from jaxmd_thermal import evaluate, simulate
from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.dynamics import sharding
from jaxmd_thermal.dynamics.base import maxwell_boltzmann_velocities
from jaxmd_thermal.dynamics.driver import start_stage
from jaxmd_thermal.dynamics.loop import Simulation, chunk, compiled_chunk
from jaxmd_thermal.dynamics.nve import NVE
from jaxmd_thermal.dynamics.repair import run_memory
from jaxmd_thermal.dynamics.state import MDState
from jaxmd_thermal.errors import CapacityError, CheckpointError, InputError, OutputError, UnstableError
from jaxmd_thermal.io.ase import velocities_of
from jaxmd_thermal.neighbors import allocate, make_plan
from jaxmd_thermal.observables.virial_velocity import VirialVelocityCorrelator
from jaxmd_thermal.potentials import EquivariantNetwork, LennardJones, Nequix
from jaxmd_thermal.system import System
from jaxmd_thermal.units import AMU_A2_FS2

POTENTIAL = LennardJones(0.01042, 3.405, 6.0, "switch", 5.0)


@pytest.fixture(scope="module")
def argon():
    return bulk("Ar", "fcc", a=5.3737, cubic=True) * (3, 3, 3)


def run(atoms, steps=60, **options):
    defaults = {"timestep": 4.0, "temperature": 60.0, "sample_every": 3, "seed": 3, "skin": 0.5}
    return simulate(POTENTIAL, atoms, "nve", steps, **{**defaults, **options})


def same(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip((a.positions, a.velocities), (b.positions, b.velocities), strict=True)
    ) and all(np.array_equal(a.samples[k], b.samples[k]) for k in a.samples)


def test_a_seed_fixes_every_bit_and_another_seed_changes_it(argon):
    first, again, other = run(argon), run(argon), run(argon, seed=4)
    assert same(first, again)
    assert not np.array_equal(first.positions, other.positions)


def test_overflow_is_repaired_to_the_bits_of_a_run_with_room_from_the_start(argon):
    few = int(0.6 * _tightest(argon))
    repaired = run(argon, capacity=few)
    assert repaired.plan.slots > few
    assert same(repaired, run(argon, capacity=repaired.plan.slots))


@pytest.mark.slow
def test_overflow_in_the_middle_of_a_chunk_rolls_back(argon):
    """A compressed gas pocket: atoms crowd together after the first chunk, and the list outgrows its rows."""
    needed = run(argon, skin=0.0001).plan.slots
    tight = _tightest(argon)
    assert tight < needed
    hot = {"temperature": 300.0, "steps": 300, "skin": 0.5}
    repaired = run(argon, capacity=tight, **hot)
    assert repaired.plan.slots > tight, "the run was meant to outgrow its first capacity"
    assert same(repaired, run(argon, capacity=repaired.plan.slots, **hot))


def _tightest(atoms) -> int:
    """Slots that the crystal at rest needs, and not one more."""
    system = System.from_atoms(atoms)
    with double_precision():
        return int(np.asarray(allocate(system, POTENTIAL.cutoff, 0.5).required)[0])


def test_replicas_equal_single_runs_bit_for_bit(argon):
    rng = np.random.default_rng(0)
    velocities = 1e-3 * rng.normal(size=(2, len(argon), 3))
    both = run(argon, replicas=2, velocities=velocities)
    for replica in range(2):
        alone = run(argon, velocities=velocities[replica])
        assert np.array_equal(alone.positions[0], both.positions[replica])


def test_without_a_temperature_a_run_starts_with_the_velocities_of_the_structure(argon):
    """As if they were given; a temperature draws new ones, and a structure without any starts at rest."""
    moving = argon.copy()
    moving.set_velocities(1e-2 * np.random.default_rng(1).normal(size=(len(argon), 3)))
    carried = run(moving, temperature=None)
    assert same(carried, run(argon, temperature=None, velocities=velocities_of(moving)))
    assert same(run(moving), run(argon))
    at_rest = run(argon, temperature=None)
    # Forces of the perfect crystal are rounding (1e-17 eV/Å); carried velocities amount to some ten kelvin.
    assert np.max(at_rest.samples["temperature"]) < 1e-12 and carried.samples["temperature"][0, 0] > 1.0


@pytest.mark.parametrize("replicas, better", [(11, 16), (13, 16), (5, None)])
def test_devices_that_stay_idle_are_mentioned(monkeypatch, caplog, replicas, better):
    monkeypatch.setattr(sharding.jax, "devices", lambda: list(range(8)))
    monkeypatch.setattr(sharding.jax.sharding, "Mesh", lambda devices, axes: devices)
    mesh = sharding.replica_mesh(replicas)
    if better is None:
        assert len(mesh) == replicas and not caplog.text
    else:
        assert mesh is None
        assert (
            f"{replicas} replicas run on 1 of 8 devices" in caplog.text
            and f"{better} replicas would use all" in caplog.text
        )


def test_one_compilation_a_shape_and_no_transfer_in_the_loop(argon):
    run(argon)
    before = compiled_chunk()._cache_size()
    # The driver guards every chunk with transfer_guard("disallow"); another temperature, timestep or parameter is no
    # other program.
    run(argon, temperature=55.0, timestep=3.0, seed=9)
    stiffer = replace(POTENTIAL, epsilon=np.float64(0.011))
    simulate(stiffer, argon, "nve", 60, timestep=4.0, temperature=60.0, sample_every=3, skin=0.5)
    assert compiled_chunk()._cache_size() == before


def test_the_last_chunk_is_no_program_of_its_own(argon, monkeypatch):
    whole = run(argon, steps=60)
    before = compiled_chunk()._cache_size()
    monkeypatch.setattr(run_module, "CHUNK_SECONDS", 1e-9)  # one frame a chunk from the third on
    assert same(run(argon, steps=60), whole)
    assert compiled_chunk()._cache_size() == before


@pytest.mark.parametrize("dtype, tolerance", [("float64", 5e-7), pytest.param("float32", 2e-6, marks=pytest.mark.slow)])
def test_energy_conservation_of_switched_argon(dtype, tolerance):
    """864 atoms, 70 K, 6000 steps of 4 fs; limits of the project's goals, 2 to 3 times what other engines show."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (6, 6, 6)
    potential = LennardJones(0.01042, 3.405, 10.5, "switch", 9.0)
    result = simulate(
        potential, atoms, "nve", 6000, timestep=4.0, temperature=140.0, sample_every=50, dtype=dtype, seed=1
    )
    energy = result.samples["conserved_energy"][:, 0] / len(atoms)
    # The first 2000 steps only turn the lattice's heat into vibrations; means of tenths then show a drift.
    late = energy[40:]
    change = abs(late[-8:].mean() - late[:8].mean())
    assert change <= tolerance, f"{change:.2e} eV/atom"
    momentum = np.sum(result.velocities[0], axis=0) * 39.948
    assert np.linalg.norm(momentum) <= 1e-12 * np.sum(np.abs(result.velocities)) * 39.948 * (
        1 if dtype == "float64" else 1e6
    )


@pytest.mark.slow
def test_halving_the_timestep_quarters_the_energy_fluctuation(argon):
    """Velocity Verlet is of second order; 3.5 leaves room for the chaos of a finite run."""
    common = {"temperature": 100.0, "sample_every": 1}
    coarse = run(argon, steps=400, timestep=6.0, **common).samples["conserved_energy"][100:, 0]
    fine = run(argon, steps=800, timestep=3.0, **common).samples["conserved_energy"][200:, 0]
    assert coarse.std() >= 3.5 * fine.std()


@pytest.mark.slow
def test_gradient_through_forces_flux_and_dynamics_agrees_with_finite_differences():
    atoms = bulk("Ar", "fcc", a=5.3737, cubic=True) * (2, 2, 2)
    with double_precision():
        system = System.from_atoms(atoms)
        lists = jax.tree.map(lambda x: x[None], allocate(system, 6.0, 0.4))
        n = len(atoms)
        velocities = maxwell_boltzmann_velocities(jax.random.key(0), jnp.asarray(system.masses), 60.0)
        md = MDState(
            positions=jnp.asarray(system.positions)[None], velocities=velocities[None], cell=jnp.asarray(system.cell)[None],
            forces=jnp.zeros((1, n, 3)), masses=jnp.asarray(system.masses)[None], thermostat=None,
            key=jax.random.key(0)[None], step=jnp.zeros(1, jnp.int64), energy=jnp.zeros(1),
        )  # fmt: skip

        def loss(potential):
            simulation = Simulation(
                potential, NVE(), jnp.asarray(system.numbers), jnp.asarray(4.0), None, jnp.asarray(1e9), None,
                "float64", 2, ("heat_flux",),
            )  # fmt: skip
            carry, rows = chunk(simulation, (), start_stage(simulation, md, lists), jnp.int32(10), frames=10)
            flux = 1e6 * jnp.sum(rows["heat_flux_potential"] ** 2)
            return flux + 1e-4 * jnp.sum(carry.md.positions[..., 0] ** 3) + rows["temperature"][-1, 0]

        value, gradient = jax.jit(loss), jax.jit(jax.grad(loss))(POTENTIAL)
        for name in ("epsilon", "sigma"):
            x = getattr(POTENTIAL, name)

            def difference(h, x=x, name=name):
                up, down = (value(replace(POTENTIAL, **{name: x * (1 + s * h)})) for s in (1, -1))
                return (up - down) / (2 * x * h)

            # Richardson: the error of the central difference is of fourth order.
            expected = (4 * difference(5e-5) - difference(1e-4)) / 3
            assert float(getattr(gradient, name)) == pytest.approx(float(expected), rel=1e-6)


# -- restart ----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def _interrupt_after(chunks: int):
    seen = []

    def progress(p):
        if not p.compiling:
            seen.append(p)
        if len(seen) == chunks:
            raise Interrupted

    return progress


@pytest.fixture
def one_frame_chunks(monkeypatch):
    monkeypatch.setattr(run_module, "CHUNK_SECONDS", 1e-9)


def test_resume_is_bitwise(argon, tmp_path, one_frame_chunks):
    whole = run(argon)
    for chunks in (1, 4):
        folder = tmp_path / str(chunks)
        with pytest.raises(Interrupted):
            run(argon, out=folder, progress=_interrupt_after(chunks))
        resumed = run(argon, out=folder)
        assert same(resumed, whole)
        assert same(run(argon, out=folder), whole), "a finished run is read, not repeated"


def test_other_settings_are_refused_by_name(argon, tmp_path):
    run(argon, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"seed: 3 there, 5 now"):
        run(argon, out=tmp_path, seed=5)


def test_a_damaged_checkpoint_falls_back_and_two_are_an_error(argon, tmp_path, one_frame_chunks):
    whole = run(argon, steps=120)
    with pytest.raises(Interrupted):
        run(argon, steps=120, out=tmp_path, progress=_interrupt_after(4))
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    _damage(checkpoints[-1])
    with pytest.raises(Interrupted):
        run(argon, steps=120, out=tmp_path, progress=_interrupt_after(3))
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    _damage(checkpoints[-1])
    assert same(run(argon, steps=120, out=tmp_path), whole)
    for folder in (tmp_path / "checkpoints").iterdir():
        _damage(folder)
    with pytest.raises(CheckpointError, match="choose another --out"):
        run(argon, steps=120, out=tmp_path)


def _damage(folder):
    file = max((p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def test_a_full_disk_is_an_error_with_a_remedy(argon, tmp_path, monkeypatch):
    import jaxmd_thermal.io.run_directory as io

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io.np, "savez", full)
    with pytest.raises(OutputError, match="free some space, then run the same command again"):
        run(argon, out=tmp_path)
    monkeypatch.undo()
    assert same(run(argon, out=tmp_path), run(argon))


SCRIPT = """
import sys
import jaxmd_thermal.dynamics.driver as d
from jaxmd_thermal.dynamics.run import simulate
d.CHUNK_SECONDS = 1e-9
from ase.build import bulk
from jaxmd_thermal.potentials import LennardJones
atoms = bulk("Ar", "fcc", a=5.3737, cubic=True) * (3, 3, 3)
simulate(LennardJones(0.01042, 3.405, 6.0, "switch", 5.0), atoms, "langevin", 1800, timestep=4.0, temperature=60.0,
           sample_every=3, seed=3, skin=0.5, out=sys.argv[1])
"""


def test_kill_9_and_resume_is_bitwise(argon, tmp_path):
    """Also exercises the random numbers: Langevin dynamics."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "killed")])
    limit = time.monotonic() + 240
    while time.monotonic() < limit:
        folder = tmp_path / "killed" / "checkpoints"
        if folder.exists() and len([p for p in folder.iterdir() if not p.name.startswith(".")]) >= 2:
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    options = {"timestep": 4.0, "temperature": 60.0, "sample_every": 3, "seed": 3, "skin": 0.5}
    done = json.loads((max(folder.iterdir(), key=lambda p: p.name) / "meta.json").read_text())["frames"]
    assert 0 < done < 600
    resumed = simulate(POTENTIAL, argon, "langevin", 1800, out=tmp_path / "killed", **options)
    assert same(resumed, simulate(POTENTIAL, argon, "langevin", 1800, **options))


def test_two_devices_compute_what_one_does(tmp_path):
    """Replicas are shared out over devices; each keeps its own rebuild decisions.

    The programs differ (a loop over two replicas, or one a device), so the compiler may round differently: 4e-16 Å were seen.
    """
    code = """
    import sys, numpy as np
    from ase.build import bulk
    from jaxmd_thermal import evaluate, simulate
    from jaxmd_thermal.potentials import LennardJones
    atoms = bulk("Ar", "fcc", a=5.3737, cubic=True) * (3, 3, 3)
    r = simulate(LennardJones(0.01042, 3.405, 6.0, "switch", 5.0), atoms, "langevin", 60, timestep=4.0, temperature=60.0,
                 sample_every=3, seed=3, skin=0.5, replicas=2, quantities=("heat_flux",))
    np.savez(sys.argv[1], x=r.positions, j=r.samples["heat_flux_potential"])
    """
    out = []
    for devices in (1, 2):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        file = tmp_path / f"{devices}.npz"
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(file)], check=True, env=env)
        out.append(np.load(file))
    assert np.max(np.abs(out[0]["x"] - out[1]["x"])) <= 1e-12
    assert np.max(np.abs(out[0]["j"] - out[1]["j"])) <= 1e-12 * np.max(np.abs(out[0]["j"]))


# -- failures ---------------------------------------------------------------------------------------------------


def test_a_run_that_explodes_names_the_step_and_saves_the_last_good_state(argon, tmp_path):
    with pytest.raises(UnstableError, match="shorter timestep") as caught:
        run(argon, timestep=400.0, temperature=2000.0, steps=300, out=tmp_path)
    assert caught.value.path is not None and caught.value.path.exists()
    from ase.io import read

    saved = read(caught.value.path)
    assert np.all(np.isfinite(saved.positions)) and len(saved) == len(argon)


def test_overheating_stops_the_run(argon):
    with pytest.raises(UnstableError, match=r"exceeds the limit of 20 K"):
        run(argon, max_temperature=20.0)


def test_bad_input_is_named(argon):
    with pytest.raises(InputError, match=r"negative|at least 0"):
        run(argon, temperature=-5.0)
    with pytest.raises(InputError, match="timestep"):
        run(argon, timestep=0.0)
    with pytest.raises(InputError, match="replicas is 0"):
        run(argon, replicas=0)
    with pytest.raises(InputError, match="dtype is 'float16'"):
        run(argon, dtype="float16")
    with pytest.raises(InputError, match="'heat_flx' cannot be sampled, did you mean 'heat_flux'"):
        run(argon, quantities="heat_flx")
    with pytest.raises(InputError, match="stress needs a cell that is periodic in three directions"):
        run(argon_slab(argon), quantities=["heat_flux", "stress"])
    for bad in (np.zeros((2, len(argon), 3)), np.full((len(argon), 3), np.nan), np.zeros(3)):
        with pytest.raises(InputError, match=rf"velocities have the shape {re.escape(str(bad.shape))} .*\(1, 108, 3\)"):
            run(argon, velocities=bad)
    twice = argon.copy()
    twice.positions[1] = twice.positions[0]
    with pytest.raises(InputError, match="two atoms on one site"):
        run(twice)
    with pytest.raises(InputError, match="is not a pytree"):

        class Bare:
            cutoff = 5.0
            atomic_energies = None

        simulate(Bare(), argon)


def test_too_large_a_capacity_is_refused_before_the_run(argon):
    with pytest.raises(CapacityError, match="GB are available"):
        run(argon, capacity=2_000_000_000)
    with pytest.raises(CapacityError, match="fewer spectral lags"):
        run(argon, observers=(VirialVelocityCorrelator(10**8, 10**9),))


@pytest.mark.parametrize(
    "network, dtype, measured",
    [
        # kB for each atom: temporaries of energy, forces and heat flux as the compiler counts them.
        (lambda: Nequix.create(0, ["Si"], channels=(128, 64, 32, 32), layers=4, l_edge=3), "float32", 269.0),
        (lambda: Nequix.create(0, ["Si"], channels=(128, 64, 32, 32), layers=4, l_edge=3), "float64", 420.0),
        (lambda: EquivariantNetwork.create(0, ["Si"], 5.0, 3), "float32", 30.5),
        (lambda: EquivariantNetwork.create(0, ["Si"], 5.0, 3, channels=64), "float32", 90.7),
    ],
)
def test_memory_of_networks(argon, network, dtype, measured):
    """Within a factor of two; the peak of a process with nequix-mp-1 and 512 atoms was 0.96 GB in float32."""
    potential, plan = network(), make_plan(System.from_atoms(argon), 6.0)
    without, one, three = (
        run_memory(potential, plan, n, 3, at_once, dtype) for n, at_once in ((0, 1), (512, 1), (512, 3))
    )
    assert measured / 2 < (three - one) / (2 * 512e3) < 2 * measured
    if measured == 269.0:
        assert 0.96e9 / 2 < one < 2 * 0.96e9 and without < one


def test_memory_of_a_spectrum(argon):
    """What is accumulated for 32,000 atoms and 4 replicas, from the shapes of the state; it is there three times."""
    observer, plan = VirialVelocityCorrelator(200, 1000), make_plan(System.from_atoms(argon), 6.0)
    with double_precision():
        state = jax.eval_shape(observer.init, {"velocities": jax.ShapeDtypeStruct((4, 32_000, 3), np.float64)})
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert held == pytest.approx(1.235e9, rel=1e-3)
    more = run_memory(POTENTIAL, plan, 32_000, 4, 1, "float64", (observer,)) - run_memory(
        POTENTIAL, plan, 32_000, 4, 1, "float64"
    )
    assert more == pytest.approx(3 * held, rel=1e-3)  # the sums are left out


@pytest.mark.slow
def test_compression_keeps_the_list_valid(argon):
    """NPT at high pressure: the cell shrinks by more than the skin allows; energies must equal those of a fresh list."""
    from jaxmd_thermal import evaluate

    result = simulate(
        POTENTIAL,
        argon,
        "npt",
        300,
        timestep=4.0,
        temperature=60.0,
        pressure=0.02,
        sample_every=10,
        trajectory=True,
        skin=0.5,
    )
    samples = result.samples
    assert samples["volume"][-1, 0] < 0.95 * samples["volume"][0, 0]
    system = System.from_atoms(argon)
    for frame in (0, 10, 20, 29):
        moved = system.replace(positions=samples["positions"][frame, 0], cell=samples["cell"][frame, 0])
        fresh = evaluate(POTENTIAL, moved, "energy")["energy"]
        assert samples["potential_energy"][frame, 0] == pytest.approx(float(fresh), rel=1e-12)


def test_sampled_stress_is_the_strain_derivative_of_the_whole_energy(argon):
    """Stress of a moving crystal, kinetic part included: V sigma = dH/dstrain with x -> x (1 + e), p -> p (1 + e)^-1.

    The canonical scaling leaves phase-space volumes alone, so this is the observable whose mean is minus the pressure.
    """
    result = run(argon, 12, quantities="stress", trajectory=True)
    positions, velocities = result.samples["positions"][-1, 0], result.samples["velocities"][-1, 0]
    cell, masses = argon.cell.array, argon.get_masses()

    def total_energy(strain):
        deformed = argon.copy()
        deformed.set_cell(cell @ (np.eye(3) + strain))
        deformed.positions = positions @ (np.eye(3) + strain)
        slower = velocities @ np.linalg.inv(np.eye(3) + strain)
        kinetic = 0.5 * AMU_A2_FS2 * np.sum(masses[:, None] * slower**2)
        return evaluate(POTENTIAL, deformed, "energy")["energy"] + kinetic

    step = 1e-4
    expected = np.zeros((3, 3))
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        slope = (total_energy(strain) - total_energy(-strain)) / (2 * step * argon.get_volume())
        expected[i, j] = expected[j, i] = slope
    stress = result.samples["stress"][-1, 0]
    # The kinetic part is 4e-4 eV/Å^3; central differences are good to their step squared.
    np.testing.assert_allclose(stress, expected, atol=1e-9)
    static = evaluate(POTENTIAL, argon_at(argon, positions), "stress")["stress"]
    assert np.trace(stress) < np.trace(static) - 3e-4, "thermal motion presses outwards"


def argon_slab(atoms):
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    return slab


def argon_at(atoms, positions):
    moved = atoms.copy()
    moved.positions = positions
    return moved
