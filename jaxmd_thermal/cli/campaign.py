"""`campaign`: one protocol over many compounds, one Dask job each, restartable; a table beside the DFT values.

Every compound has a folder of its own with the files of `wigner`; its `result.json` is written last and marks it as done. A
worker that dies loses at most the stage it was in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal._backend import forget_programs, quiet_compiler
from jaxmd_thermal.cli.progress import Stages, announce, duration
from jaxmd_thermal.cli.settings import require, settings_for
from jaxmd_thermal.errors import InputError, ThermalError, UnstableError

TEMPERATURE = 300.0
DISPLACEMENT = 0.03
METHOD = "wigner"
OPTIONS = {"temperatures": [TEMPERATURE], "sigma": None, "isotopes": True, "nac": False, "boundary": None,
           "populations": "quantum"}  # fmt: skip
"""Of both protocols: tetrahedra, natural isotopes, no non-analytic term, 300 K."""
REPEATABLE = ("out", "compounds", "workers", "scheduler", "batch_size", "data")
"""Options that may differ when a campaign goes on: they do not change its numbers."""
RESULT = "result.json"


def run(verb: str, typed: dict[str, Any], config: str | None, *, dry_run: bool = False, show: bool = True) -> int:
    """`campaign`: compute the compounds that are not there yet and write the table. Returns the exit code."""
    quiet_compiler()
    settings = settings_for(verb, typed, config)
    require(settings, verb, "data", "potential")
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.io.phonondb import chosen, read_compounds

    everything = read_compounds(settings.data)
    compounds = chosen(everything, settings.compounds)
    potential = load_potential(settings.potential)  # a wrong name should fail here and not in every job
    out = Path(settings.out or Path("runs") / f"{settings.name}-{Path(settings.potential).name}-{settings.protocol}")
    todo = [c for c in compounds if not _done(out, c)]
    announce(
        f"{verb} {settings.name}: {settings.potential}, protocol {settings.protocol}; {len(compounds)} of {len(everything)} "
        f"compounds, {len(compounds) - len(todo)} of them done already -> {out}"
    )
    if dry_run:
        _estimate(todo, potential, settings)
        return 0
    from jaxmd_thermal.cli.commands import remember

    distributed = None if not todo else _distributed()
    remember(out, verb, settings, repeatable=REPEATABLE)
    if todo:
        with _client(distributed, settings) as client:
            _work(distributed, client, todo, settings, out, everything)
    table = write_table(settings, everything, out)
    if show:
        _show(table, out)
    return 0


def _done(out: Path, compound: Any) -> bool:
    """Finished, with a value or with a failure of the model; technical errors are tried again."""
    record = _record(out, compound.mp_id)
    return record is not None and not record.get("error")


def _record(out: Path, mp_id: str) -> dict[str, Any] | None:
    try:
        found = json.loads((_folder(out, mp_id) / RESULT).read_text())
        return found if isinstance(found, dict) and "mp_id" in found else None
    except (OSError, ValueError):
        return None  # it is computed again


def _folder(out: Path, mp_id: str) -> Path:
    return out.absolute() / "compounds" / mp_id


# Jobs


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise InputError(
            "campaigns are run by Dask, which is not installed: pip install 'jaxmd-thermal[campaign]' (or 'dask[distributed]')"
        ) from error
    return distributed


@contextmanager
def _client(distributed: Any, settings: Any) -> Iterator[Any]:
    """A client of the scheduler at an address, or of a cluster of this machine that lives as long as the command."""
    if settings.scheduler != "local":
        try:
            client = distributed.Client(settings.scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"--scheduler: no Dask scheduler answers at '{settings.scheduler}' ({error}); start one (`dask scheduler`), or "
                "use 'local'"
            ) from error
        with client:
            yield client
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    threads = str(max(1, len(cores) // settings.workers))

    class OwnCores(distributed.WorkerPlugin):
        """Every worker its own cores: XLA starts a thread on each core it may use, and those of all workers on all cores
        cost up to twice the CPU time. A worker that is started anew gets them again."""

        def setup(self, worker: Any) -> None:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, share_of(cores, int(worker.name), settings.workers))

    # A worker is a process of its own; the limit of memory is the machine's, the estimate before each job guards it.
    with distributed.LocalCluster(
        n_workers=settings.workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=":0",
        silence_logs="ERROR", env={"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    ) as cluster, distributed.Client(cluster) as client:  # fmt: skip
        client.register_plugin(OwnCores())
        yield client


def share_of(cores: list[int], worker: int, workers: int) -> list[int]:
    """Cores of one of several workers; with more workers than cores, some share one."""
    return cores[worker % workers :: workers] or [cores[worker % len(cores)]]


def _work(distributed: Any, client: Any, todo: list, settings: Any, out: Path, everything: list) -> None:
    jobs = {}
    for place, compound in enumerate(todo):
        future = client.submit(
            run_compound,
            _job(compound, settings, out),
            key=f"{compound.mp_id}-{os.getpid()}",
            priority=-place,
            pure=False,
        )
        jobs[future] = compound
    for count, future in enumerate(distributed.as_completed(list(jobs)), start=1):
        compound = jobs[future]
        folder = _folder(out, compound.mp_id)
        if future.status == "finished":
            record, modes = future.result()
            _keep(folder, record, modes)
        else:  # the worker died as often as Dask tries
            _keep(folder, _empty(compound, settings) | {"error": f"the worker died: {future.exception()}"}, None)
        write_table(settings, everything, out)
        announce(f"{count} of {len(todo)}: {_line(_record(out, compound.mp_id) or {})}")


def _job(compound: Any, settings: Any, out: Path) -> dict[str, Any]:
    return {
        "compound": compound, "potential": settings.potential, "protocol": settings.protocol,
        "batch_size": settings.batch_size, "dtype": settings.dtype, "folder": str(_folder(out, compound.mp_id)),
        "empty": _empty(compound, settings),
    }  # fmt: skip


def _empty(compound: Any, settings: Any) -> dict[str, Any]:
    return {
        "mp_id": compound.mp_id, "name": compound.name, "structure": compound.kind, "potential": settings.potential,
        "protocol": settings.protocol, "dtype": settings.dtype, "failed": "", "error": "", "kappa": None, "populations": None,
        "coherences": None,
    }  # fmt: skip


def _keep(folder: Path, record: Mapping[str, Any], modes: bytes | None) -> None:
    """Results of a worker without a disk in common with us; one that shares the disk has written them itself."""
    from jaxmd_thermal.transport.results import write_json

    if (folder / RESULT).exists() and json.loads((folder / RESULT).read_text()) == record:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if modes is not None:
        partial = folder / f".modes.{os.getpid()}.partial"
        partial.write_bytes(modes)
        partial.replace(folder / record["mode_file"])
    write_json(record, folder / RESULT)


def run_compound(job: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    """One compound from its structure to its conductivity, in its folder; runs on a worker.

    Returns: the record (as in result.json), and the mode file's content. A failure of the model or an error is a record, too.
    """

    from jaxmd_thermal._backend import enable_compilation_cache, versions
    from jaxmd_thermal.cli.usage import Usage
    from jaxmd_thermal.transport.results import to_json, write_json

    quiet_compiler()
    enable_compilation_cache()
    folder, usage = Path(job["folder"]), Usage()
    folder.mkdir(parents=True, exist_ok=True)
    record = dict(job["empty"])
    try:
        record |= _computed(job, folder)
    except UnstableError as error:
        record["failed"] = str(error)
    except Exception as error:  # whatever happens to one compound must not end the campaign
        record["error"] = str(error) if isinstance(error, ThermalError) else f"{type(error).__name__}: {error}"
    finally:
        forget_programs()
    record |= {
        "last_run": usage.so_far(), "stages": _stages(folder), "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    record = to_json(record)
    write_json(record, folder / RESULT)
    name = record.get("mode_file")
    return record, (folder / name).read_bytes() if name else None


def _computed(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from jaxmd_thermal.cli.crystal import Source, conductivity_stage, crystal_and_constants, plan
    from jaxmd_thermal.io.lattice_directory import LatticeDirectory
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.lattice.problem import refuse_too_large

    c = job["compound"]
    source = Source(load_potential(job["potential"]), c.atoms, job["protocol"], c.supercell, c.fc3_supercell, DISPLACEMENT,
                    job["batch_size"], c.primitive, dtype=job["dtype"])  # fmt: skip
    refuse_too_large(plan(source), c.mesh)
    kept, stages = LatticeDirectory(folder), Stages(c.label)
    atoms, constants = crystal_and_constants(source, kept, stages)
    relaxation = atoms.info["relaxation"]
    found = {"cell_lengths_A": atoms.cell.lengths(), "relaxation": relaxation}
    if not relaxation["symmetry_kept"]:
        return found | {"failed": f"the relaxation changed the space group to {relaxation['space_group']}"}
    (entry,) = conductivity_stage(constants, c.mesh, METHOD, OPTIONS, source, atoms, kept, stages)
    value = entry["thermal_conductivity_W_mK"]["isotropic"]
    return found | {
        "failed": "" if value is not None else entry["details"]["invalid"] or "the conductivity is not finite",
        "kappa": value, "populations": entry["populations_W_mK"]["isotropic"],
        "coherences": entry["coherences_W_mK"]["isotropic"], "mode_file": entry["mode_file"],
    }  # fmt: skip


def _stages(folder: Path) -> dict[str, Any]:
    from jaxmd_thermal.io.lattice_directory import LatticeDirectory

    return LatticeDirectory(folder).times


# Table


def write_table(settings: Any, everything: list, out: Path) -> dict[str, Any]:
    """campaign.json, table.csv and report.html of all compounds that have been worked on; metrics are computed anew."""
    from jaxmd_thermal._backend import versions
    from jaxmd_thermal.io.phonondb import published
    from jaxmd_thermal.lattice import metrics
    from jaxmd_thermal.report.campaign import build_campaign_report, write_csv
    from jaxmd_thermal.transport.results import write_json

    theirs, means = published(settings.data, Path(settings.potential).name)
    rows = []
    for compound in everything:
        record = _record(out, compound.mp_id)
        if record is not None:
            rows.append(_row(record, compound, theirs.get(compound.mp_id, {}), _folder(out, compound.mp_id)))
    document = {
        "campaign": settings.name, "potential": settings.potential, "protocol": settings.protocol,
        "reference": "DFT (PBE) without non-analytic term", "temperature_K": TEMPERATURE, "compounds": len(everything),
        "done": len(rows), "failed": sum(bool(r["failed"] or r["error"]) for r in rows),
        "means": {
            "srme": metrics.summary([r["srme"] for r in rows]) if rows else None,
            "sre": metrics.summary([r["sre"] for r in rows]) if rows else None,
            "srd": float(np.mean(valid)) if (valid := [r["srd"] for r in rows if r["srd"] is not None]) else None,
        },
        "published_means": means, "rows": rows, "versions": versions(), "machine": _machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_json(document, out / "campaign.json")
    write_csv(rows, out / "table.csv")
    build_campaign_report(out)
    return document


def _row(record: Mapping[str, Any], compound: Any, theirs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row of the table: value, reference, metrics, cost."""
    from jaxmd_thermal.lattice.metrics import srd as signed
    from jaxmd_thermal.lattice.metrics import sre, srme

    failed, result = record["failed"], None
    if not failed and not record["error"]:
        result, problem = _result(record, compound, folder)
        failed = failed or problem
    used = record.get("last_run") or {}
    stages = (record.get("stages") or {}).values()
    srd = signed(result, compound.dft, TEMPERATURE) if result is not None else float("nan")
    nac = compound.dft_nac
    return {
        **{k: record[k] for k in ("mp_id", "name", "structure", "kappa", "populations", "coherences")},
        "kappa_dft": float(compound.dft["kappa_TOT_ave"][0]),
        "srd": float(srd) if np.isfinite(srd) else None, "sre": sre(result, compound.dft, TEMPERATURE),
        "srme": srme(result, compound.dft, TEMPERATURE),
        "kappa_dft_nac": None if nac is None else float(nac["kappa_TOT_ave"][0]),
        "published_kappa": theirs.get("kappa"), "published_srme": theirs.get("srme"),
        "published_median_srme": theirs.get("median_srme"),
        "seconds": round(sum(s.get("seconds", 0.0) for s in stages), 1),
        "cpu_seconds": round(sum(s.get("cpu_seconds", 0.0) for s in stages), 1),
        "compile_seconds": round(sum(s.get("compile_seconds", 0.0) for s in stages), 1),
        "peak_memory_GB": used.get("peak_memory_GB"), "device_GB": used.get("device_GB"),
        "failed": failed, "error": record["error"], "cell_lengths_A": record.get("cell_lengths_A"),
        "dtype": record["dtype"], "device": (record.get("versions") or {}).get("device"), "versions": record.get("versions"),
        "date": record.get("date"),
    }  # fmt: skip


