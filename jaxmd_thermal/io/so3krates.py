"""Folders of So3krates models as their training program leaves them: Flax msgpack and JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials._learned import atomic_number, parameter_shapes
from jaxmd_thermal.potentials.so3krates import DEFAULT_BLOCK, So3krates, So3kratesNetwork, check_architecture

CHECKPOINTS = "checkpoint_loss_*"
HYPERPARAMETERS = "hyperparameters.json"
SCALES = "scales.json"

EMBEDDING = "feature_embeddings_0/Embed_0/embedding"

# Options whose other values would be another function of the same parameters.
GEOMETRY = {
    "radial_basis_function": "phys", "radial_cutoff_fn": "cosine_cutoff_fn", "sphc": True, "sphc_normalization": None,
    "solid_harmonic": False,
}  # fmt: skip
LAYER = {
    "fb_filter": "radial_spherical", "fb_attention": "conv_att", "gb_filter": "radial_spherical",
    "gb_attention": "conv_att", "non_local_sphc": False, "non_local_feature": False, "fast_attention_kwargs": None,
    "chi_cut": None, "chi_cut_dynamic": False, "parity": True, "layer_normalization": False,
    "sphc_normalization": False, "neighborhood_normalization": False, "final_layer": False,
}  # fmt: skip
ENERGY = {"per_atom_scale": None, "per_atom_shift": None, "output_convention": "per_structure"}


def read_so3krates(folder, species=None) -> So3krates:
    """The potential of a folder with `checkpoint_loss_*`, `hyperparameters.json` and `scales.json`, as NumPy float64.

    Only architecture, cutoff and energy shifts are taken from the JSON files, never a path. Energies are eV, lengths Å.

    Args:
      folder: of several checkpoints, the one with the highest number is taken.
      species: elements that the model knows. By default those that it was trained on: the optimiser's state in the
        checkpoint tells whose embeddings ever had a gradient.

    Raises:
      InputError: a file is missing, truncated or damaged; an option is not supported; names or shapes of the weights do
        not fit the architecture. The message names file, value, what is needed, and the remedy.
    """
    folder = Path(folder).expanduser()
    network, cutoff = _architecture(folder / HYPERPARAMETERS)
    checkpoint = _checkpoint(folder)
    state = _restored(checkpoint)
    if species is None:
        known = _trained_species(checkpoint, state)
    else:
        known = tuple(sorted(atomic_number(s) for s in ([species] if isinstance(species, int | str) else species)))
    check_architecture(network, cutoff, known)
    return So3krates(
        params=_parameters(checkpoint, state, network),
        references=_shifts(folder / SCALES, known),
        network=network,
        cutoff=cutoff,
        species=known,
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"cannot read '{path}': {error.strerror or error}; a So3krates model is a folder with {CHECKPOINTS}, "
            f"{HYPERPARAMETERS} and {SCALES}"
        ) from error
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON ({error}): it is truncated or damaged; get it again") from error


def _architecture(path: Path) -> tuple[So3kratesNetwork, float]:
    """Network and cutoff in Å."""
    try:
        model = _json(path)["stack_net"]
        (geometry,), (atom,) = model["geometry_embeddings"], model["feature_embeddings"]
        (observable,) = model["observables"]
        geometry, atom, energy = geometry["geometry_embed"], atom["atom_type_embed"], observable["energy"]
        layer, *others = [entry["so3krates_layer"] for entry in model["layers"]]
        for where, found, needed in (
            ("geometry", geometry, GEOMETRY),
            ("layer", layer, LAYER),
            ("energy", energy, ENERGY),
        ):
            for key, value in needed.items():
                if found[key] != value:
                    raise InputError(
                        f"'{path}' has {where} option {key} = {found[key]!r}; only {value!r} is supported: load another model"
                    )
        features, degrees = int(atom["features"]), tuple(int(n) for n in layer["degrees"])
        radial, spherical = layer["fb_rad_filter_features"], layer["fb_sph_filter_features"]
        for what, found, needed in (
            ("layers that differ", any(other != layer for other in others), False),
            ("degrees of the geometry", tuple(geometry["degrees"]), degrees),
            ("fb_rad_filter_features", list(radial), [radial[0], features]),
            ("fb_sph_filter_features", list(spherical), [spherical[0], features]),
            ("gb_rad_filter_features", list(layer["gb_rad_filter_features"]), list(radial)),
            ("gb_sph_filter_features", list(layer["gb_sph_filter_features"]), list(spherical)),
        ):
            if found != needed:
                raise InputError(f"'{path}' has {what} = {found}; only {needed} is supported: load another model")
        network = So3kratesNetwork(
            layers=int(model["n_layers"]),
            features=features,
            heads=int(layer["n_heads"]),
            degrees=degrees,
            radial=int(geometry["n_rbf"]),
            hidden_radial=int(radial[0]),
            hidden_spherical=int(spherical[0]),
            hidden_energy=features,
            elements=int(atom["num_embeddings"]),
            block=DEFAULT_BLOCK,
        )
        return network, float(geometry["r_cut"])
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}' does not describe a So3krates model ({type(error).__name__}: {error}): needed are one geometry and "
            "one atom-type embedding, equal layers and the energy; get the file again, or load another model"
        ) from error


def _checkpoint(folder: Path) -> Path:
    numbered = [(int(n), path) for path in folder.glob(CHECKPOINTS) if (n := path.name.rpartition("_")[2]).isdigit()]
    if not numbered:
        raise InputError(
            f"there is no checkpoint in '{folder}' (a file like checkpoint_loss_598560): give the folder of a So3krates model"
        )
    return max(numbered)[1]


def _restored(path: Path) -> Mapping[str, Any]:
    from flax.serialization import msgpack_restore

    try:
        state = msgpack_restore(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the weights '{path}': {error.strerror or error}") from error
    except Exception as error:  # msgpack and NumPy raise whatever the damage makes them stumble over
        raise InputError(
            f"'{path}' is truncated or damaged ({type(error).__name__}: {error}): get the file again"
        ) from error
    if not isinstance(state, Mapping) or not isinstance(state.get("params"), Mapping):
        raise InputError(f"'{path}' holds no training state with 'params': it is no So3krates checkpoint")
    return state


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(a/b/c, leaf) of nested dictionaries."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}/{key}" if name else str(key))
    else:
        yield name, tree


def _trained_species(path: Path, state: Mapping[str, Any]) -> tuple[int, ...]:
    """Elements whose embedding was ever moved: elsewhere the second moment of the gradient is exactly zero."""
    for name, moments in _leaves(state.get("opt_state", {})):
        if name.endswith(f"nu/params/{EMBEDDING}") and np.ndim(moments) == 2:
            trained = tuple(int(n) for n in np.flatnonzero(np.any(np.asarray(moments) != 0, axis=1)))
            if trained:
                return trained
    raise InputError(
        f"'{path}' does not tell which elements the model was trained on (no optimiser state): give `species`"
    )


def _names(network: So3kratesNetwork) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """(our name, name in the checkpoint, whether it has a leading axis of length 1 there) of every parameter."""

    def perceptron(ours: tuple[str, ...], theirs: str, stacked: bool):
        for n in (0, 1):
            for kind in ("kernel", "bias"):
                yield (*ours, f"{kind}_{n + 1}"), f"{theirs}/layers_{n}/{kind}", stacked

    yield ("embedding",), EMBEDDING, False
    yield from perceptron(("readout",), "observables_0/MLP_0", False)
    for step in range(network.layers):
        ours, theirs = f"steps_{step}", f"layers_{step}"
        for kind, block in (("feature", "FeatureBlock_0"), ("geometric", "GeometricBlock_0")):
            attention = f"{theirs}/{block}/attention_fn/VmapConvAttentionCoefficients_0"
            yield (ours, kind, "query"), f"{attention}/Dense_0/kernel", False
            yield (ours, kind, "key"), f"{attention}/Dense_1/kernel", False
            for n, name in enumerate(("radial_filter", "spherical_filter")):
                yield from perceptron((ours, kind, name), f"{theirs}/{block}/filter_fn/VmapMLP_{n}", True)
        aggregation = f"{theirs}/FeatureBlock_0/attention_fn/VmapAttentionAggregation_0"
        yield (ours, "value"), f"{aggregation}/Dense_0/kernel", False
        for kind in ("kernel", "bias"):
            yield (ours, f"exchange_{kind}"), f"{theirs}/InteractionBlock_0/MLP_0/layers_0/{kind}", False


def _parameters(path: Path, state: Mapping[str, Any], network: So3kratesNetwork) -> dict[str, Any]:
    """Our tree of parameters, every name and shape checked."""
    found = dict(_leaves(state["params"].get("params", {})))
    shapes: Any = parameter_shapes(network)
    params: dict[str, Any] = {}
    names = list(_names(network))
    for wrong, what in (
        ([theirs for _, theirs, _ in names if theirs not in found], "lacks"),
        (sorted(found.keys() - {theirs for _, theirs, _ in names}), "has the unknown"),
    ):
        if wrong:
            raise InputError(
                f"'{path}' holds weights of another architecture than {HYPERPARAMETERS} says ({network.layers} layers): it "
                f"{what} '{wrong[0]}' ({len(wrong)} of {len(names)} such); use the two files of one model"
            )
    for ours, theirs, stacked in names:
        shape: Any = shapes
        array = np.asarray(found[theirs])
        for key in ours:
            shape = shape[key]
        needed = (1, *shape.shape) if stacked else shape.shape
        if array.shape != needed or array.dtype.kind != "f":
            raise InputError(
                f"'{path}' holds weights of another architecture than {HYPERPARAMETERS} says: '{theirs}' is {array.dtype} of "
                f"shape {array.shape}, needed is float32 of shape {needed}; use the two files of one model"
            )
        if not np.all(np.isfinite(array)):
            raise InputError(f"'{path}' holds values that are not finite in '{theirs}': it is damaged; get it again")
        branch = params
        for key in ours[:-1]:
            branch = branch.setdefault(key, {})
        branch[ours[-1]] = array.reshape(shape.shape).astype(np.float64)
    return params


def _shifts(path: Path, species: tuple[int, ...]) -> np.ndarray:
    """(species,) eV."""
    try:
        energy = _json(path)["energy"]
        scale, by_number = float(energy["scale"]), energy["per_atom_shift"]
        shifts = np.array([by_number[n] for n in species], np.float64)
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"'{path}' has no energy scale and per_atom_shift for Z = {', '.join(map(str, species))} "
            f"({type(error).__name__}: {error}): use the three files of one model"
        ) from error
    if scale != 1.0 or not np.all(np.isfinite(shifts)):
        raise InputError(
            f"'{path}' has the energy scale {scale} and shifts {shifts.tolist()} eV; supported are the scale 1 and finite "
            "shifts: load another model"
        )
    return shifts
