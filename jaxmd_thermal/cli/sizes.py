"""The verb `green-kubo` in cells of several sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxmd_thermal.cli import commands
from jaxmd_thermal.errors import InputError


def run_sizes(settings: Any, dry_run: bool) -> int:
    """The same run in several cells; the largest is the result, and its verdict knows of the others."""
    import numpy as np

    from jaxmd_thermal._backend import use_all_cores
    from jaxmd_thermal.io.ase import supercell
    from jaxmd_thermal.io.models import load_potential
    from jaxmd_thermal.report import build_report
    from jaxmd_thermal.transport.results import Verdict, results_document, write_json

    if settings.volume is not None:
        raise InputError(
            f"--volume is {settings.volume:g} Å^3, but the cells of --sizes have volumes of their own: drop it for a crystal, "
            "give --thickness for a slab, or run the sizes one by one"
        )
    out = commands.directory("green-kubo", settings)
    sizes = sorted(set(settings.sizes), key=np.prod)
    if not dry_run:
        # `resume` needs to know the whole from the start; what is refused leaves nothing behind.
        use_all_cores()  # as in `commands.one`
        load_potential(settings.potential)
        supercell(settings.structure, sizes[-1])
        commands.remember(out, "green-kubo", settings)
    results = []
    for size in sizes:
        name = "x".join(map(str, size))
        one = settings.model_copy(update={"supercell": size, "sizes": (), "out": str(out / name)})
        results.append((size, commands.one("green-kubo", one, out / name, dry_run)))
    if dry_run:
        return 0
    size, largest = results[-1]
    rows = [
        {"supercell": list(s), "n_atoms": r.n_atoms, "isotropic": r.isotropic, "stderr": r.isotropic_stderr}
        for s, r in results
    ]
    verdict = largest.verdict
    for s, r in results[:-1]:
        sigma = float(np.hypot(r.isotropic_stderr or 0.0, largest.isotropic_stderr or 0.0))
        if sigma and abs(r.isotropic - largest.isotropic) > 2.0 * sigma:
            text = f"the cell matters: {r.isotropic:.3g} W/(m K) in {'x'.join(map(str, s))}, a larger cell is needed"
            verdict = Verdict(False, f"not converged: {verdict.text.removeprefix('converged: ')}; {text}")
    largest = replace(largest, verdict=verdict, details={**largest.details, "sizes": rows})
    plain = commands.plain_settings(settings.model_copy(update={"supercell": size}))
    write_json(results_document([largest], largest.n_atoms, largest.volume, plain, largest.versions, largest.seed), out)
    build_report(out)
    commands.show_conductivities([r for _, r in results], out)
    return 0
