"""Thermal conductivities as the files that phono3py writes and its tools read (kappa-m*.hdf5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._backend import double_precision
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.io.hdf5 import read_arrays, write_arrays
from jaxmd_thermal.lattice import symmetry, wigner
from jaxmd_thermal.lattice.conductivity import ThermalConductivity

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
"""xx, yy, zz, yz, xz, xy: phono3py's order."""


def write_kappa(result: ThermalConductivity, path: str | Path) -> Path:
    """See `ThermalConductivity.save`."""
    path = Path(path)
    settings = result.settings
    if path.is_dir():
        sigma = "" if settings["sigma_THz"] is None else f"-s{settings['sigma_THz']:g}"
        path = path / f"kappa-m{''.join(str(m) for m in settings['mesh'])}{sigma}.hdf5"
    squares, amount, same, share = _pairs(result)
    n = result.weights.sum()
    intra = np.where(same[..., None], squares, 0.0)
    populations = n * np.einsum("Tkst,kstv->Tksv", amount, intra)
    tree = {
        "temperature": result.temperatures, "mesh": np.asarray(settings["mesh"], "int64"), "qpoint": result.qpoints,
        "weight": result.weights.astype("int64"), "frequency": result.frequencies,
        "group_velocity": result.group_velocity, "gv_by_gv": intra.sum(2) * result.weights[:, None, None],
        "heat_capacity": result.heat_capacity, "kappa": _voigt(result.kappa),
        "gamma": result.gamma, "gamma_N": result.gamma_normal,
        "gamma_U": result.gamma_umklapp, "gamma_isotope": result.gamma_isotope,
        "boundary_mfp": None if settings["boundary_A"] is None else 1e-4 * settings["boundary_A"],
        "sigma": settings["sigma_THz"], "kappa_unit_conversion": wigner.CONDUCTIVITY / result.crystal.volume,
    }  # fmt: skip
    if settings["method"] == "wigner":
        coherences = n * np.einsum("Tkst,kstv->Tksv", amount * share, squares - intra)
        tree |= {"kappa_intra": _voigt(result.kappa_populations), "kappa_inter": _voigt(result.kappa_coherences)}
        tree |= {"mode_kappa": populations + coherences}
    elif settings["method"] == "rta":
        tree |= {"mode_kappa": populations}
    else:
        tree |= {"kappa_RTA": _voigt(result.kappa_populations), "mode_kappa_RTA": populations}
    return write_arrays(
        path, tree, {"settings": dict(settings), "versions": dict(result.versions), "invalid": result.invalid}
    )


def read_kappa(path: str | Path) -> dict[str, Any]:
    """What `srd`, `sre` and `srme` compare, out of a file that phono3py or `ThermalConductivity.save` wrote.

    Returns: `temperatures` (T,) K, `weights` (k,), `qpoints` (k, 3), `frequencies` (k, bands) THz, `kappa_TOT_ave` (T,) W/(m K),
    and `mode_kappa_TOT_ave` (T, k, bands) W/(m K), star weights included, both means over directions; the last is None where
    the file does not split all of its conductivity into modes (Boltzmann equation here, coherences of phono3py).

    Raises:
      InputError: not such a file.
    """
    arrays, _ = read_arrays(path)
    missing = [name for name in ("temperature", "weight", "qpoint", "frequency", "kappa") if name not in arrays]
    if missing or arrays["kappa"].shape != (len(arrays["temperature"]), 6):
        what = f"`{missing[0]}`" if missing else f"(temperatures, 6) values of `kappa`, but {arrays['kappa'].shape}"
        raise InputError(
            f"'{path}' has no {what}; it holds {', '.join(arrays) or 'nothing'}: a kappa-m*.hdf5 of all grid points is expected"
        )
    modes = arrays.get("mode_kappa")
    return {
        "temperatures": arrays["temperature"], "weights": arrays["weight"], "qpoints": arrays["qpoint"],
        "frequencies": arrays["frequency"], "kappa_TOT_ave": arrays["kappa"][:, :3].mean(axis=-1),
        "mode_kappa_TOT_ave": None if modes is None else modes[..., :3].mean(axis=-1),
    }  # fmt: skip


def _voigt(tensors: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 6)."""
    return tensors[..., VOIGT[0], VOIGT[1]]


def _pairs(result: ThermalConductivity) -> tuple[np.ndarray, ...]:
    """Squared velocities (k, bands, bands, 6), and `wigner.Pairs`."""
    with double_precision():
        pairs = wigner.pairs(
            jnp.asarray(result.frequencies), jnp.asarray(result.gamma_total), jnp.asarray(result.weights), result.crystal.volume,
            jnp.asarray(result.temperatures), result.settings["populations"] == "classical",
        )  # fmt: skip
        velocity2 = wigner.squared_velocity(
            jnp.asarray(result.velocity_operator), symmetry.cartesian_point_group(result.crystal)
        )
        return (_voigt(np.asarray(velocity2)), *(np.asarray(x) for x in pairs))
