"""Weight files of the Nequix models (`.nqx`): one line of JSON, then NumPy records. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials._learned import parameter_shapes
from jaxmd_thermal.potentials.nequix import DEFAULT_BLOCK, Nequix, NequixNetwork, check_architecture

NEEDED = (
    "cutoff", "atomic_numbers", "hidden_irreps", "lmax", "n_layers", "radial_basis_size", "radial_mlp_size",
    "radial_mlp_layers", "radial_polynomial_p", "shift", "scale", "avg_n_neighbors",
)  # fmt: skip
MEMBERS = ("linear_1", "linear_2", "skip", "norm")
FUNCTION = {"index_weights": False, "layer_norm": True, "add_repulsion": False}
"""Options of the reference implementation that change the function, with the values that this one has."""


def read_nqx(path) -> Nequix:
    """The potential of a `.nqx` file, as NumPy float64.

    Only architecture and units are taken from the header. Atomic energies are those of the weights, not the header's.

    Raises:
      InputError: the file cannot be read, is truncated, or holds weights of another architecture; names what differs.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _header(path, file.readline())
            network, cutoff, species, scale, shift = _architecture(path, header)
            references = _record(path, file, "atomic energies", (len(species),))
            params = _parameters(path, file, network)
    except OSError as error:
        raise InputError(f"cannot read the weights '{path}': {error.strerror or error}") from error
    return Nequix(
        params=params,
        scale=np.asarray(scale, np.float64),
        references=references + shift,
        network=network,
        cutoff=cutoff,
        species=species,
    )


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"'{path}' does not begin with a line of JSON ({error}): it is no .nqx file, or a damaged one; get it again"
        ) from error
    missing = [key for key in NEEDED if key not in header] if isinstance(header, dict) else list(NEEDED)
    if missing:
        raise InputError(f"the header of '{path}' lacks {', '.join(missing)}: it is no Nequix model that we know")
    unknown = [key for key, value in FUNCTION.items() if header.get(key, value) != value]
    if unknown:
        raise InputError(
            f"'{path}' has {', '.join(f'{key} = {header[key]}' for key in unknown)}; only networks with a layer norm, without "
            "a repulsion, and with weights that do not depend on the species are supported"
        )
    return header


def _channels(path: Path, irreps: str) -> tuple[int, ...]:
    """'128x0e + 64x1o' -> (128, 64)."""
    channels = []
    for degree, term in enumerate(irreps.replace(" ", "").split("+")):
        count, _, irrep = term.partition("x")
        if irrep != f"{degree}{'eo'[degree % 2]}" or not count.isdigit():
            raise InputError(
                f"'{path}' has hidden_irreps = '{irreps}'; supported are degrees 0, 1, 2, ... in order with the parity "
                "of the spherical harmonics, like '128x0e + 64x1o + 32x2e'"
            )
        channels.append(int(count))
    return tuple(channels)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(value):
        raise ValueError(f"{value} is not a whole number")
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not np.isfinite(float(value)):
        raise ValueError(f"{value} is not a finite number")
    return float(value)


def _architecture(path: Path, header) -> tuple[NequixNetwork, float, tuple[int, ...], float, float]:
    """Network, cutoff, species, scale and shift."""
    try:
        species = tuple(sorted(_whole(n) for n in header["atomic_numbers"]))
        network = NequixNetwork(
            n_species=len(species),
            channels=_channels(path, header["hidden_irreps"]),
            layers=_whole(header["n_layers"]),
            l_edge=_whole(header["lmax"]),
            radial=_whole(header["radial_basis_size"]),
            hidden=(_whole(header["radial_mlp_size"]),) * _whole(header["radial_mlp_layers"]),
            power=_whole(header["radial_polynomial_p"]),
            neighbors=_finite(header["avg_n_neighbors"]),
            block=DEFAULT_BLOCK,
        )
        cutoff, scale, shift = (_finite(header[key]) for key in ("cutoff", "scale", "shift"))
        check_architecture(network)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"the header of '{path}' cannot be understood: {error}") from error
    strange = [n for n in species if not 1 <= n <= 118]
    if cutoff <= 0 or len(set(species)) != len(species) or strange:
        raise InputError(
            f"the header of '{path}' has cutoff = {cutoff} and {len(species)} species, of which {strange} are no elements; "
            "needed are a positive cutoff and distinct atomic numbers from 1 to 118"
        )
    return network, cutoff, species, scale, shift


def _record(path: Path, file, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header of a record can fail anywhere in its parser
        raise InputError(f"'{path}' ends or is damaged at its record '{name}' ({error}): get the file again") from error
    if array.shape != shape or array.dtype.kind != "f":
        raise InputError(
            f"'{path}' holds weights of another architecture than its header says: '{name}' is {array.dtype} of shape "
            f"{array.shape} instead of float32 of shape {shape}"
        )
    if not np.all(np.isfinite(array)):
        raise InputError(f"'{path}' holds values that are not finite in '{name}': the file is damaged; get it again")
    return array.astype(np.float64)


def _parameters(path: Path, file, network: NequixNetwork) -> dict[str, Any]:
    """The records in the order of the file: layer by layer, in each the radial maps, then the members by degree.

    What follows them is left alone: two of the published files go on with bytes that belong to no parameter.
    """
    shapes = parameter_shapes(network)
    params: dict[str, Any] = {}
    for step in range(network.layers):
        layer = f"steps_{step}"
        mine = shapes[layer]
        ordered = sorted(name for name in mine if name.startswith("radial"))
        for member in MEMBERS:
            ordered += sorted(name for name in mine if name.startswith(member))
        params[layer] = {name: _record(path, file, f"{layer}/{name}", mine[name].shape) for name in ordered}
    params["readout"] = _record(path, file, "readout", shapes["readout"].shape)
    return params
