"""Published weights by name: what they are, where they come from, and where they lie on this machine.

Nothing here uses the network (`io/download.py` does), and nothing imports JAX.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from jaxmd_thermal.errors import InputError, nearest

FOLDER_VARIABLE = "JAXMD_THERMAL_MODELS"
"""Environment variable: a folder with weights, searched before the cache."""


@dataclass(frozen=True)
class WeightFile:
    """One published file. `url` is None where no public address is known."""

    name: str
    size: int
    sha256: str
    url: str | None


@dataclass(frozen=True)
class Model:
    """A published potential.

    Attributes:
      name: what `load_potential` takes.
      kind: "nequix" or "so3krates"; decides the reader.
      files: all that belong to it.
      elements: atomic numbers that it knows.
      cutoff: Å.
      steps: message-passing steps.
      training: data and theory that it was trained on.
      licence, citation: of the weights.
      source: who publishes the files, and how far the addresses are confirmed.
    """

    name: str
    kind: str
    files: tuple[WeightFile, ...]
    elements: tuple[int, ...]
    cutoff: float
    steps: int
    training: str
    licence: str
    citation: str
    source: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


_NEQUIX = "https://github.com/atomicarchitects/nequix/raw"
_NEQUIX_ELEMENTS = (*range(1, 84), *range(89, 95))
_TRAINING = (
    "T. Koker, M. Kotak, T. Smidt, Training a foundation model for materials on a budget, arXiv 2508.16067 (2025)"
)
_PHONONS = (
    "T. Koker, A. Gangan, M. Kotak, J. Marian, T. Smidt, PFT: Phonon Fine-tuning for Machine Learned Interatomic "
    "Potentials, arXiv 2601.07742 (2026)"
)
_NEQUIX_SOURCE = (
    "repository atomicarchitects/nequix; the address is that of its own calculator (nequix/calculator.py), at a fixed "
    "commit"
)


def _nequix(name: str, commit: str, size: int, sha256: str, training: str, citation: str, more: str = "") -> Model:
    file = WeightFile(f"{name}.nqx", size, sha256, f"{_NEQUIX}/{commit}/models/{name}.nqx")
    return Model(
        name, "nequix", (file,), _NEQUIX_ELEMENTS, 6.0, 4, training, "MIT", citation, f"{_NEQUIX_SOURCE}{more}"
    )


_MP_COMMIT = "7c2854de8e754b1a60274c7d9d2e014989ed632e"
_OMAT_COMMIT = "9c852a9c4cce69ae5e75bc5a2cf670be21ff8c28"
_SNSE = "https://github.com/sirmarcel/glp/raw/a9e9feecb18502f4ee8e3ebdbd32f75b69185c9f/tests/unit/assets/snse/model_m1"

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _nequix(
            "nequix-mp-1", _MP_COMMIT, 2842366, "1647af8e627e1afa11e2bfadeab0797326513a521afd7dd01606a96f56783eee",
            "MPtrj (PBE, PBE+U)", _TRAINING,
            more="; others publish the same address with the same checksum",
        ),
        _nequix(
            "nequix-mp-1-pft", _MP_COMMIT, 2842840, "a88aeaed71fd447572dc57af21d469207d7737b85a6dbb66f8c38156f175c5f1",
            "nequix-mp-1, tuned on MDR phonons (PBE) together with MPtrj", _PHONONS,
        ),
        _nequix(
            "nequix-oam-1", _OMAT_COMMIT, 2869928, "6a43475eaeb32a7a049f36c1306d78aa1e7a17e8af37aeda7901c8fec0ca845c",
            "nequix-omat-1, tuned on sAlex and MPtrj (PBE, PBE+U)", _PHONONS,
        ),
        _nequix(
            "nequix-oam-1-pft", _OMAT_COMMIT, 2842066, "4ce693d68886512aab50c84ea2400efd68163e11155f7c7babe98e695177e809",
            "nequix-oam-1, tuned on MDR phonons (PBE) together with sAlex and MPtrj", _PHONONS,
        ),
        _nequix(
            "nequix-omat-1", _OMAT_COMMIT, 2841752, "2d0802ae7f5915cb488c44d25649d98404a103697e6500abb40f515e003a46a6",
            "OMat24 (PBE, PBE+U)", _PHONONS,
        ),
        Model(
            name="so3krates-snse",
            kind="so3krates",
            files=(
                WeightFile(
                    "checkpoint_loss_598560", 3191909,
                    "76bdd50d27958badfab93257fcb0d55aba61e90d5d3a38d9936a6e6c9ef6d9a7", f"{_SNSE}/checkpoint_loss_598560",
                ),
                WeightFile(
                    "hyperparameters.json", 3031,
                    "680e8c7aa7f22943f4b54c756f939e8f5be3e95e6d4e1895c12b220ac16562af", f"{_SNSE}/hyperparameters.json",
                ),
                WeightFile(
                    "scales.json", 7628,
                    "c82d6fb5648c0d5f278a9daa1abcaf698c91c174734582deca97fb522e93778b", f"{_SNSE}/scales.json",
                ),
            ),
            elements=(34, 50),
            cutoff=5.0,
            steps=1,
            training="2400 structures of ab initio molecular dynamics of SnSe (FHI-aims)",
            licence="MIT",
            citation="M. F. Langer, J. T. Frank, F. Knoop, J. Chem. Phys. 159, 174105 (2023)",
            source="repository sirmarcel/glp (tests), at a fixed commit; the two JSON files there are these to the letter, the "
            "checkpoint has this name. The same model is in sirmarcel/glp-archive, "
            "work/models/production_models/train_default_L1/module",
        ),
    )
}  # fmt: skip
"""Potentials whose weights are published; `load_potential` takes their names once the files are on the machine."""


def model_named(name: str) -> Model:
    """The entry of a name.

    Raises:
      InputError: no such model; the nearest name is suggested.
    """
    if name not in MODELS:
        raise InputError(
            f"there are no published weights named '{name}'{nearest(name, MODELS) or ':'} known are {', '.join(MODELS)}"
        )
    return MODELS[name]


def cache_folder() -> Path:
    """Where `models get` puts weights: the user's cache (`$XDG_CACHE_HOME/jaxmd_thermal` or the system's equivalent)."""
    import pooch

    return Path(pooch.os_cache("jaxmd_thermal"))


def search_folders() -> list[Path]:
    """Folders that are searched for weights, in order: $JAXMD_THERMAL_MODELS, then the cache.

    Raises:
      InputError: the variable names something that is no folder.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    if not chosen:
        return [cache_folder()]
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"{FOLDER_VARIABLE} is '{chosen}', which is no folder: create it, or unset the variable to use the cache"
        )
    return [folder, cache_folder()]


