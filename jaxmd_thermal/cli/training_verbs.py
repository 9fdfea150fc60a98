"""Verbs of training: `train`, `finetune`, `evaluate phonons`. What they do is imported only when they run."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Group, Parameter

from jaxmd_thermal.cli.flags import OUTPUT, Debug, DryRun, app

TRAINING = Group("Training", sort_key=2)

Configuration = Annotated[str, Parameter(help="TOML file; commented examples are in experiments/examples.")]
Out = Annotated[
    str | None,
    Parameter(help="Folder of log, checkpoints and potential; an unfinished training there goes on.", group=OUTPUT),
]
Steps = Annotated[int | None, Parameter(help="Instead of those of the file.", group=TRAINING)]
Seed = Annotated[int | None, Parameter(help="The same seed gives the same numbers.", group=TRAINING)]


@app.command
def train(
    config: Configuration,
    /,
    *,
    steps: Steps = None,
    seed: Seed = None,
    out: Out = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Train a network from scratch on energies, forces, stresses and second derivatives."""
    from jaxmd_thermal.cli import training

    return training.run("train", config, {"steps": steps, "seed": seed, "out": out}, dry_run=dry_run)


@app.command
def finetune(
    config: Configuration,
    /,
    *,
    steps: Steps = None,
    seed: Seed = None,
    out: Out = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Fine-tune a potential, for example on force constants of DFT, without forgetting the rest."""
    from jaxmd_thermal.cli import training

    return training.run("finetune", config, {"steps": steps, "seed": seed, "out": out}, dry_run=dry_run)


evaluate = App(name="evaluate", help="Errors of potentials against data of DFT.")
app.command(evaluate)


@evaluate.command(name="phonons")
def evaluate_phonons(
    paths: Annotated[
        list[str] | None,
        Parameter(help="Files or folders of phonopy with forces or force constants.", allow_leading_hyphen=False),
    ] = None,
    /,
    *,
    potential: Annotated[
        list[str],
        Parameter(
            help="Name, file or folder; several: the first is what the others are compared with.",
            consume_multiple=True,
            group=TRAINING,
        ),
    ],
    manifest: Annotated[
        str | None,
        Parameter(
            help="CSV file with the columns key, split, functional; names phonopy files beside it.", group=TRAINING
        ),
    ] = None,
    split: Annotated[
        list[str] | None, Parameter(help="Rows of the manifest [default: all].", consume_multiple=True, group=TRAINING)
    ] = None,
    temperature: Annotated[float, Parameter(help="K [default: 300].", group=TRAINING)] = 300.0,
    relaxed: Annotated[
        str | None,
        Parameter(
            help="Relax first: leaderboard, ksrme or converged [default: at the geometry of the files].", group=TRAINING
        ),
    ] = None,
    mesh: Annotated[int, Parameter(help="q-points along each reciprocal vector [default: 19].", group=TRAINING)] = 19,
    out: Annotated[
        str | None, Parameter(help="Folder of phonons.json, phonons.csv and figures of the bands.", group=OUTPUT)
    ] = None,
    debug: Debug = False,
) -> int:
    """Largest frequency, free energy, entropy, heat capacity, force constants and imaginary modes, beside DFT."""
    from jaxmd_thermal.cli import phonon_evaluation

    return phonon_evaluation.run(
        potential,
        paths or (),
        manifest=manifest,
        split=split or (),
        temperature=temperature,
        relaxed=relaxed,
        mesh=mesh,
        out=out,
    )
