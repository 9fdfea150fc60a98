"""`train` and `finetune`: data, potential and losses of a configuration, and what came out of it."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal._backend import enable_compilation_cache, quiet_compiler
from jaxmd_thermal.cli.progress import announce, duration
from jaxmd_thermal.cli.training_settings import Data, Losses, Network, TrainingSettings, load_training
from jaxmd_thermal.errors import InputError, nearest

SUFFIXES = (".yaml", ".yaml.xz", ".yaml.gz")


def run(verb: str, config: str, changes: dict[str, Any], *, dry_run: bool = False) -> int:
    """Train by a TOML file; a folder with an unfinished training of the same settings is resumed. Returns the exit code."""
    quiet_compiler()
    enable_compilation_cache()
    typed = {key: value for key, value in changes.items() if value is not None}
    if "steps" in typed:
        typed["epochs"] = None  # what is typed takes the place of the file's epochs
    settings = load_training(config, typed)
    given, needed, other = (settings.network, "[network]", "potential") if verb == "train" else (
        settings.potential, "potential", "[network]")  # fmt: skip
    if given is None:
        raise InputError(f"'{config}': {verb} needs {needed}" + (f"; {other} is of the other verb" if other else ""))
    out = Path(settings.out or Path("runs") / Path(config).stem)
    result, forgotten = trained(settings, out, dry_run=dry_run)
    if result is None:
        return 0
    announce(
        f"stopped: {result.stopped} after {result.steps} steps; the potential of step {result.best_step} is in {out}"
    )
    for _, errors in result.errors()[-1:]:
        announce("  validation: " + ", ".join(f"{name} {value:.4g}" for name, value in errors.items()))
    if forgotten:
        announce("  changed on other copies of the replayed structures: " + json.dumps(forgotten))
    return 0


def trained(settings: TrainingSettings, out: Path, *, dry_run: bool = False, quiet: bool = False) -> tuple[Any, Any]:
    """`FitResult` of settings, and `forgetting` on other copies of what was replayed (None without); twice None on a dry run."""
    from dataclasses import replace

    from jaxmd_thermal.cli.training_replay import TOGETHER, check_restore, replayed, restored_by
    from jaxmd_thermal.io.exported import save_potential
    from jaxmd_thermal.training.data import split_by_compound
    from jaxmd_thermal.training.fit import fit
    from jaxmd_thermal.training.networks import with_block
    from jaxmd_thermal.training.optimizers import adamw, chosen, rate
    from jaxmd_thermal.training.records import CoTraining, digest_of
    from jaxmd_thermal.training.replay import forgetting

    third = settings.losses.third is not None
    data = frames_of(settings.data, third)
    validation = frames_of(settings.validation, third) if settings.validation is not None else []
    known = {digest_of([f]) for f in data}
    twice = [f.source for f in validation if digest_of([f]) in known]
    if twice:
        raise InputError(
            f"{len(twice)} of the structures for validation are trained on as well, for example {twice[0]}: take others, or "
            "leave [validation] out"
        )
    if settings.validation_fraction:
        data, more = split_by_compound(data, settings.validation_fraction, settings.seed)
        validation += more
    base = potential_of(settings, data)
    if settings.block is not None:
        base = with_block(base, settings.block or None)
    announce(
        f"{len(data)} structures of {len({f.compound for f in data})} compounds, {len(validation)} for validation -> {out}"
    )
    o = settings.optimizer
    choose = chosen(base, o.frozen, o.constants)  # refuses wrong names before anything is computed
    if settings.restore is not None:
        check_restore(settings, base, data)
    if dry_run:
        _describe(settings, data, base)
        return None, None
    devices = devices_of(settings.devices)
    total = settings.steps or _batches(settings, data, base).count(
        settings.epochs or 0, len(devices), settings.accumulate
    )
    co, others = None, []
    if settings.replay is not None:
        r = settings.replay
        made, others = replayed(base, r, data, settings.seed)
        co = CoTraining(made, terms(r.losses, total), r.steps, r.batch_size, settings.buckets)
    elif settings.upstream is not None:
        u = settings.upstream
        upstream = frames_of(u.data, u.losses.third is not None)
        co = CoTraining(upstream, terms(u.losses, total), u.steps, u.batch_size, settings.buckets)
    per_step = 1 + (co.steps if co else 0)
    schedule = rate(o.rate, o.schedule, per_step * total, per_step * o.warmup, o.final_rate)
    results = []
    for number in range(settings.repeats):
        if settings.repeats > 1:
            announce(f"training {number + 1} of {settings.repeats}")
        result = fit(
            base,
            data,
            terms(settings.losses, total),
            adamw(schedule, weight_decay=o.weight_decay, clip=o.clip),
            steps=settings.steps,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            columns=settings.columns,
            buckets=settings.buckets,
            accumulate=settings.accumulate,
            validation=validation,
            validate_every=settings.validate_every,
            patience=settings.patience,
            co_training=co,
            precision=settings.precision,
            average=settings.average,
            trained=choose,
            seed=settings.seed + number,
            devices=devices,
            out=out if settings.repeats == 1 else out / f"training_{number + 1}",
            checkpoint_every=settings.checkpoint_every,
            tensorboard=settings.tensorboard,
            max_seconds=settings.max_seconds and settings.max_seconds / settings.repeats,
            check_units=settings.check_units and settings.potential is not None,
            settings={"optimizer": o.model_dump()},
            progress=None if quiet else _show,
        )
        results.append(result)
    if len(results) > 1:
        result = replace(results[-1], potential=_mean([r.potential for r in results]))
        save_potential(result.potential, out / "potential", overwrite=True)
    if settings.restore is not None:
        potential, asked = restored_by(settings, base, result.potential, data, out, quiet=quiet)
        result, others = replace(result, potential=potential), others or asked
    forgotten = forgetting(base, result.potential, others, batch_size=TOGETHER) if others else None
    return result, forgotten


def _mean(potentials: list[Any]) -> Any:
    from jaxmd_thermal.training.replay import interpolated

    mean = potentials[0]
    for count, other in enumerate(potentials[1:], 2):
        mean = interpolated(mean, other, 1 / count)
    return mean


def _show(p: Any) -> None:
    """A line every step on a slow machine, every hundredth part elsewhere."""
    if p.steps > 400 and p.step % (p.steps // 200) and p.step != p.steps:
        return
    errors = ", ".join(f"{name} {value:.3g}" for name, value in p.errors.items())
    checked = f"; validation {p.validation['loss']:.4g}" if p.validation else ""
    left = duration(p.seconds_left)
    print(f"step {p.step} of {p.steps}: loss {p.loss:.4g}, {errors}{checked}; {left} left", file=sys.stderr, flush=True)


def devices_of(count: int) -> list[Any]:
    """The first devices, so many of them; 0: all.

    Raises:
      InputError: there are not so many.
    """
    import jax

    there = jax.devices()
    if count > len(there):
        raise InputError(
            f"devices is {count}, but there are {len(there)} here: give at most {len(there)}, or 0 for all"
        )
    return there[: count or None]


def _batches(settings: TrainingSettings, data: list[Any], base: Any) -> Any:
    """`Batches` of the data as `fit` makes them."""
    from jaxmd_thermal.derivatives import required_cutoff
    from jaxmd_thermal.training.batches import Batches

    return Batches(
        data, required_cutoff(base), settings.batch_size, buckets=settings.buckets, columns=settings.columns,
        seed=settings.seed, species=getattr(base, "species", None),
    )  # fmt: skip


def _describe(settings: TrainingSettings, data: list[Any], base: Any) -> None:
    batches = _batches(settings, data, base)
    announce(f"{len(batches.plan(0))} batches an epoch; one program is compiled for each shape:")
    for shape in batches.shapes:
        announce(f"  {shape.graphs} structures, {shape.atoms} atoms, {shape.images} images, {shape.slots} neighbours")


def terms(losses: Losses, steps: int) -> list[Any]:
    """The terms of a table of losses in a training of so many steps."""
    from jaxmd_thermal.training.losses import EnergyPerAtom, Forces, HessianColumns, Stress, ThirdDerivatives
    from jaxmd_thermal.training.optimizers import Ramp

    def weight(w: Any) -> Any:
        return w if isinstance(w, float) else Ramp(w.start, w.end, steps, w.kind)

    classes = {
        "energy": EnergyPerAtom,
        "forces": Forces,
        "stress": Stress,
        "hessian": HessianColumns,
        "third": ThirdDerivatives,
    }
    given = ((name, getattr(losses, name)) for name in classes)
    return [classes[name](weight(s.weight), s.kind, s.delta) for name, s in given if s is not None]


def potential_of(settings: TrainingSettings, data: list[Any]) -> Any:
    """The potential to start from: a known one, or a network started from the statistics of the data."""
    if settings.potential is not None:
        return _named(settings.potential)
    assert settings.network is not None
    return new_network(settings.network, data, settings.seed)


def new_network(n: Network, data: list[Any], seed: int) -> Any:
    """A network with random weights, scaled by the statistics of the data."""
    from jaxmd_thermal.potentials import EquivariantNetwork, Nequix
    from jaxmd_thermal.training.data import check_frames
    from jaxmd_thermal.training.networks import with_statistics
    from jaxmd_thermal.training.statistics import statistics

    species = n.species or sorted({int(z) for f in data for z in f.numbers})
    check_frames(data, species)
    found = statistics(data, n.cutoff)
    neighbors = max(found.neighbors or 1.0, 1.0)
    if n.kind == "Nequix":
        channels = (n.channels,) * (n.lmax + 1) if isinstance(n.channels, int) else n.channels
        made: Any = Nequix.create(
            seed,
            species,
            n.cutoff,
            channels=channels,
            layers=n.layers,
            l_edge=n.lmax,
            radial=n.radial,
            neighbors=neighbors,
        )
    else:
        if not isinstance(n.channels, int):
            raise InputError(
                f"network.channels is {n.channels}; EquivariantNetwork has one number of channels for all degrees"
            )
        made = EquivariantNetwork.create(
            seed, species, n.cutoff, n.layers, channels=n.channels, lmax=n.lmax, radial=n.radial, neighbors=neighbors
        )
    return with_statistics(made, found)


def _named(potential: str) -> Any:
    from jaxmd_thermal.io.models import load_potential

    return load_potential(_expanded(potential))


def _expanded(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))


def _files(patterns: Sequence[str]) -> list[Path]:
    out = []
    for pattern in patterns:
        found = sorted(glob.glob(_expanded(pattern)))
        if not found:
            raise InputError(f"no file is called '{pattern}' (that is '{_expanded(pattern)}'): give an existing path")
        out += [Path(p) for p in found]
    return out


def structures_of(patterns: Sequence[str]) -> list[Any]:
    """Structures of files as frames without labels."""
    from ase.io import read

    from jaxmd_thermal.system import System
    from jaxmd_thermal.training.data import Frame

    out = []
    for path in _files(patterns):
        try:
            found = read(path, index=":")
        except Exception as error:  # ASE raises whatever its many readers do
            raise InputError(
                f"'{path}' cannot be read as structures ({type(error).__name__}: {error}): give files that ASE reads"
            ) from error
        for k, atoms in enumerate(found):
            system = System.from_atoms(atoms)
            named = {"compound": str(atoms.symbols), "source": f"'{path}', frame {k}"}
            positions, cell = np.asarray(system.positions, float), np.asarray(system.cell, float)
            out.append(Frame(np.asarray(system.numbers, np.int32), positions, cell, system.pbc, **named))
    return out


def _by_name(patterns: Sequence[str]) -> list[tuple[str, Path]]:
    """(compound, file) of files of phonopy: in the usual layout all have one name and their folders tell them apart."""
    from jaxmd_thermal.training.data import compound_of, told_apart

    files = _files(patterns)
    return list(zip(told_apart(files, [compound_of(f) for f in files]), files, strict=True))


def frames_of(data: Data, third: bool = False) -> list[Any]:
    """The labelled structures that a table of the configuration names; with third derivatives where files have them.

    Raises:
      InputError: files that are missing or broken, a manifest without such a split.
    """
    from jaxmd_thermal.io.datasets import read_displaced_frames, read_frames, read_phonon_frames

    frames: list[Any] = []
    for path in _files(data.structures):
        frames += read_frames(path, check_units=data.check_units)
    at_rest: list[tuple[str, Path]] = _by_name(data.phonons)
    displaced: list[tuple[str, Path]] = _by_name(data.displaced)
    if data.manifest is not None:
        chosen = [(r["key"], r["path"]) for r in read_manifest(data.manifest) if r.get("split") in data.split]
        if not chosen:
            raise InputError(f"'{data.manifest}' has no rows whose `split` is {' or '.join(data.split)}")
        (at_rest if data.labels == "hessian" else displaced).extend(chosen)
    for name, path in at_rest:
        frames += read_phonon_frames(
            path, compound=name, at_rest=data.forces_at_rest, stress=data.stress_at_rest, third=third,
            cells=data.cells, max_atoms=data.max_atoms, check_units=data.check_units,
        )  # fmt: skip
    for name, path in displaced:
        frames += read_displaced_frames(path, compound=name, check_units=data.check_units)
    known = {f.compound for f in frames} | {name for name, _ in (*at_rest, *displaced)}
    unknown = sorted(set(data.exclude) - known)
    if unknown:
        raise InputError(f"exclude names {unknown}, which are not in the data{nearest(unknown[0], known)}")
    frames = [f for f in frames if f.compound not in data.exclude]
    kept = [f for f in frames if data.max_atoms is None or f.n_atoms <= data.max_atoms]
    if not kept:
        reasons = [f"max_atoms is {data.max_atoms}"] * (data.max_atoms is not None) + ["exclude"] * bool(data.exclude)
        raise InputError(
            f"no structure of the data is left ({', '.join(reasons) or 'the files are empty'}): allow for more"
        )
    return kept


def read_manifest(path: str) -> list[dict[str, Any]]:
    """Rows of a CSV file with the column `key`, the name of a phonopy file beside it; `path` is added.

    Raises:
      InputError: no such file, or no such column.
    """
    file = Path(_expanded(path))
    try:
        with file.open() as lines:
            rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the manifest '{file}' cannot be read: {error}") from error
    if not rows or "key" not in rows[0]:
        raise InputError(
            f"the manifest '{file}' has no column `key`: a CSV file with key, split and functional is expected"
        )
    for row in rows:
        candidates = [file.parent / (row["key"] + suffix) for suffix in SUFFIXES]
        row["path"] = next((p for p in candidates if p.is_file()), None)
        if row["path"] is None:
            raise InputError(f"'{file}' names '{row['key']}', but there is no {candidates[0]} (or .xz, .gz)")
    return rows
