"""The command line: options from flags and files, one clear line per error, results where they belong."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.io import write

import jaxmd_thermal
from jaxmd_thermal.cli import main
from jaxmd_thermal.cli.progress import _Lines, duration, state_line
from jaxmd_thermal.cli.settings import SCHEMAS, load_config, settings_for
from jaxmd_thermal.errors import CheckpointError, InputError, UnstableError, UnsupportedError

GREEN_KUBO = ["green-kubo", "argon", "--potential", "lj-argon-gk", "--temperature", "50"]


def call(*arguments):
    """Exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    return exit.value.code or 0


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise_flux(replicas, frames, seed=0, memory=20):
    """First-order autoregressive noise: a flux with a known, short memory."""
    rng = np.random.default_rng(seed)
    a = np.exp(-1.0 / memory)
    x = rng.standard_normal((replicas, frames, 3))
    for i in range(1, frames):
        x[:, i] = a * x[:, i - 1] + np.sqrt(1 - a * a) * x[:, i]
    return x


@pytest.fixture
def fake_green_kubo(monkeypatch):
    """Stands for the simulation: same signature, a flux of noise. Records its arguments."""
    from jaxmd_thermal.system import System
    from jaxmd_thermal.transport.common import cell_volume
    from jaxmd_thermal.transport.green_kubo import green_kubo_from_flux

    calls = []

    def green_kubo(
        potential, atoms, temperature, *, timestep=4.0, steps, equilibration_steps, replicas=1, sample_every=1, seed=0,
        dtype="float64", out=None, volume=None, thickness=None, progress=None,
    ):  # fmt: skip
        calls.append(dict(atoms=atoms, temperature=temperature, steps=steps, equilibration_steps=equilibration_steps,
                          replicas=replicas, seed=seed, out=out))  # fmt: skip
        v = calls[-1]["volume"] = cell_volume(System.from_atoms(atoms), volume, thickness)
        # Amplitude with the size of the cell, so that every size gives the same conductivity.
        flux = np.sqrt(len(atoms)) * noise_flux(replicas, steps, seed)
        with h5py.File(out / "run.h5", "w") as file:
            file["flux/potential"] = flux.transpose(1, 0, 2)
            file["flux/time"] = timestep * np.arange(steps)
        return green_kubo_from_flux(flux, timestep, v, temperature, n_atoms=len(atoms))

    monkeypatch.setattr(jaxmd_thermal, "green_kubo", green_kubo, raising=False)
    monkeypatch.setattr("jaxmd_thermal._backend.enable_compilation_cache", lambda: None)
    monkeypatch.setattr("jaxmd_thermal._backend.use_all_cores", lambda: None)
    return calls


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["green-kubo"], r"needs STRUCTURE, --potential, --temperature\. For example: jaxmd-thermal green-kubo argon"),
        ([*GREEN_KUBO[:-1], "-5"], r"--temperature is -5.0: it must be greater than 0"),
        ([*GREEN_KUBO[:-1], "nan"], r"--temperature is nan: it must be"),
        ([*GREEN_KUBO, "--steps", "0"], r"--steps is 0: it must be greater than or equal to 1"),
        ([*GREEN_KUBO, "--dtype", "float16"], r"--dtype is 'float16': it must be 'float64' or 'float32'"),
        ([*GREEN_KUBO, "--supercell", "0", "1", "1"], r"--supercell is 0"),
        ([*GREEN_KUBO, "--temprature", "3"], r"--temprature.*--temperature"),
        (["green-cubo"], r"green-kubo"),
        (["green-kubo", "argn", *GREEN_KUBO[2:]], r"no structure file 'argn', did you mean 'argon'"),
        (
            ["green-kubo", "argon", "--potential", "lj-argon", "--temperature", "5"],
            r"unknown potential 'lj-argon', did you",
        ),
        (
            ["green-kubo", "argon", "--potential", "lj", *GREEN_KUBO[4:], "--sizes", "2", "2", "2"],
            r"unknown potential 'lj'",
        ),
        (
            [*GREEN_KUBO, "--sizes", "2", "2", "2", "--volume", "500"],
            r"--volume is 500 Å\^3, but the cells of --sizes have volumes of their own: .*--thickness for a slab",
        ),
        (["hnemd", *GREEN_KUBO[1:]], r"hnemd needs --driving-force"),
        (["resume", "nowhere"], r"'nowhere' holds no command.json"),
        (["report", "nowhere"], r"no folder 'nowhere'"),
        ([*GREEN_KUBO, "--config", "no.toml"], r"no configuration file 'no.toml'"),
        (["green-kubo", "argon", "--flux", "x.dat"], r"--flux replaces the structure"),
        (["green-kubo", "--flux", "x.dat"], r"x\.dat"),
        (
            [*GREEN_KUBO, "--flux-periodic", "xy"],
            r"--flux-periodic is 'xy': it describes the series of --flux, which is not",
        ),
    ],
)
def test_errors_are_one_line_with_exit_code_2(arguments, message, capsys, in_folder):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in captured.err
    assert re.search(message, lines[0]), lines[0]
    assert not list(in_folder.iterdir()), "a refused command leaves nothing behind"


