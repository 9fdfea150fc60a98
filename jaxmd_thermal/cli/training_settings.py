"""What `train` and `finetune` can be told: one TOML file with a strict schema."""

from __future__ import annotations

import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from jaxmd_thermal.cli.settings import Positive, Strict
from jaxmd_thermal.errors import InputError, nearest

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


NUMBER, TABLE = "(number)", "(table)"
"""How pydantic calls the forms of a weight; of no interest in messages."""


class Ramp(Strict):
    """A weight that changes from `start` at the first step to `end` at the last."""

    start: NotNegative
    end: NotNegative
    kind: Literal["linear", "cosine"] = "linear"


Weight = Annotated[
    Annotated[NotNegative, Tag(NUMBER)] | Annotated[Ramp, Tag(TABLE)],
    Discriminator(lambda value: TABLE if isinstance(value, dict | Ramp) else NUMBER),
]


class Loss(Strict):
    """One term; its name is that of its table: energy, forces, stress, hessian, third."""

    weight: Weight = 1.0
    kind: Literal["mae", "mse", "huber", "norm"] = "mae"
    delta: Positive = 0.1


class Losses(Strict):
    """The terms of a loss."""

    energy: Loss | None = None
    forces: Loss | None = None
    stress: Loss | None = None
    hessian: Loss | None = None
    third: Loss | None = None

    @model_validator(mode="after")
    def _some(self):
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("give at least one term, for example [losses.forces]")
        return self