def home_of(model: Model, root: Path) -> Path:
    """Folder below `root` where the files of a model are put: a single file lies in `root` itself."""
    return root if len(model.files) == 1 else root / model.name


def places(model: Model, root: Path) -> list[Path]:
    """Folders below `root` in which the files of a model are accepted."""
    return [root / model.name, root / model.name.replace("-", "_"), root / model.kind, root]


def locate(model: Model) -> Path | None:
    """Folder that holds all files of a model, None if there is none. Looks at names only, see `checked`."""
    for root in search_folders():
        for folder in places(model, root):
            if all((folder / file.name).is_file() for file in model.files):
                return folder
    return None


def checked(model: Model) -> Path:
    """Folder with the files of a model, all of them compared with their published checksums.

    Raises:
      InputError: files are missing or differ; names the remedy with and without a network.
    """
    folder = locate(model)
    if folder is None:
        searched = search_folders()
        raise InputError(
            f"the weights of '{model.name}' are not on this machine (searched {' and '.join(map(_quoted, searched))}): "
            f"`jaxmd-thermal models get {model.name}` downloads them ({model.size / 1e6:.1f} MB). "
            f"{by_hand(model, searched[0])}"
        )
    for file in model.files:
        check_file(model, file, folder / file.name)
    return folder


def check_file(model: Model, file: WeightFile, path: Path) -> None:
    """Compare a file with its published checksum.

    Raises:
      InputError: it cannot be read or differs; names the expected and the found checksum.
    """
    try:
        size, found = path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise InputError(f"cannot read the weights '{path}' of '{model.name}': {error.strerror or error}") from error
    if found != file.sha256:
        what = f"{size} bytes instead of {file.size}" if size != file.size else "of the right size"
        raise InputError(
            f"'{path}' is not the published file of '{model.name}' ({what}; SHA-256 expected {file.sha256}, found {found}): "
            f"it is damaged or other weights. Delete it and run `jaxmd-thermal models get {model.name}`; weights of your "
            "own are loaded by their path instead of the name"
        )


def by_hand(model: Model, root: Path) -> str:
    """What to do without a network, in a sentence."""
    missing = [file.name for file in model.files if file.url is None]
    if missing:
        return (
            f"No public address of {', '.join(missing)} is known ({model.source}): ask its authors and put the files into "
            f"{_quoted(home_of(model, root))}"
        )
    files = ", ".join(f"{file.url} ({file.size} bytes)" for file in model.files)
    return (
        f"By hand: fetch {files} on another machine and put it under the same name into {_quoted(home_of(model, root))}"
    )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quoted(path: Path) -> str:
    return f"'{path}'"