def test_debug_shows_the_traceback(in_folder):
    with pytest.raises(InputError):
        main([*GREEN_KUBO[:-1], "-5", "--debug"])


def test_errors_of_a_run_end_the_command(monkeypatch, capsys, in_folder):
    def breaks(*args, **kwargs):
        raise UnstableError("stage 'production', replica 1: the temperature of 9e9 K exceeds the limit", "last.extxyz")

    monkeypatch.setattr(jaxmd_thermal, "green_kubo", breaks, raising=False)
    # The signature is looked at before the call; a stand-in takes everything by keyword.
    monkeypatch.setattr("jaxmd_thermal.cli.commands._call", lambda f, *a, **k: f(*a, **k))
    assert call(*GREEN_KUBO) == 2
    assert "exceeds the limit" in capsys.readouterr().err


def test_interrupt(monkeypatch, capsys, in_folder):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmd_thermal.cli.commands._call", stop)
    monkeypatch.setattr(jaxmd_thermal, "green_kubo", stop, raising=False)
    assert call(*GREEN_KUBO) == 130
    assert "resume" in capsys.readouterr().err


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == jaxmd_thermal.__version__


# Options


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'temperature = 40\nsteps = 5000\nsample-every = 5\nsupercell = 3\npotential = "lj-argon-gk"\n'
        '[hnemd]\ndriving_force = [0.01, 0.0, 0.0]\nsteps = 7000\n[md]\nensemble = "nve"\n'
    )
    gk = settings_for("green-kubo", {"temperature": 60.0, "steps": None}, file)
    assert (gk.temperature, gk.steps, gk.sample_every, gk.supercell, gk.seed) == (60.0, 5000, 5, (3, 3, 3), 0)
    hnemd = settings_for("hnemd", {}, file)
    assert (hnemd.steps, hnemd.temperature, hnemd.driving_force) == (7000, 40.0, ((0.01, 0.0, 0.0),))
    assert settings_for("md", {}, file).ensemble == "nve"


