"""What a run can be told, by flags or by a TOML file: one strict schema per verb.

A value typed on the command line wins over the file, the file over the default. An unknown key, a wrong type or an
impossible value is an error that names it, never a silent default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from jaxmd_thermal.errors import InputError, nearest

Repeats = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Vector = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Base of the schemas: unknown keys are errors; keys may be spelled with dashes, like the flags."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunSettings(Strict):
    """Options of every verb that runs dynamics."""

    structure: str | None = None
    potential: str | None = None
    temperature: Positive | None = None
    supercell: Repeats = (1, 1, 1)
    timestep: Positive = 4.0
    steps: Annotated[int, Field(ge=1)] = 100_000
    replicas: Annotated[int, Field(ge=1)] = 4
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dtype: Literal["float64", "float32"] = "float64"
    sample_every: Annotated[int, Field(ge=1)] = 1
    out: str | None = None

    @field_validator("supercell", mode="before")
    @classmethod
    def _one_number_for_three(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int) else value


class ConductivitySettings(RunSettings):
    """Options of both routes to a conductivity."""

    equilibration: Annotated[int, Field(ge=0)] = 10_000
    volume: Positive | None = None
    thickness: Positive | None = None


class GreenKuboSettings(ConductivitySettings):
    """Options of `green-kubo`."""

    sizes: tuple[Repeats, ...] = ()
    flux: tuple[str, ...] = ()
    flux_units: Literal["metal", "real", "gpumd", "internal"] | None = None
    flux_periodic: Literal["xyz", "xy", "xz", "yz", "x", "y", "z"] | None = None

    @field_validator("flux", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("flux_units", "flux_periodic")
    @classmethod
    def _of_a_series(cls, value: Any, others: ValidationInfo) -> Any:
        if value is not None and not others.data.get("flux"):
            raise ValueError("it describes the series of --flux, which is not given")
        return value


class HnemdSettings(ConductivitySettings):
    """Options of `hnemd`."""

    sample_every: Annotated[int, Field(ge=1)] = 5
    driving_force: tuple[Vector, ...] = ()
    spectral_lags: Annotated[int, Field(ge=0)] = 200

    @field_validator("driving_force", mode="before")
    @classmethod
    def _one_vector(cls, value: Any) -> Any:
        one = isinstance(value, list | tuple) and len(value) == 3 and not isinstance(value[0], list | tuple)
        return (value,) if one else value


class MdSettings(RunSettings):
    """Options of `md`."""

    steps: Annotated[int, Field(ge=1)] = 10_000
    replicas: Annotated[int, Field(ge=1)] = 1
    sample_every: Annotated[int, Field(ge=1)] = 100
    ensemble: Literal["nve", "langevin", "nose-hoover", "csvr", "npt", "npt-flexible"] = "langevin"
    pressure: Annotated[float, Field(allow_inf_nan=False)] | None = None


class CheckSettings(Strict):
    """Options of `check-heat-flux`."""

    structure: str | None = None
    potential: str | None = None
    supercell: Repeats = (1, 1, 1)


Temperatures = tuple[Positive, ...]
Repetition = Annotated[int, Field(ge=1)]


class LatticeSettings(Strict):
    """Options of every verb of lattice dynamics."""

    structure: str | None = None
    potential: str | None = None
    force_constants: str | None = None
    temperature: Temperatures = (300.0,)
    supercell: Repeats | None = None
    mesh: Repeats | None = None
    displacement: Positive = 0.03
    ad: bool = False
    protocol: Literal["none", "positions", "converged", "leaderboard", "ksrme"] = "converged"
    nac: bool = False
    dtype: Literal["float64", "float32"] = "float64"
    batch_size: Repetition | None = None
    out: str | None = None

    @field_validator("supercell", "mesh", mode="before")
    @classmethod
    def _one_number_for_three(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int) else value

    @field_validator("temperature", mode="before")
    @classmethod
    def _one_temperature(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value


class PhononsSettings(LatticeSettings):
    """Options of `phonons`; `nac` None: where Born charges are known."""

    nac: bool | None = None  # type: ignore[assignment]
    grueneisen: bool = False
    quasi_harmonic: tuple[Positive, Positive] | None = None


class WignerSettings(LatticeSettings):
    """Options of `wigner`."""

    fc3_supercell: Repeats | None = None
    method: tuple[str, ...] = ("wigner",)
    sigma: Positive | None = None
    isotopes: bool = True
    boundary: Positive | None = None
    populations: Literal["quantum", "classical"] = "quantum"

    @field_validator("fc3_supercell", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int) else value

    @field_validator("method", mode="before")
    @classmethod
    def _one_method(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CompareSettings(RunSettings):
    """Options of `compare`."""

    equilibration: Annotated[int, Field(ge=0)] = 10_000
    driving_force: tuple[Vector, ...] = ()
    mesh: Repeats | None = None
    fc2_supercell: Repeats | None = None
    fc3_supercell: Repeats | None = None
    displacement: Positive = 0.03
    ad: bool = False
    sigma: Positive | None = None
    batch_size: Repetition | None = None

    @field_validator("driving_force", mode="before")
    @classmethod
    def _one_vector(cls, value: Any) -> Any:
        one = isinstance(value, list | tuple) and len(value) == 3 and not isinstance(value[0], list | tuple)
        return (value,) if one else value

    @field_validator("mesh", "fc2_supercell", "fc3_supercell", mode="before")
    @classmethod
    def _cube(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int) else value


class CampaignSettings(Strict):
    """Options of `campaign`."""

    name: Literal["phonondb103"] = "phonondb103"
    data: str | None = None
    potential: str | None = None
    protocol: Literal["leaderboard", "ksrme"] = "leaderboard"
    scheduler: str = "local"
    compounds: tuple[str, ...] = ()
    workers: Repetition = 1
    dtype: Literal["float64", "float32"] = "float64"
    batch_size: Repetition | None = None
    out: str | None = None

    @field_validator("compounds", mode="before")
    @classmethod
    def _one_compound(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


SCHEMAS: dict[str, type[Strict]] = {
    "green-kubo": GreenKuboSettings,
    "hnemd": HnemdSettings,
    "md": MdSettings,
    "check-heat-flux": CheckSettings,
    "phonons": PhononsSettings,
    "wigner": WignerSettings,
    "campaign": CampaignSettings,
    "compare": CompareSettings,
}
EXAMPLES = {
    "green-kubo": "green-kubo argon --potential lj-argon-gk --temperature 50 --supercell 4 4 4 --out runs/argon",
    "hnemd": "hnemd argon --potential lj-argon-gk --temperature 50 --supercell 4 4 4 --out runs/argon "
    "--driving-force 0.01 0 0",
    "md": "md argon --potential lj-argon-gk --temperature 50 --supercell 4 4 4 --out runs/argon",
    "check-heat-flux": "check-heat-flux argon --potential lj-argon-gk",
    "phonons": "phonons silicon --potential sw-silicon --out runs/silicon-phonons",
    "wigner": "wigner silicon --potential sw-silicon --mesh 11 11 11 --temperature 300 --out runs/silicon",
    "compare": "compare argon --potential lj-argon-gk --temperature 50 --supercell 4 4 4 --out runs/argon-compare",
    "campaign": "campaign phonondb103 --data DIR --potential nequix-mp-1 --compounds NaCl LiBr --out runs/phonondb103",
}
"""Commands that work, for messages about what is missing."""


def flag(key: str) -> str:
    """`sample_every` -> `--sample-every`."""
    return "--" + key.replace("_", "-")


def load_config(path: str | Path, verb: str) -> dict[str, Any]:
    """Options of `verb` from a TOML file.

    Keys at the top hold for every verb; a table named like a verb (`[hnemd]`) for that verb only. So one file can
    describe Green-Kubo and HNEMD runs of the same crystal.

    Raises:
      InputError: the file is missing or no TOML, or a key is unknown (the nearest known one is suggested).
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no configuration file '{path}'; check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration '{path}': {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"'{path}' is no valid TOML: {error}") from error

    mine = set(SCHEMAS[verb].model_fields)
    anywhere = {field for schema in SCHEMAS.values() for field in schema.model_fields}
    options: dict[str, Any] = {}
    for name, value in data.items():
        if name in SCHEMAS:
            if not isinstance(value, dict):
                raise InputError(f"'{path}': '{name}' is a verb; write its options in a table [{name}]")
            for key in value:
                _known(key, set(SCHEMAS[name].model_fields), f"'{path}', table [{name}]")
            continue
        # A key of another verb is fine at the top, where common options live; a key of no verb is a typing error.
        key = _known(name, anywhere | set(SCHEMAS), f"'{path}'")
        if key in mine:
            options[key] = value
    options |= {key.replace("-", "_"): value for key, value in data.get(verb, {}).items()}
    return options


