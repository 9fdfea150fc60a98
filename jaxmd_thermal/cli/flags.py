"""The application and the flags that several verbs share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from jaxmd_thermal import __version__

app = App(
    name="jaxmd-thermal",
    help="Thermal conductivity with an error bar, from a structure and a potential.",
    version=__version__,
    default_parameter=Parameter(negative=(), negative_iterable=(), negative_none=(), show_default=False),
    suppress_keyboard_interrupt=False,  # `guarded` says how to go on
    help_format="plaintext",
    help_epilogue="First try: jaxmd-thermal green-kubo argon --potential lj-argon-gk --temperature 50 "
    "--supercell 4 4 4 --steps 20000 --out runs/argon50",
)
RUN = Group("Dynamics", sort_key=2)
LATTICE = Group("Lattice dynamics", sort_key=2)
OUTPUT = Group("Output", sort_key=3)

Structure = Annotated[str | None, Parameter(help="Structure file (any that ASE reads), or `argon`, `silicon`.")]
Potential = Annotated[str | None, Parameter(help="Name (jaxmd-thermal models list), or a file or folder.")]
Supercell = Annotated[
    tuple[int, int, int] | None, Parameter(help="Repetitions along the three lattice vectors.", group=RUN)
]
Mesh = Annotated[
    tuple[int, int, int] | None,
    Parameter(help="q-points along the primitive cell's reciprocal vectors.", group=LATTICE),
]
Config = Annotated[str | None, Parameter(help="TOML file with the same options; what is typed wins.", group=OUTPUT)]
Debug = Annotated[bool, Parameter(help="Show the traceback of an error.", group=OUTPUT)]


@Parameter(name="*")
@dataclass
class Dynamics:
    """Flags of every verb that runs dynamics; None: not typed."""

    temperature: Annotated[float | None, Parameter(help="K.", group=RUN)] = None
    supercell: Supercell = None
    timestep: Annotated[float | None, Parameter(help="fs [default: 4].", group=RUN)] = None
    steps: Annotated[int | None, Parameter(help="Steps that are measured [default: 100000; md: 10000].", group=RUN)] = (
        None
    )
    replicas: Annotated[
        int | None, Parameter(help="Independent copies; they give the error bar [default: 4; md: 1].", group=RUN)
    ] = None
    seed: Annotated[int | None, Parameter(help="The same seed gives the same numbers [default: 0].", group=RUN)] = None
    dtype: Annotated[
        str | None, Parameter(help="float64, or float32 for the potential only [default: float64].", group=RUN)
    ] = None
    sample_every: Annotated[
        int | None, Parameter(help="Steps between stored values [default: 1; hnemd: 5; md: 100].", group=RUN)
    ] = None
    out: Annotated[
        str | None, Parameter(help="Folder for results.json, run.h5, report.html and checkpoints.", group=OUTPUT)
    ] = None


@Parameter(name="*")
@dataclass
class Conductivity(Dynamics):
    """Flags of both routes to a conductivity."""

    equilibration: Annotated[
        int | None, Parameter(help="Steps before, which are discarded [default: 10000].", group=RUN)
    ] = None
    volume: Annotated[float | None, Parameter(help="Å^3, for slabs, wires, clusters and --flux.", group=RUN)] = None
    thickness: Annotated[float | None, Parameter(help="Å, for slabs: the volume is area times this.", group=RUN)] = None


@Parameter(name="*")
@dataclass
class Lattice:
    """Flags of every verb of lattice dynamics; None: not typed."""

    force_constants: Annotated[
        str | None, Parameter(help="Files of phonopy or phono3py (a folder or *.yaml) instead of a potential.")
    ] = None
    temperature: Annotated[
        list[float] | None,
        Parameter(help="K; several are possible [default: 300].", consume_multiple=True, group=LATTICE),
    ] = None
    mesh: Mesh = None
    supercell: Annotated[
        tuple[int, int, int] | None,
        Parameter(help="Of second order [default: the smallest with 15 Å between its faces].", group=LATTICE),
    ] = None
    displacement: Annotated[
        float | None, Parameter(help="Å, of the finite displacements [default: 0.03].", group=LATTICE)
    ] = None
    ad: Annotated[bool | None, Parameter(help="Exact derivatives instead of displacements.", group=LATTICE)] = None
    protocol: Annotated[
        str | None,
        Parameter(
            help="Relaxation: none, positions (cell kept), converged, leaderboard, ksrme [default: converged].",
            group=LATTICE,
        ),
    ] = None
    nac: Annotated[
        bool | None,
        Parameter(
            help="Non-analytic correction from Born charges [default: phonons where they are known, wigner no].",
            negative="--no-nac",
            group=LATTICE,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Parameter(help="float64, or float32 for the potential in force constants [default: float64].", group=LATTICE),
    ] = None
    batch_size: Annotated[
        int | None, Parameter(help="Displaced cells evaluated together; memory grows with it.", group=LATTICE)
    ] = None
    out: Annotated[
        str | None, Parameter(help="Folder for results.json, force constants, modes and report.html.", group=OUTPUT)
    ] = None


DryRun = Annotated[bool, Parameter(help="Estimate time and memory; compute nothing.", group=OUTPUT)]
Vectors = Annotated[
    list[tuple[float, float, float]] | None,
    Parameter(help="1/Å, three components; repeat the flag to check the linear regime.", group=RUN),
]


def typed_flags(dynamics: Dynamics | Lattice | None, **more: Any) -> dict[str, Any]:
    """What was typed, by name; None where nothing was."""
    given = {f.name: getattr(dynamics, f.name) for f in fields(dynamics)} if dynamics is not None else {}
    return given | more


def as_tuple(values: list | None) -> tuple | None:
    """A repeated flag as a tuple; None stays None."""
    return None if values is None else tuple(values)
