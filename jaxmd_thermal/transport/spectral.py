"""Spectral decomposition of the heat current of a driven run (HNEMD): which frequencies carry the heat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.units import hnemd_prefactor

THZ_FS = 1000.0


@dataclass(frozen=True)
class SpectralConductivity:
    """`conductivity` in W/(m K) per THz at `frequency` = omega/2pi (THz); trailing axes as in the correlation."""

    frequency: np.ndarray
    conductivity: np.ndarray

    @property
    def integral(self) -> np.ndarray:
        """Integral over omega/2pi, W/(m K): the potential part of kappa, to rounding."""
        weights = np.full(len(self.frequency), self.frequency[1])
        weights[0] *= 0.5  # the bin around 0 is shared with the negative frequencies
        return np.tensordot(weights, self.conductivity, axes=1)


def virial_velocity_lags(correlation: np.ndarray, timestep: float) -> np.ndarray:
    """Times (fs) of a two-sided correlation (2 L + 1, ...): -L dt .. L dt."""
    count = len(correlation)
    if count % 2 == 0 or count < 3:
        raise InputError(
            f"the correlation has {count} lags; it must be two-sided, an odd number 2 L + 1 >= 3 from -L to L. "
            "K(-t) is not K(t): correlate the velocities before and after the virials."
        )
    half = count // 2
    return timestep * np.arange(-half, half + 1)


def spectral_conductivity(
    correlation: np.ndarray,
    timestep: float,
    volume: float,
    temperature: float,
    driving_force: float,
    *,
    taper: bool = True,
) -> SpectralConductivity:
    """kappa(omega) of a homogeneously driven run from the virial-velocity correlation.

    With `K(t) = sum_j <W_j(0) . v_j(t)>`, W_j the transpose of the heat flux (so K(0) = <J_pot>)

        kappa(omega) = 2/(V T F_e) Re integral K(t) exp(i omega t) dt,    t from -inf to inf,

    whose integral over omega/2pi from 0 to infinity is `<J_pot>/(V T F_e)`, the potential part's kappa. The part of K
    odd in time, all that equilibrium has, drops out. Source: Fan et al., PRB 99, 064308 (2019).

    Args:
      correlation: (2 L + 1, ...) eV Å/fs, lags -L .. L in frames; trailing axes (directions, species, atoms) are kept.
      timestep: fs between lags.
      volume: Å^3; temperature: K; driving_force: 1/Å, the component along which the field acts.
      taper: multiply by the Hann window, 1 at t = 0: less ripple from the finite L, same integral.

    Raises:
      InputError: an even number of lags, or a field of zero.
    """
    correlation = np.asarray(correlation, float)
    times = virial_velocity_lags(correlation, timestep)
    if not np.isfinite(driving_force) or driving_force == 0.0:
        raise InputError(f"driving_force is {driving_force} 1/Å; a spectral conductivity needs a field that is not 0.")
    if taper:
        half = len(times) // 2
        window = 0.5 * (1.0 + np.cos(np.pi * np.arange(-half, half + 1) / (half + 1)))
        correlation = correlation * window.reshape(-1, *[1] * (correlation.ndim - 1))
    # Starting the array at t = 0 makes the transform's phase that of K(t); an odd length has no Nyquist bin.
    spectrum = np.fft.rfft(np.fft.ifftshift(correlation, axes=0), axis=0).real * timestep
    factor = 2.0 * hnemd_prefactor(volume, temperature) / driving_force
    frequency = np.fft.rfftfreq(len(times), timestep / THZ_FS)
    # Per fs^-1 of omega/2pi is 1/1000 per THz.
    return SpectralConductivity(frequency, factor * spectrum / THZ_FS)