def _result(record: Mapping[str, Any], compound: Any, folder: Path) -> tuple[Any, str]:
    """(what the metrics take, reason why there is nothing)."""
    from jaxmd_thermal.io.hdf5 import read_arrays

    try:
        modes, _ = read_arrays(folder / str(record.get("mode_file")))
    except InputError as error:
        return None, str(error)
    off = modes["qpoints"] - compound.dft["qpoints"] if modes["qpoints"].shape == compound.dft["qpoints"].shape else 1.0
    if np.max(np.abs(off - np.rint(off))) > 1e-6 or not np.array_equal(modes["weights"], compound.dft["weights"]):
        return None, "its q-points are not those of the reference"
    kept = {"kappa_TOT_ave": [record["kappa"]], "mode_kappa_TOT_ave": modes["mode_kappa"], "weights": modes["weights"]}
    return {**kept, "temperatures": modes["temperatures"]}, ""


def _machine() -> str:
    import platform

    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def _line(record: Mapping[str, Any]) -> str:
    what = f"{record.get('name')} {record.get('structure')}"
    used = duration(float((record.get("last_run") or {}).get("seconds") or 0.0))
    if record.get("error"):
        return f"{what}: error, {record['error']} ({used}; tried again next time)"
    if record.get("failed"):
        return f"{what}: failed, {record['failed']} ({used})"
    return f"{what}: {record.get('kappa'):.4g} W/(m K) ({used})"


