"""The verbs of lattice dynamics, `phonons` and `wigner`: relaxed cell, force constants, phonons, conductivity, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxmd_thermal._backend import quiet_compiler
from jaxmd_thermal.cli.crystal import (
    FACES2,
    FACES3,
    Source,
    conductivity_stage,
    crystal_and_constants,
    default_mesh,
    everywhere,
    plan,
    smallest_supercell,
    stability,
    times,
    write_phonons,
)
from jaxmd_thermal.cli.progress import Stages, announce, summary
from jaxmd_thermal.cli.settings import require, settings_for
from jaxmd_thermal.errors import InputError, UnstableError

CURVE_KELVIN = 1000.0
CUBIC = 195
"""The first space group of the cubic crystals."""


def run(verb: str, typed: dict[str, Any], config: str | None, *, dry_run: bool = False, show: bool = True) -> int:
    """`phonons` and `wigner`: check everything, compute what is not there yet, write, report. Returns the exit code."""
    quiet_compiler()
    from jaxmd_thermal.lattice import symmetry
    from jaxmd_thermal.lattice.grid import make_grid
    from jaxmd_thermal.lattice.isotopes import mass_variances

    settings = settings_for(verb, typed, config)
    source = source_of(verb, settings)
    mesh = settings.mesh or default_mesh(source)
    if verb == "wigner":
        _check_methods(settings)
    out = Path(settings.out) if settings.out else _default_directory(verb, settings)
    announce(_introduction(verb, settings, source, mesh, out))
    planned = plan(source)
    if verb == "wigner":
        from jaxmd_thermal.lattice.problem import refuse_too_large

        if settings.isotopes:
            mass_variances(planned.crystal.numbers)  # refuses elements without natural isotopes
        for method in settings.method:
            refuse_too_large(planned, mesh, len(settings.temperature), method=method)
    make_grid(planned.crystal.lattice, mesh, symmetry.point_group(planned.crystal))  # refuses what breaks the symmetry
    if dry_run:
        from jaxmd_thermal.cli.estimate import estimate_lattice

        methods = settings.method if verb == "wigner" else ()
        announce(estimate_lattice(source, planned, mesh if methods else None, methods, len(settings.temperature)))
        return 0
    from jaxmd_thermal._backend import enable_compilation_cache
    from jaxmd_thermal.cli.commands import remember

    remember(out, verb, settings, source.atoms)
    enable_compilation_cache()
    stages = Stages()
    document = (_wigner if verb == "wigner" else _phonons)(settings, source, mesh, out, stages)
    _write(document, out)
    if show:
        show_results(document, out)
    return 0


def source_of(verb: str, settings: Any) -> Source:
    """Potential and structure, or files, with default supercells chosen; nothing is computed.

    Raises:
      InputError: neither or both of potential and files, unreadable structure, options that contradict each other.
    """
    if settings.force_constants:
        given = [name for name in ("structure", "potential") if getattr(settings, name)]
        given += [f"--{k.replace('_', '-')}" for k in ("supercell", "fc3_supercell", "displacement", "ad", "protocol", "dtype")
                  if k in settings.model_fields_set and getattr(settings, k)]  # fmt: skip
        if given:
            raise InputError(
                f"--force-constants brings its own crystal and needs no {', no '.join(given)}: drop one or the other"
            )
        return _from_files(verb, settings)
    require(settings, verb, "structure", "potential", *(["mesh"] if verb == "wigner" else []))
    if settings.ad and "displacement" in settings.model_fields_set:
        raise InputError(f"--ad takes exact derivatives; --displacement {settings.displacement:g} has no use: drop one")
    if settings.nac:
        raise InputError(
            "--nac needs Born charges, which a potential does not have: give --force-constants with a BORN file"
        )
    from jaxmd_thermal.io.ase import atoms_from
    from jaxmd_thermal.io.models import load_potential

    atoms = atoms_from(settings.structure)
    if not all(atoms.pbc):
        raise InputError(
            f"lattice dynamics needs a crystal that is periodic in three directions; '{settings.structure}' is periodic along "
            f"{''.join(a for a, p in zip('abc', atoms.pbc) if p) or 'none'}"
        )
    if getattr(settings, "quasi_harmonic", None):
        from jaxmd_thermal.lattice.quasi_harmonic import volume_factors

        volume_factors(settings.quasi_harmonic)
    third = None
    if verb == "wigner":
        third = settings.fc3_supercell or smallest_supercell(atoms, FACES3)
    return Source(
        load_potential(settings.potential), atoms, settings.protocol,
        settings.supercell or smallest_supercell(atoms, FACES2), third,
        None if settings.ad else settings.displacement, settings.batch_size, dtype=settings.dtype,
    )  # fmt: skip


def _from_files(verb: str, settings: Any) -> Source:
    from ase import Atoms

    from jaxmd_thermal.lattice.force_constants import ForceConstants

    require(settings, verb, *(["mesh"] if verb == "wigner" else []))
    if getattr(settings, "quasi_harmonic", None):
        raise InputError(
            "--quasi-harmonic needs the energies of other volumes, which only a --potential can give: drop it"
        )
    files = ForceConstants.from_phono3py(settings.force_constants)
    if verb == "wigner" and files.fc3 is None:
        raise InputError(
            f"'{settings.force_constants}' holds no third order: fc3.hdf5, or forces of phono3py's displacements, are needed"
        )
    c = files.crystal
    atoms = Atoms(numbers=c.numbers, scaled_positions=c.positions, cell=c.lattice, masses=c.masses, pbc=True)
    return Source(None, atoms, protocol="none", files=files)


def _check_methods(settings: Any) -> None:
    from jaxmd_thermal.errors import nearest
    from jaxmd_thermal.lattice.problem import METHODS

    for method in settings.method:
        if method not in METHODS:
            raise InputError(f"--method is '{method}'{nearest(method, METHODS)}: expected of {', '.join(METHODS)}")


def _default_directory(verb: str, settings: Any) -> Path:
    return Path("runs") / f"{Path(str(settings.structure or settings.force_constants)).stem}-{verb}"


def _introduction(verb: str, settings: Any, source: Source, mesh: Any, out: Path) -> str:
    from jaxmd_thermal.io.ase import formula

    lines = [f"{verb}: {formula(source.atoms.numbers)}, mesh {times(mesh)} of the primitive cell -> {out}"]
    if source.files is None:
        for name, value, faces in (("supercell", source.supercell, FACES2),
                                   ("fc3_supercell", source.fc3_supercell, FACES3)):  # fmt: skip
            if value is not None:
                atoms = len(source.atoms) * int(np.prod(value))
                chosen = "" if getattr(settings, name) else f", the smallest with {faces:g} Å between its faces"
                order = "second" if name == "supercell" else "third"
                lines.append(f"  {order} order: supercell {times(value)}, {atoms} atoms{chosen}")
    elif source.files.crystal.born is not None:
        used = "used (--no-nac: not)" if _uses_nac(settings, source) else "not used (--nac: used)"
        lines.append(f"  Born charges are known; the non-analytic correction is {used}")
    return "\n".join(lines)


def _wigner(settings: Any, source: Source, mesh: Any, out: Path, stages: Stages) -> dict[str, Any]:
    from jaxmd_thermal._backend import versions
    from jaxmd_thermal.io.lattice_directory import LatticeDirectory
    from jaxmd_thermal.lattice.density import mesh_phonons
    from jaxmd_thermal.lattice.phonons import bands

    folder = LatticeDirectory(out)
    atoms, constants = crystal_and_constants(source, folder, stages)
    with stages("phonons", "bands and density of states"):
        solved, along = mesh_phonons(constants, mesh, settings.nac, eigenvectors=True), bands(constants, settings.nac)
        write_phonons(out / "phonons.hdf5", constants, solved, along)
        told = stability(constants, everywhere(solved, along))
    entries = []
    for method in settings.method:
        options = {
            "temperatures": list(settings.temperature), "sigma": settings.sigma, "isotopes": settings.isotopes,
            "nac": settings.nac, "boundary": settings.boundary, "populations": settings.populations,
        }  # fmt: skip
        entries += conductivity_stage(constants, mesh, method, options, source, atoms, folder, stages, *told)
    return document(entries, constants, _facts(settings, source, mesh, atoms), versions()) | {"stages": folder.times}


def _phonons(settings: Any, source: Source, mesh: Any, out: Path, stages: Stages) -> dict[str, Any]:
    from jaxmd_thermal._backend import versions
    from jaxmd_thermal.io.lattice_directory import LatticeDirectory
    from jaxmd_thermal.lattice.density import mesh_phonons
    from jaxmd_thermal.lattice.phonons import bands
    from jaxmd_thermal.lattice.thermodynamics import mean_square_displacements, thermodynamics
    from jaxmd_thermal.transport.results import write_json

    folder = LatticeDirectory(out)
    atoms, constants = crystal_and_constants(source, folder, stages)
    kelvin, nac = np.array(settings.temperature), _uses_nac(settings, source)
    grid = np.linspace(0.0, max(CURVE_KELVIN, float(kelvin.max())), 101)
    with stages("phonons", f"mesh {times(mesh)}"):
        solved, along = mesh_phonons(constants, mesh, nac, eigenvectors=True), bands(constants, nac)
        curve, at = thermodynamics(solved, grid), thermodynamics(solved, kelvin)
        moved = mean_square_displacements(solved, kelvin)
        more: dict[str, Any] = {
            "thermodynamics": {k: v for k, v in asdict(curve).items() if isinstance(v, np.ndarray)},
            "displacements": {
                "temperatures": grid[1:],
                "u2": _mean_square(mean_square_displacements(solved, grid[1:])),
            },
        }
    expansion = equilibrium = None
    if settings.grueneisen:
        with stages("grueneisen", "volumes of ±1 %" if source.files is None else "third order"):
            expansion, arrays = _expansion(settings, source, atoms, constants, mesh, kelvin)
            more["grueneisen"] = arrays
    if settings.quasi_harmonic:
        from jaxmd_thermal.lattice.quasi_harmonic import POINTS

        low, high = settings.quasi_harmonic
        with stages("quasi_harmonic", f"{POINTS} volumes from {low:g} to {high:g}"):
            equilibrium, more["quasi_harmonic"] = _quasi_harmonic(settings, source, atoms, mesh, kelvin)
    write_phonons(out / "phonons.hdf5", constants, solved, along, more)
    crystal = constants.crystal
    facts = _facts(settings, source, mesh, atoms)
    seen = everywhere(solved, along)
    text, (unstable, remark) = seen.describe_imaginary(), stability(constants, seen)
    if text and not unstable:
        text = f"{text}{remark}"
    # Segments of the path share their ends.
    imaginary = [{"q": list(q), "band": band, "frequency_THz": f} for q, band, f in dict.fromkeys(seen.imaginary)]
    on_path = min((p.frequencies.min() for p in along.phonons), default=0.0)
    write_json(
        {
            "temperatures_K": kelvin, "free_energy_kJ_mol": at.free_energy, "entropy_J_mol_K": at.entropy,
            "heat_capacity_J_mol_K": at.heat_capacity, "zero_point_kJ_mol": at.zero_point,
            "excluded_share": at.excluded, "mean_square_displacements_A2": moved, "numbers": crystal.numbers,
            "imaginary": text, "imaginary_modes": imaginary,
            "lowest_frequency_of_bands_THz": float(on_path), "grueneisen": expansion,
            "quasi_harmonic": equilibrium,
            "n_atoms": len(crystal.numbers), "volume_A3": crystal.volume, "settings": facts, "versions": versions(),
        },
        out / "phonons.json",
    )  # fmt: skip
    return document([], constants, facts, versions()) | {"stages": folder.times}


def _mean_square(tensor: np.ndarray) -> np.ndarray:
    """(temperatures, atoms) Å^2: one third of the trace."""
    return np.trace(tensor, axis1=-2, axis2=-1) / 3.0


def _expansion(settings, source: Source, atoms, constants, mesh, kelvin) -> tuple[dict[str, Any], dict[str, Any]]:
    """(averages for phonons.json, mode parameters for the figure).

    The expansion needs a potential; it is linear only in cubic crystals and a tensor in all, which needs a relaxed cell."""
    from jaxmd_thermal.lattice.expansion import thermal_expansion
    from jaxmd_thermal.lattice.grueneisen import bulk_modulus, grueneisen, grueneisen_from_fc3
    from jaxmd_thermal.lattice.symmetry import space_group

    modulus = linear = tensor = None
    why = "the expansion needs a potential: elastic stiffness is not in the files"
    if source.files is not None:
        found = grueneisen_from_fc3(constants, mesh, _uses_nac(settings, source))
    else:
        options = {"displacement": source.displacement, "batch_size": source.batch_size}
        found = grueneisen(source.potential, atoms, source.supercell, mesh, **options)
        if space_group(atoms)[1] >= CUBIC:
            modulus = bulk_modulus(source.potential, atoms)
            linear = found.linear_expansion(kelvin, modulus)
            tensor = linear[:, None, None] * np.eye(3)
        elif source.protocol == "converged":
            try:
                strained = thermal_expansion(source.potential, atoms, source.supercell, mesh, kelvin, **options)
                modulus, tensor = strained.bulk_modulus, strained.expansion
            except UnstableError as error:
                why = str(error)
        else:
            why = "the expansion of a crystal that is not cubic needs its relaxed cell: --protocol converged"
    averages = {
        "mean": found.mean(kelvin), "bulk_modulus_GPa": modulus, "linear_expansion_1_K": linear, "expansion_tensor_1_K": tensor,
        "volumetric_expansion_1_K": None if tensor is None else np.trace(tensor, axis1=1, axis2=2),
        "invalid": why if tensor is None else "",
    }  # fmt: skip
    return averages, {"frequencies": found.mesh.frequencies, "gamma": found.gamma}


def _quasi_harmonic(settings, source: Source, atoms, mesh, kelvin) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values at the temperatures asked for, curves from 0 K on); why there are none, if the free energy has no minimum."""
    from jaxmd_thermal.lattice.quasi_harmonic import quasi_harmonic

    grid = np.unique([*np.linspace(0.0, float(kelvin.max()), 31), *kelvin])
    try:
        found = quasi_harmonic(
            source.potential, atoms, source.supercell, mesh, grid, volumes=settings.quasi_harmonic,
            displacement=source.displacement, batch_size=source.batch_size,
        )  # fmt: skip
    except (InputError, UnstableError) as error:
        return {"invalid": str(error)}, {}
    at = np.searchsorted(grid, kelvin)
    values = {
        "volume_A3": found.volume[at], "bulk_modulus_GPa": found.bulk_modulus[at],
        "volumetric_expansion_1_K": found.expansion[at], "invalid": "",
    }  # fmt: skip
    return values, asdict(found)


