"""`compare`: lattice dynamics beside molecular dynamics of the same potential at the same lattice constant, in one report.

Like with like: the cell as given (only positions are relaxed), no isotope disorder (dynamics has one mass per element), classical
populations beside the quantum ones. What remains is physics: dynamics holds every order of anharmonicity, lattice dynamics
three-phonon processes; dynamics has a cell of finite size, lattice dynamics a mesh. HNEMD is driven along x unless forces are
given, and the report sets its value beside the same component of Green-Kubo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal._backend import quiet_compiler
from jaxmd_thermal.cli import commands, lattice
from jaxmd_thermal.cli.progress import announce
from jaxmd_thermal.cli.settings import require, settings_for

METHODS = ["wigner", "rta", "lbte"]
LATTICE_OPTIONS = ("mesh", "fc3_supercell", "displacement", "ad", "sigma", "batch_size")
DYNAMICS_OPTIONS = ("supercell", "timestep", "steps", "equilibration", "replicas", "seed", "dtype")
SHARE, REACH = 0.9, 0.2
"""The default driving force times the mean free path, up to which SHARE of the heat is carried, is REACH: well below one, where
the response stops being linear (Fan et al., PRB 99, 064308 (2019))."""


def run(verb: str, typed: dict[str, Any], config: str | None, *, dry_run: bool = False, show: bool = True) -> int:
    """Every part in a folder of its own, by the functions of its verb; then one results.json and one report."""
    quiet_compiler()
    settings = settings_for(verb, typed, config)
    require(settings, verb, "structure", "potential", "temperature")
    out = Path(settings.out or Path("runs") / f"{Path(settings.structure).stem}-compare-{settings.temperature:g}K")
    given = {k: getattr(settings, k) for k in settings.model_fields_set}
    common = {"structure": settings.structure, "potential": settings.potential}
    mesh = settings.mesh or _mesh(settings)
    _introduce(settings)
    quantum = common | {k: v for k, v in given.items() if k in LATTICE_OPTIONS} | {
        "mesh": mesh, "supercell": settings.fc2_supercell, "temperature": (settings.temperature,), "method": tuple(METHODS),
        "isotopes": False, "protocol": "positions", "out": str(out / "lattice-quantum"),
    }  # fmt: skip
    dynamics = (
        common | {k: v for k, v in given.items() if k in DYNAMICS_OPTIONS} | {"temperature": settings.temperature}
    )
    if not dry_run:
        commands.remember(out, verb, settings)
    lattice.run("wigner", quantum, None, dry_run=dry_run, show=False)
    folders = [out / "lattice-quantum", out / "lattice-classical", out / "green-kubo", out / "hnemd"]
    if not dry_run:
        # The force constants are the same; only the populations differ.
        classical = {k: quantum[k] for k in ("mesh", "temperature", "method", "isotopes", "sigma") if k in quantum}
        classical |= {"force_constants": str(folders[0] / "force_constants"), "populations": "classical"}
        lattice.run("wigner", classical | {"out": str(folders[1])}, None, show=False)
    commands.run("green-kubo", dynamics | {"out": str(folders[2])}, None, dry_run=dry_run, show=False)
    force = settings.driving_force or (((0.01, 0.0, 0.0),) if dry_run else _force(folders[1], settings))
    commands.run(
        "hnemd", dynamics | {"driving_force": force, "out": str(folders[3])}, None, dry_run=dry_run, show=False
    )
    if dry_run:
        return 0
    document = commands.combine(out, folders, one_cell=False)
    if show:
        lattice.show_results(document, out)
    return 0


def _mesh(settings: Any) -> tuple[int, int, int]:
    from jaxmd_thermal.cli.crystal import Source, default_mesh
    from jaxmd_thermal.io.ase import atoms_from

    return default_mesh(Source(None, atoms_from(settings.structure), supercell=(1, 1, 1)))


def _introduce(settings: Any) -> None:
    from jaxmd_thermal.io.ase import atoms_from, supercell

    atoms = atoms_from(settings.structure)
    lengths = ", ".join(f"{x:.5g}" for x in atoms.cell.lengths())
    announce(
        f"compare: every part with cell lengths {lengths} Å of the given cell; dynamics in "
        f"{len(supercell(atoms, settings.supercell))} atoms; isotope disorder nowhere"
    )


def _force(folder: Path, settings: Any) -> tuple[tuple[float, float, float], ...]:
    """A driving force along x in the linear regime, from the mean free paths of classical lattice dynamics."""
    import json

    from jaxmd_thermal.lattice.cumulative import cumulative
    from jaxmd_thermal.report.lattice_data import load_lattice

    document = json.loads((folder / "results.json").read_text())
    found = load_lattice(folder, document, [])
    assert found is not None
    x, kappa = cumulative(next(iter(found.modes.values())), "mean_free_path")
    length = float(x[min(int(np.searchsorted(kappa, SHARE * kappa[-1])), len(x) - 1)])
    force = float(f"{REACH / length:.0e}")
    announce(
        f"hnemd: driving force {force:g}/Å along x, {REACH:g} over the mean free path up to which {100 * SHARE:.0f} % of the "
        f"heat is carried ({length:.3g} Å); compared with the xx component of Green-Kubo"
    )
    return ((force, 0.0, 0.0),)