def _show(table: Mapping[str, Any], out: Path) -> None:
    for r in table["rows"]:
        value = f"{r['kappa']:.4f}" if r["kappa"] is not None else "failed"
        announce(
            f"  {r['name'] + ' ' + r['structure']:<18} kappa {value:>9}  DFT {r['kappa_dft']:9.4f}  SRE {r['sre']:.4f}  "
            f"SRME {r['srme']:.4f}"
        )
    if table["rows"]:
        announce(f"mean of {table['done']} of {table['compounds']} compounds: SRME {table['means']['srme']:.4f}, "
                 f"SRE {table['means']['sre']:.4f}, {table['failed']} failed")  # fmt: skip
    announce(f"report: {out / 'report.html'}, table: {out / 'table.csv'}")


def _estimate(todo: list, potential: Any, settings: Any) -> None:
    from jaxmd_thermal.cli.crystal import Source, plan
    from jaxmd_thermal.cli.estimate import estimate_lattice

    shown: set[str] = set()
    for c in todo:  # one of each structure: the others of its kind cost about the same
        if c.kind not in shown:
            shown.add(c.kind)
            source = Source(potential, c.atoms, settings.protocol, c.supercell, c.fc3_supercell, DISPLACEMENT,
                            settings.batch_size, c.primitive)  # fmt: skip
            announce(f"{c.label} (1 of {sum(x.kind == c.kind for x in todo)} of this structure)")
            announce(estimate_lattice(source, plan(source), c.mesh, (METHOD,), 1))