class Data(Strict):
    """Where labelled structures come from; the kinds add up. Paths may hold wildcards, `~` and `$VARIABLES`.

    `split` picks rows of the manifest: "train" unless it is given, in the table [validation] "validation".
    """

    structures: tuple[str, ...] = ()
    phonons: tuple[str, ...] = ()
    displaced: tuple[str, ...] = ()
    manifest: str | None = None
    split: tuple[str, ...] = ("train",)
    labels: Literal["hessian", "displaced"] = "hessian"
    exclude: tuple[str, ...] = ()
    max_atoms: Count | None = None
    cells: Literal["supercell", "commensurate"] = "supercell"
    forces_at_rest: bool = True
    stress_at_rest: bool = False
    check_units: bool = True

    @field_validator("structures", "phonons", "displaced", "split", "exclude", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _some(self):
        if not (self.structures or self.phonons or self.displaced or self.manifest):
            raise ValueError("give structures, phonons, displaced or a manifest")
        return self


class Optimizer(Strict):
    """AdamW after clipping of the gradient, of what is not `frozen` (parts of the names of leaves).

    With `constants` the constant energies of the species are trained as well.
    """

    rate: Positive = 1e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    final_rate: NotNegative = 0.0
    weight_decay: NotNegative = 1e-3
    clip: Positive = 100.0
    frozen: tuple[str, ...] = ()
    constants: bool = False


class Asked(Strict):
    """Rattled and strained copies of structures, of which the potential is asked before the training.

    Of `energies_only` no forces and stresses are kept: structures whose curvature the training shall change. There may be another
    number of copies of them, `energies_only_copies`.
    """

    structures: tuple[str, ...] = ()
    energies_only: tuple[str, ...] = ()
    copies: Count = 4
    energies_only_copies: Count | None = None
    rattle: NotNegative = 0.05
    strain: NotNegative = 0.02

    @field_validator("structures", "energies_only", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Replay(Asked):
    """Steps on what the potential said before."""

    losses: Losses
    steps: Count = 1
    batch_size: Count = 1

    @model_validator(mode="after")
    def _labelled(self):
        if self.energies_only and self.losses.energy is None:
            raise ValueError("energies_only needs [replay.losses.energy]")
        return self


class Restore(Asked):
    """After the training what the potential said before is brought back by the smallest change of the weights.

    `forces_kept` is the share of the change of forces that stays; `directions` of the forces and `columns` of the Hessians that
    were trained on (which stay as they are) are drawn for each structure.
    """

    copies: Count = 2
    forces_kept: Fraction = 0.5
    directions: Count = 1
    columns: Count = 6
    rounds: Count = 2


class Upstream(Strict):
    """Steps on other labelled structures."""

    losses: Losses
    data: Data
    steps: Count = 1
    batch_size: Count = 1


class Network(Strict):
    """A network with random weights, for `train`."""

    kind: Literal["EquivariantNetwork", "Nequix"] = "EquivariantNetwork"
    cutoff: Positive
    layers: Count = 2
    species: tuple[str, ...] = ()
    channels: Count | tuple[Count, ...] = 16
    lmax: Annotated[int, Field(ge=0, le=4)] = 2
    radial: Count = 8


class TrainingSettings(Strict):
    """Options of `train` (with `network`) and `finetune` (with `potential`).

    With `repeats` the result is the mean of the weights of so many trainings, whose seeds are `seed` and those after it: what
    chance did to each goes, what they have in common stays (Wortsman et al., ICML 2022, arXiv:2203.05482).
    """

    potential: str | None = None
    network: Network | None = None
    data: Data
    validation: Data | None = None
    validation_fraction: Fraction = 0.0
    losses: Losses
    optimizer: Optimizer = Optimizer()
    replay: Replay | None = None
    upstream: Upstream | None = None
    restore: Restore | None = None
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 1
    columns: Count = 1
    buckets: Count = 3
    accumulate: Count = 1
    block: Annotated[int, Field(ge=0)] | None = None
    validate_every: Count | None = None
    patience: Count | None = None
    precision: Literal["float32", "mixed", "float64"] = "float32"
    average: Fraction = 0.999
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    repeats: Count = 1
    checkpoint_every: Count = 50
    max_seconds: Positive | None = None
    devices: Annotated[int, Field(ge=0)] = 1
    tensorboard: bool = False
    check_units: bool = True
    out: str | None = None

    @field_validator("validation", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        return {"split": ("validation",)} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        if self.replay is not None and self.upstream is not None:
            raise ValueError("give one of [replay] and [upstream]")
        if self.potential is not None and self.network is not None:
            raise ValueError("give one of potential (finetune) and [network] (train)")
        if self.network is not None and self.repeats > 1:
            raise ValueError("repeats needs a potential to start from: means of random networks are none")
        if self.network is not None and self.restore is not None:
            raise ValueError("[restore] needs a potential that knew something before: it is for finetune")
        if self.patience is not None and self.validation is None and not self.validation_fraction:
            raise ValueError("patience needs validation_fraction or [validation]")
        return self


def load_training(path: str | Path, changes: dict[str, Any] | None = None) -> TrainingSettings:
    """Settings of a TOML file.

    Args:
      changes: {dotted key: value} that win over the file.

    Raises:
      InputError: the file is missing or no TOML; an unknown key (the nearest known one is suggested) or a wrong value.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no configuration file '{path}'") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"'{path}' is no valid TOML: {error}") from error
    for key, value in (changes or {}).items():
        *tables, last = key.split(".")
        inside = document
        for table in tables:
            inside = inside.setdefault(table, {})
        if value is None:
            inside.pop(last, None)
        else:
            inside[last] = value
    return checked(document, f"'{path}'")


def checked(document: dict[str, Any], source: str) -> TrainingSettings:
    """Validated settings. Raises InputError: names the key, its value and what is needed."""
    try:
        return TrainingSettings(**document)
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(_sentence(item) for item in error.errors())) from None


def _sentence(item: Any) -> str:
    place = tuple(part for part in item["loc"] if part not in (NUMBER, TABLE))
    where = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        known = list(_fields_at(place[:-1]))
        return f"unknown key '{where}'{nearest(str(place[-1]), known)} Known keys: {', '.join(known)}"
    if item["type"] == "missing":
        return f"'{where}' is missing"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "it must be").replace("valid ", "")
    return f"{where or 'the file'}: {message[:1].lower() + message[1:]}" + (
        f" (it is {item['input']!r})" if where and not isinstance(item["input"], dict) else ""
    )


def _fields_at(place: tuple[Any, ...]) -> dict[str, Any]:
    model: type[BaseModel] = TrainingSettings
    for part in place:
        annotation = model.model_fields[str(part)].annotation
        options = [getattr(o, "__origin__", o) for o in typing.get_args(annotation) or (annotation,)]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return model.model_fields
