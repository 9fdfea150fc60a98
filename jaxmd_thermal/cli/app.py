"""Verbs and flags. What they do is in modules that are imported only when a verb runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from jaxmd_thermal.cli.flags import (
    LATTICE,
    OUTPUT,
    RUN,
    Conductivity,
    Config,
    Debug,
    DryRun,
    Dynamics,
    Lattice,
    Mesh,
    Potential,
    Structure,
    Supercell,
    Vectors,
    app,
    as_tuple,
    typed_flags,
)
from jaxmd_thermal.cli.training_verbs import evaluate as evaluate  # its import registers the verbs of training
from jaxmd_thermal.errors import ThermalError


@app.command(name="green-kubo")
def green_kubo(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    dynamics: Conductivity | None = None,
    sizes: Annotated[
        list[tuple[int, int, int]] | None,
        Parameter(help="Supercells to compare; repeat the flag: --sizes 4 4 4 --sizes 6 6 6.", group=RUN),
    ] = None,
    flux: Annotated[
        list[str] | None,
        Parameter(help="Heat flux series instead of a structure: LAMMPS, GPUMD, run.h5; repeat the flag for replicas."),
    ] = None,
    flux_units: Annotated[str | None, Parameter(help="metal, real, gpumd or internal (eV Å/fs).")] = None,
    flux_periodic: Annotated[
        str | None, Parameter(help="Axes along which the system of --flux is periodic: xy for a slab [default: xyz].")
    ] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Conductivity from the fluctuations of the heat flux at equilibrium."""
    from jaxmd_thermal.cli import commands

    typed = typed_flags(dynamics, structure=structure, potential=potential, sizes=as_tuple(sizes), flux=as_tuple(flux))
    typed |= {"flux_units": flux_units, "flux_periodic": flux_periodic}
    return commands.run("green-kubo", typed, config, dry_run=dry_run)