def _known(key: str, known: set[str], where: str) -> str:
    plain = key.replace("-", "_")
    if plain not in known:
        listed = ", ".join(sorted(k for k in known if k not in SCHEMAS))
        raise InputError(f"{where}: unknown key '{key}'{nearest(plain, known)} Known keys: {listed}")
    return plain


def settings_for(verb: str, typed: dict[str, Any], config: str | Path | None = None) -> Any:
    """Validated settings of `verb` from what was typed (None: not typed) and an optional TOML file.

    Raises:
      InputError: names the option, its value, the limit and where it came from.
    """
    schema = SCHEMAS[verb]
    from_file = load_config(config, verb) if config is not None else {}
    given = {key: value for key, value in typed.items() if value is not None and value != ()}
    try:
        return schema(**(from_file | given))
    except ValidationError as error:
        raise InputError(explain(error, from_file.keys() - given.keys(), config)) from None


def explain(error: ValidationError, from_file: set[str] | Any = (), config: str | Path | None = None) -> str:
    """The errors of a schema, one sentence each: option, value, what is needed."""
    sentences = []
    for item in error.errors():
        key = str(item["loc"][0])
        where = f"{key} in '{config}'" if key in from_file else flag(key)
        if item["type"] == "extra_forbidden":
            sentences.append(f"{where}: this verb has no such option")
            continue
        message = item["msg"].removeprefix("Value error, ")
        message = message.replace("Input should be", "it must be").replace("valid ", "")
        sentences.append(f"{where} is {item['input']!r}: {message[:1].lower() + message[1:]}")
    return "; ".join(dict.fromkeys(sentences))


def require(settings: Any, verb: str, *keys: str) -> None:
    """Raise InputError with an example unless all of `keys` are given."""
    missing = [key for key in keys if getattr(settings, key) in (None, ())]
    if missing:
        names = ", ".join("STRUCTURE" if key == "structure" else flag(key) for key in missing)
        raise InputError(f"{verb} needs {names}. For example: jaxmd-thermal {EXAMPLES[verb]}")