def _uses_nac(settings: Any, source: Source) -> bool:
    """Not said: where Born charges are known."""
    known = source.files is not None and source.files.crystal.born is not None
    return known if settings.nac is None else settings.nac


def document(entries: list, constants: Any, facts: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """The whole of results.json; n_atoms and volume are those of the primitive cell."""
    from jaxmd_thermal.transport.results import to_json

    crystal = constants.crystal
    return to_json(
        {
            "results": entries, "n_atoms": len(crystal.numbers), "volume_A3": crystal.volume, "settings": facts,
            "versions": versions, "seed": None,
        }
    )  # fmt: skip


def _facts(settings: Any, source: Source, mesh: Any, atoms: Any) -> dict[str, Any]:
    """Settings as they were used: defaults filled in, and the relaxed cell."""
    plain = {k: v for k, v in settings.model_dump(mode="json").items() if v not in (None, [], "") and k != "out"}
    plain |= {"mesh": list(mesh), "nac": _uses_nac(settings, source)}
    if source.files is not None:
        return {k: v for k, v in plain.items() if k not in ("displacement", "ad", "protocol")}
    plain |= {"supercell": list(source.supercell or ())}
    if source.fc3_supercell is not None:
        plain["fc3_supercell"] = list(source.fc3_supercell)
    if source.displacement is None:
        plain.pop("displacement")
    lengths, angles = atoms.cell.lengths(), atoms.cell.angles()
    relaxation = atoms.info.get("relaxation") or {}
    return plain | {
        "cell_lengths_A": [float(x) for x in lengths], "cell_angles_deg": [float(x) for x in angles],
        "relaxation": relaxation,
    }  # fmt: skip


def _write(found: Mapping[str, Any], out: Path) -> None:
    from jaxmd_thermal.report import build_report
    from jaxmd_thermal.transport.results import write_json

    write_json(found, out)
    build_report(out)


def show_results(found: Mapping[str, Any], out: Path) -> None:
    """Table of conductivities, or of thermodynamics, and where the report is."""
    from jaxmd_thermal.report.data import conductivity

    lattice_only = all("mode_file" in e for e in found["results"])
    rows = []
    for e in found["results"]:
        value, error = conductivity(e)
        populations = "" if lattice_only else ((e["details"] or {}).get("settings") or {}).get("populations", "")
        rows.append(
            SimpleNamespace(
                method=f"{e['method']} {populations}".strip(), n_atoms=e.get("n_atoms", found["n_atoms"]),
                temperature=e["temperature_K"], isotropic=value, isotropic_stderr=error,
                verdict=SimpleNamespace(**e["verdict"]),
            )
        )  # fmt: skip
    if rows:
        summary(rows)
    elif (out / "phonons.json").exists():
        _table(out)
    announce(f"report: {out / 'report.html'}")


def _table(out: Path) -> None:
    import json

    found = json.loads((out / "phonons.json").read_text())
    if found["imaginary"]:
        announce(f"imaginary: {found['imaginary']}")
    columns = "free_energy_kJ_mol", "entropy_J_mol_K", "heat_capacity_J_mol_K"
    for k, kelvin in enumerate(found["temperatures_K"]):
        f, s, c = (found[name][k] for name in columns)
        announce(f"{kelvin:g} K, per mole of primitive cells: F {f:.4f} kJ/mol, S {s:.4f} and C_V {c:.4f} J/(mol K)")