@app.command
def hnemd(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    dynamics: Conductivity | None = None,
    driving_force: Vectors = None,
    spectral_lags: Annotated[
        int | None,
        Parameter(
            help="Samples of memory for the spectrum, at most a quarter of the run; 0: none [default: 200].", group=RUN
        ),
    ] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Conductivity from the response to a driving force, with the spectrum of the current."""
    from jaxmd_thermal.cli import commands

    typed = typed_flags(dynamics, structure=structure, potential=potential, driving_force=as_tuple(driving_force))
    typed["spectral_lags"] = spectral_lags
    return commands.run("hnemd", typed, config, dry_run=dry_run)


@app.command
def md(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    dynamics: Dynamics | None = None,
    ensemble: Annotated[
        str | None,
        Parameter(help="nve, langevin, nose-hoover, csvr, npt, npt-flexible [default: langevin].", group=RUN),
    ] = None,
    pressure: Annotated[float | None, Parameter(help="GPa, for npt.", group=RUN)] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Molecular dynamics with a trajectory (trajectory.extxyz) and energies (run.h5)."""
    from jaxmd_thermal.cli import commands

    typed = typed_flags(dynamics, structure=structure, potential=potential, ensemble=ensemble, pressure=pressure)
    return commands.run("md", typed, config, dry_run=dry_run)


@app.command
def wigner(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    lattice: Lattice | None = None,
    fc3_supercell: Annotated[
        tuple[int, int, int] | None,
        Parameter(help="Of third order [default: the smallest with 10 Å between its faces].", group=LATTICE),
    ] = None,
    method: Annotated[
        list[str] | None,
        Parameter(
            help="wigner, rta, lbte; several are possible [default: wigner].", consume_multiple=True, group=LATTICE
        ),
    ] = None,
    sigma: Annotated[
        float | None, Parameter(help="THz, Gaussians of this width [default: linear tetrahedra].", group=LATTICE)
    ] = None,
    isotopes: Annotated[
        bool | None,
        Parameter(help="Scattering by natural isotopes [default: yes].", negative="--no-isotopes", group=LATTICE),
    ] = None,
    boundary: Annotated[
        float | None, Parameter(help="Å, mean free path of boundary scattering [default: none].", group=LATTICE)
    ] = None,
    populations: Annotated[
        str | None, Parameter(help="quantum, or classical as in molecular dynamics [default: quantum].", group=LATTICE)
    ] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Conductivity of a crystal by lattice dynamics: populations and coherences, or the Boltzmann equation."""
    from jaxmd_thermal.cli import lattice as verbs

    typed = typed_flags(lattice, structure=structure, potential=potential, fc3_supercell=fc3_supercell, sigma=sigma)
    typed |= dict(method=as_tuple(method), isotopes=isotopes, boundary=boundary, populations=populations)
    return verbs.run("wigner", typed, config, dry_run=dry_run)


@app.command
def phonons(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    lattice: Lattice | None = None,
    grueneisen: Annotated[
        bool | None, Parameter(help="Mode Grüneisen parameters and thermal expansion as well.", group=LATTICE)
    ] = None,
    quasi_harmonic: Annotated[
        tuple[float, float] | None,
        Parameter(
            help="Smallest and largest volume in units of the relaxed one, such as 0.95 1.05: volume, bulk modulus and "
            "expansion from the free energies between them.",
            group=LATTICE,
        ),
    ] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Bands, density of states, heat capacity, free energy, entropy and displacements of a crystal."""
    from jaxmd_thermal.cli import lattice as verbs

    typed = typed_flags(lattice, structure=structure, potential=potential, grueneisen=grueneisen)
    typed |= dict(quasi_harmonic=quasi_harmonic)
    return verbs.run("phonons", typed, config, dry_run=dry_run)


@app.command
def compare(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    dynamics: Dynamics | None = None,
    equilibration: Annotated[
        int | None, Parameter(help="Steps before, which are discarded [default: 10000].", group=RUN)
    ] = None,
    driving_force: Annotated[
        list[tuple[float, float, float]] | None,
        Parameter(help="1/Å, of hnemd [default: from the mean free paths].", group=RUN),
    ] = None,
    mesh: Mesh = None,
    fc2_supercell: Annotated[
        tuple[int, int, int] | None, Parameter(help="Of second order [default: 15 Å between faces].", group=LATTICE)
    ] = None,
    fc3_supercell: Annotated[
        tuple[int, int, int] | None, Parameter(help="Of third order [default: 10 Å between faces].", group=LATTICE)
    ] = None,
    displacement: Annotated[float | None, Parameter(help="Å [default: 0.03].", group=LATTICE)] = None,
    ad: Annotated[bool | None, Parameter(help="Exact derivatives instead of displacements.", group=LATTICE)] = None,
    sigma: Annotated[float | None, Parameter(help="THz [default: linear tetrahedra].", group=LATTICE)] = None,
    batch_size: Annotated[int | None, Parameter(help="Displaced cells evaluated together.", group=LATTICE)] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Lattice dynamics beside molecular dynamics: Wigner, Boltzmann, Green-Kubo and HNEMD of one potential."""
    from jaxmd_thermal.cli import compare as verbs

    typed = typed_flags(dynamics, structure=structure, potential=potential, equilibration=equilibration, mesh=mesh)
    typed |= dict(
        fc2_supercell=fc2_supercell, fc3_supercell=fc3_supercell, displacement=displacement, ad=ad, sigma=sigma
    )
    typed |= dict(batch_size=batch_size, driving_force=as_tuple(driving_force))
    return verbs.run("compare", typed, config, dry_run=dry_run)


@app.command
def campaign(
    name: Annotated[str | None, Parameter(help="phonondb103: 103 binary solids with DFT conductivities.")] = None,
    /,
    *,
    data: Annotated[str | None, Parameter(help="Folder with structures and DFT values (not shipped).")] = None,
    potential: Potential = None,
    protocol: Annotated[str | None, Parameter(help="leaderboard or ksrme [default: leaderboard].")] = None,
    scheduler: Annotated[
        str | None, Parameter(help="local, or the address of a Dask scheduler [default: local].", group=RUN)
    ] = None,
    compounds: Annotated[
        list[str] | None, Parameter(help="Only these: NaCl, BeO-wurtzite, mp-22862.", consume_multiple=True, group=RUN)
    ] = None,
    workers: Annotated[int | None, Parameter(help="Processes of the local scheduler [default: 1].", group=RUN)] = None,
    dtype: Annotated[
        str | None,
        Parameter(help="float64, or float32 for the potential in force constants [default: float64].", group=RUN),
    ] = None,
    batch_size: Annotated[
        int | None, Parameter(help="Displaced cells evaluated together; memory grows with it.", group=RUN)
    ] = None,
    out: Annotated[str | None, Parameter(help="Folder; run again with more compounds to go on.", group=OUTPUT)] = None,
    dry_run: DryRun = False,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Conductivities of many solids beside DFT, one job each, restartable."""
    from jaxmd_thermal.cli import campaign as verbs

    typed = dict(name=name, data=data, potential=potential, protocol=protocol, scheduler=scheduler, workers=workers)
    typed |= dict(compounds=as_tuple(compounds), dtype=dtype, batch_size=batch_size, out=out)
    return verbs.run("campaign", typed, config, dry_run=dry_run)


@app.command(name="check-heat-flux")
def check_heat_flux(
    structure: Structure = None,
    /,
    *,
    potential: Potential = None,
    supercell: Supercell = None,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Is the heat flux of a potential right? Two independent references, no dynamics. Exit code 1 if not."""
    from jaxmd_thermal.cli import commands

    return commands.check(
        "check-heat-flux", dict(structure=structure, potential=potential, supercell=supercell), config
    )


@app.command
def resume(directory: Annotated[str, Parameter(help="Folder of an earlier run.")], /, *, debug: Debug = False) -> int:
    """Continue a run that was stopped, to the same bits as if it had not been."""
    from jaxmd_thermal.cli import commands

    return commands.resume(directory)


@app.command
def report(directory: Annotated[str, Parameter(help="Folder of a run.")], /, *, debug: Debug = False) -> int:
    """Rebuild DIR/report.html from DIR/results.json and DIR/run.h5."""
    from jaxmd_thermal.cli import commands

    return commands.report(directory)


models = App(name="models", help="Potentials by name: what there is, and how to get it.")
app.command(models)


@models.command(name="list")
def models_list(
    *, json: Annotated[bool, Parameter(help="For programs.", group=OUTPUT)] = False, debug: Debug = False
) -> int:
    """All potentials with a name, and which of them can be used here."""
    from jaxmd_thermal.cli import models as verbs

    return verbs.show(json)


@models.command(name="get")
def models_get(
    names: Annotated[list[str], Parameter(help="As in `models list`; several are possible.")],
    /,
    *,
    to: Annotated[str | None, Parameter(help="Folder instead of the user's cache.", group=OUTPUT)] = None,
    debug: Debug = False,
) -> int:
    """Download published weights. The only verb that uses the network."""
    from jaxmd_thermal.cli import models as verbs

    return verbs.get(names, to)


@models.command(name="export")
def models_export(
    name: Annotated[str, Parameter(help="Name, file or folder of a potential.")],
    /,
    *,
    out: Annotated[str, Parameter(help="New folder.", group=OUTPUT)],
    debug: Debug = False,
) -> int:
    """Write a potential in our own format, which `--potential DIR` reads."""
    from jaxmd_thermal.cli import models as verbs

    return verbs.export(name, out)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 an error that the user can repair, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(
        guarded(
            lambda: app(arguments, exit_on_error=False, print_error=False, result_action="return_value"),
            debug="--debug" in arguments,
        )
    )


def guarded(action: Callable[[], Any], debug: bool = False) -> int:
    """Exit code of `action`: what the user can repair becomes one red line instead of a traceback."""
    try:
        code = action()
    except CycloptsError as error:
        return _complain(str(error).strip(), "see jaxmd-thermal --help")
    except ThermalError as error:
        if debug:
            raise
        return _complain(str(error), None)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command or `jaxmd-thermal resume DIR` continues", None, code=130)
    return code if isinstance(code, int) else 0


def _complain(message: str, advice: str | None, code: int = 2) -> int:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = Text("error: ", style="bold red") + Text(" ".join(message.split()), style="red")
    console.print(line + Text(f" ({advice})", style="dim") if advice else line)
    return code