@pytest.mark.parametrize(
    "text, message",
    [
        ("temprature = 50", r"unknown key 'temprature', did you mean 'temperature'"),
        (
            "[hnemd]\ndriving_froce = [1, 0, 0]",
            r"table \[hnemd\]: unknown key 'driving_froce', did you mean 'driving_force'",
        ),
        ("[hnmd]\nsteps = 3", r"unknown key 'hnmd', did you mean 'hnemd'"),
        ("hnemd = 3", r"is a verb; write its options in a table \[hnemd\]"),
        ("temperature = ", r"is no valid TOML"),
        ("temperature = -4", r"temperature in '.*' is -4: it must be greater than 0"),
        ('steps = "many"', r"steps in '.*' is 'many'"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        settings_for("green-kubo", {}, file)
    assert str(file) in str(caught.value)


def test_every_flag_is_a_key_of_the_schema(capsys):
    for verb, schema in SCHEMAS.items():
        call(verb, "--help")
        flags = set(re.findall(r"^│ (--[a-z0-9-]+)", capsys.readouterr().out, re.M))
        keys = {"--" + k.replace("_", "-") for k in schema.model_fields} - {"--structure", "--name"}
        assert keys <= flags | {"--config"}, f"{verb}: {keys - flags}"
        assert flags - keys <= {"--config", "--debug", "--dry-run", "--help", "--version"}, f"{verb}: {flags - keys}"


def test_the_experiment_file_is_valid(root):
    silicon = settings_for("wigner", {}, root / "experiments" / "silicon_wigner" / "config.toml")
    assert (
        silicon.structure == "silicon" and set(silicon.method) == {"wigner", "lbte"} and silicon.temperature == (300.0,)
    )
    config = root / "experiments" / "argon" / "config.toml"
    for verb in ("green-kubo", "hnemd"):
        options = settings_for(verb, {}, config)
        assert options.structure == "argon" and options.replicas >= 3
        assert 4 * np.prod(options.supercell) >= 256, "the issue asks for 256 atoms or more"
    assert "driving_force" not in load_config(config, "green-kubo")


# Runs


def test_green_kubo_writes_what_it_promises(in_folder, fake_green_kubo, capsys):
    out = in_folder / "here"
    assert (
        call(
            *GREEN_KUBO, "--supercell", "2", "2", "2", "--steps", "4000", "--replicas", "2", "--seed", "9", "--out", out
        )
        == 0
    )
    (used,) = fake_green_kubo
    assert (
        len(used["atoms"]) == 32
        and used["equilibration_steps"] == 10_000
        and used["seed"] == 9
        and used["volume"] == pytest.approx(used["atoms"].get_volume())
    )
    document = json.loads((out / "results.json").read_text())
    assert set(document) == {"results", "n_atoms", "volume_A3", "settings", "versions", "seed"}
    (result,) = document["results"]
    assert result["method"] == "green-kubo" and result["temperature_K"] == 50.0
    kappa = result["thermal_conductivity_W_mK"]
    assert set(kappa) == {"tensor", "tensor_stderr", "isotropic", "stderr"} and np.shape(kappa["tensor"]) == (3, 3)
    assert set(result["verdict"]) == {"converged", "text"}
    assert document["n_atoms"] == 32 and document["volume_A3"] == pytest.approx(8 * 5.3737**3)
    assert document["seed"] == 9 and document["settings"]["steps"] == 4000 and document["versions"]["jax"]
    with h5py.File(out / "run.h5") as file:
        assert len(file["traces/green-kubo/running"]) > 10
    assert f"{kappa['isotropic']:.2f}"[:3] in (out / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "green-kubo" in shown and str(out / "report.html") in shown
    # The page repeats the command that was typed, not its defaults.
    assert json.loads((out / "command.json").read_text())["line"] == (
        f"jaxmd-thermal green-kubo argon --potential lj-argon-gk --temperature 50 --supercell 2 2 2 --steps 4000 "
        f"--replicas 2 --seed 9 --out {out}"
    )


def test_resume_repeats_the_command(in_folder, fake_green_kubo):
    call(*GREEN_KUBO, "--steps", "3000", "--replicas", "2", "--out", "a")
    first = json.loads((in_folder / "a" / "results.json").read_text())
    (in_folder / "a").rename(in_folder / "b")  # a folder may be moved
    assert call("resume", "b") == 0
    again = json.loads((in_folder / "b" / "results.json").read_text())
    assert again["results"] == first["results"]
    assert fake_green_kubo[1]["steps"] == 3000 and str(fake_green_kubo[1]["out"]) == "b"


def test_a_folder_of_another_run_is_refused(in_folder, fake_green_kubo, capsys):
    call(*GREEN_KUBO, "--steps", "3000", "--out", "a")
    before = (in_folder / "a" / "results.json").read_text()
    assert call(*GREEN_KUBO, "--steps", "4000", "--out", "a") == 2
    assert "steps 3000 there, 4000 here" in capsys.readouterr().err
    assert (in_folder / "a" / "results.json").read_text() == before and len(fake_green_kubo) == 1
    (in_folder / "a" / "command.json").write_text("{")
    from jaxmd_thermal.cli.commands import resume

    with pytest.raises(CheckpointError, match="damaged"):
        resume("a")


def test_default_folder_names_the_run(in_folder, fake_green_kubo):
    call(*GREEN_KUBO, "--steps", "3000")
    assert (in_folder / "runs" / "argon-green-kubo-50K" / "report.html").exists()


def test_sizes_are_compared(in_folder, fake_green_kubo):
    sizes = ["--sizes", "3", "3", "3", "--sizes", "2", "2", "2"]
    assert call(*GREEN_KUBO, "--steps", "3000", *sizes, "--out", "s") == 0
    document = json.loads((in_folder / "s" / "results.json").read_text())
    rows = document["results"][0]["details"]["sizes"]
    assert [r["n_atoms"] for r in rows] == [32, 108] and document["n_atoms"] == 108
    assert document["results"][0]["thermal_conductivity_W_mK"]["isotropic"] == rows[1]["isotropic"]
    assert "Size of the cell" in (in_folder / "s" / "report.html").read_text()
    assert (in_folder / "s" / "2x2x2" / "report.html").exists()
    assert call("resume", "s") == 0


def test_sizes_are_resumed_and_a_folder_of_another_run_is_refused_first(
    in_folder, fake_green_kubo, monkeypatch, capsys
):
    sizes = [*GREEN_KUBO, "--steps", "3000", "--sizes", "1", "1", "1", "--sizes", "2", "1", "1", "--out", "s"]
    simulation = jaxmd_thermal.green_kubo

    @functools.wraps(simulation)
    def killed_in_the_second(*args, **options):
        if len(fake_green_kubo) == 1:
            raise KeyboardInterrupt
        return simulation(*args, **options)

    assert call(*sizes, "--dry-run") == 0 and not list(in_folder.iterdir())
    monkeypatch.setattr(jaxmd_thermal, "green_kubo", killed_in_the_second)
    assert call(*sizes) == 130
    monkeypatch.setattr(jaxmd_thermal, "green_kubo", simulation)
    assert call("resume", "s") == 0
    document = json.loads((in_folder / "s" / "results.json").read_text())
    assert [r["n_atoms"] for r in document["results"][0]["details"]["sizes"]] == [4, 8]
    computed = len(fake_green_kubo)
    assert call(*sizes, "--seed", "5") == 2 and "seed 0 there, 5 here" in capsys.readouterr().err
    assert len(fake_green_kubo) == computed, "refused before anything is computed"


@pytest.mark.parametrize("sizes", [(), ("--sizes", "1", "1", "1", "--sizes", "2", "1", "1")])
def test_devices_are_chosen_before_weights_are_read(sizes, in_folder, fake_green_kubo, monkeypatch):
    """Reading an exported potential starts JAX's backend; replicas would then stay on one core."""
    from jaxmd_thermal.io import models

    order, read = [], models.load_potential
    monkeypatch.setattr("jaxmd_thermal._backend.use_all_cores", lambda: order.append("devices"))
    monkeypatch.setattr(models, "load_potential", lambda *a, **k: order.append("weights") or read(*a, **k))
    assert call(*GREEN_KUBO, "--steps", "3000", *sizes, "--out", "d") == 0
    assert order[:2] == ["devices", "weights"]


def test_dry_run_computes_nothing(in_folder, fake_green_kubo, capsys):
    assert call(*GREEN_KUBO, "--supercell", "4", "4", "4", "--dry-run") == 0
    shown = capsys.readouterr().out
    for wanted in ("256 atoms x 4 replicas", "0.4 ns", "time", "memory", "disk"):
        assert wanted in shown
    field = ["--driving-force", "0.001", "0", "0", "--replicas", "16", "--supercell", "8", "8", "8"]
    assert call("hnemd", *GREEN_KUBO[1:], *field, "--dry-run") == 0
    memory = re.search(r"memory +about (\S+) GB", capsys.readouterr().out)
    # Three times 2 x 201 lags x 2048 atoms x 3 numbers of 8 bytes x 16 replicas are 0.95 GB, the process is 0.6 GB.
    assert 1.5 < float(memory[1]) < 1.7
    assert fake_green_kubo == [] and not list(in_folder.iterdir())


@pytest.mark.parametrize(
    "flags, volume, message",
    [
        ([], None, r"no volume of its own: state `volume` \(Å\^3\) or `thickness` \(Å\)"),
        (["--volume", "500"], 500.0, None),
        (["--thickness", "10"], "area", None),
        (["--volume", "500", "--thickness", "10"], None, "state one of them"),
    ],
)
def test_a_slab_needs_a_volume(in_folder, fake_green_kubo, capsys, flags, volume, message):
    slab = fcc111("Ar", (2, 2, 3), a=5.37, vacuum=10.0)
    slab.info.clear()
    write("slab.extxyz", slab)
    code = call("green-kubo", "slab.extxyz", *GREEN_KUBO[2:], "--steps", "3000", *flags, "--out", "o")
    if message:
        assert code == 2 and re.search(message, capsys.readouterr().err)
        return
    assert code == 0
    area = np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
    assert fake_green_kubo[0]["volume"] == pytest.approx(10 * area if volume == "area" else volume, rel=1e-6)


def test_thickness_of_a_crystal_is_refused(in_folder, fake_green_kubo, capsys):
    assert call(*GREEN_KUBO, "--thickness", "10") == 2
    assert "a thickness belongs to a slab" in capsys.readouterr().err


def test_options_that_a_function_does_not_take_are_errors():
    from jaxmd_thermal.cli.commands import _call

    def plain(potential, atoms, steps):
        return steps

    assert _call(plain, None, None, steps=3, volume=None, progress=print) == 3
    with pytest.raises(UnsupportedError, match="plain does not take 'volume' = 5"):
        _call(plain, None, None, steps=3, volume=5)


def test_flux_of_another_code(in_folder):
    flux = noise_flux(1, 6000)[0]
    np.savez("j.npz", flux=flux, timestep=2.0)
    command = ["green-kubo", "--flux", "j.npz", "--temperature", "300", "--volume", "20000", "--out", "o"]
    assert call(*command) == 0
    document = json.loads((in_folder / "o" / "results.json").read_text())
    expected = jaxmd_thermal.green_kubo_from_flux(flux[None], 2.0, 20000.0, 300.0)
    assert document["results"][0]["thermal_conductivity_W_mK"]["isotropic"] == pytest.approx(
        expected.isotropic, rel=1e-12
    )
    assert document["n_atoms"] is None and document["volume_A3"] == 20000.0
    assert "Autocorrelation" in (in_folder / "o" / "report.html").read_text()
    assert call("resume", "o") == 0
    # The series it keeps can be read again, with time step, volume and temperature inside.
    assert call("green-kubo", "--flux", "o/run.h5", "--out", "again") == 0
    again = json.loads((in_folder / "again" / "results.json").read_text())
    assert again["results"][0]["thermal_conductivity_W_mK"] == document["results"][0]["thermal_conductivity_W_mK"]


def test_flux_of_a_slab(in_folder, capsys):
    """Its conductivity is the mean along the periodic axes; the third would add a zero."""
    flux = noise_flux(1, 6000)[0]
    command = ["green-kubo", "--flux", "j.npz", "--temperature", "300", "--volume", "20000", "--out", "o"]
    np.savez("j.npz", flux=flux * [1.0, 0.0, 1.0], timestep=2.0)
    assert call(*command) == 2
    assert "--flux-periodic" in capsys.readouterr().err
    assert call(*command, "--flux-periodic", "xz") == 0
    entry = json.loads((in_folder / "o" / "results.json").read_text())["results"][0]
    expected = jaxmd_thermal.green_kubo_from_flux(flux[None], 2.0, 20000.0, 300.0, directions=[[1, 0, 0], [0, 0, 1]])
    assert entry["thermal_conductivity_W_mK"]["isotropic"] == pytest.approx(expected.isotropic, rel=1e-12)
    assert entry["thermal_conductivity_W_mK"]["tensor"][1] == [None] * 3
    assert call(*command[:-1], "p", "--flux-periodic", "a") == 2
    assert "'xyz', 'xy'" in capsys.readouterr().err


def test_flux_without_volume(in_folder, capsys):
    np.savez("j.npz", flux=noise_flux(1, 500)[0], timestep=2.0)
    assert call("green-kubo", "--flux", "j.npz", "--temperature", "300") == 2
    assert "does not tell the volume: give --volume in Å^3" in capsys.readouterr().err


def test_combined_report_of_two_runs(in_folder, fake_green_kubo):
    from jaxmd_thermal.cli.commands import combine

    for name in ("green-kubo", "other"):
        call(*GREEN_KUBO, "--steps", "3000", "--out", f"c/{name}")
    call(*GREEN_KUBO, "--steps", "3000", "--supercell", "2", "1", "1", "--out", "c/larger")
    merged = combine(in_folder / "c", [in_folder / "c" / "green-kubo", in_folder / "c" / "other"])
    assert len(merged["results"]) == 2 and (in_folder / "c" / "report.html").exists()
    with pytest.raises(InputError, match="8 atoms"):
        combine(in_folder / "c", [in_folder / "c" / "other", in_folder / "c" / "larger"])


# Progress


@pytest.mark.parametrize("steps, lags, used", [(2000, 200, 100), (40_000, 200, 200), (10, 200, 0), (4000, 0, 0)])
def test_the_memory_of_the_spectrum_fits_the_run(steps, lags, used):
    from jaxmd_thermal.cli.commands import _options

    typed = dict(temperature=50.0, steps=steps, spectral_lags=lags, sample_every=5, driving_force=[0.01, 0.0, 0.0])
    options = _options("hnemd", settings_for("hnemd", typed), bulk("Ar"))
    assert options["spectral_lags"] == used and options["driving_force"] == (0.01, 0.0, 0.0)


def test_progress_lines(capsys, monkeypatch):
    from types import SimpleNamespace

    spent = iter([3.0, *[15.4] * 100])  # other programs took 3 s before this run began, its own then 12.4 s
    monkeypatch.setattr("jaxmd_thermal.cli.progress.compile_seconds", lambda: next(spent))
    show = _Lines()
    facts = dict(stage="production", steps=100, ns_per_day=1.5, eta_s=125.0, temperature=50.04, drift=2e-8)
    show(SimpleNamespace(**facts | dict(step=0, compiling=True)))
    for step in range(0, 101, 5):
        show(SimpleNamespace(**facts | dict(step=step, compiling=False)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "production: step 0 of 100, compiling (once)" and len(lines) <= 12
    assert lines[1].endswith("left, compiled in 12 s") and not any("compil" in line for line in lines[2:])
    assert state_line(SimpleNamespace(**facts)) == ("1.5 ns/day, 50.0 K, drift 0.02 µeV/atom, 2.1 min left")
    assert [duration(s) for s in (3, 90, 7200, 2e5)] == ["3 s", "1.5 min", "2.0 h", "2.3 d"]


@pytest.mark.slow
def test_real_dynamics_from_the_command(tmp_path):
    """A few hundred steps of argon in a process of its own, then the same command again."""
    write(tmp_path / "ar.extxyz", bulk("Ar", "fcc", a=5.3, cubic=True).repeat(3))
    command = [sys.executable, "-m", "jaxmd_thermal.cli", "md", "ar.extxyz", "--potential", "lj-argon-cut25",
               "--temperature", "40", "--steps", "300", "--sample-every", "50", "--out", "md"]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "md" / "run.h5") as file:
        assert file["temperature"].shape == (6, 1) and np.all(np.asarray(file["temperature"]) > 5)
    document = json.loads((tmp_path / "md" / "results.json").read_text())
    assert document["results"] == [] and document["n_atoms"] == 108
    assert "Temperature" in (tmp_path / "md" / "report.html").read_text()
