"""Statistics of Green-Kubo series: spectra, correlations, estimators of the zero-frequency value and their errors.

Pure NumPy functions. A flux is an array (replicas, frames, components), extensive, eV Å/fs; times are in fs,
frequencies in THz. With the two-sided power spectrum `S(f) = integral C(t) exp(2 pi i f t) dt`, (eV Å/fs)^2 fs, every
estimator returns `S(0)/2 = integral_0^inf C(t) dt`; `units.green_kubo_prefactor` turns that into W/(m K).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.signal import savgol_filter

from jaxmd_thermal.errors import InputError

THZ_FS = 1000.0  # 1 THz times 1 fs is 1/1000


@dataclass(frozen=True)
class Direct:
    """A time-domain estimate: the running integral read at `cutoff_time` (fs), with its theoretical error."""

    value: float
    stderr: float
    cutoff_time: float
    times: np.ndarray
    running: np.ndarray


# Spectra and correlations


def block_size(timestep: float, frequency_cutoff: float) -> int:
    """Frames in a block so that the Nyquist frequency of the block means is closest to `frequency_cutoff` (THz)."""
    return max(1, round(THZ_FS / (2.0 * frequency_cutoff * timestep)))


def block_count(frames: int, size: int) -> int:
    """How many blocks of `size` frames a series has, an even number; `InputError` if that is too few for a spectrum."""
    count = frames // size
    count -= count % 2
    if count < 8:
        raise InputError(
            f"{frames} frames in blocks of {size} leave {count} samples; at least 8 are needed. "
            "Give a longer series or a higher frequency cutoff."
        )
    return count


def block_means(series: np.ndarray, size: int) -> np.ndarray:
    """Means over consecutive blocks of `size` frames, (replicas, frames, c) -> (replicas, blocks, c); an even number.

    The box filter has zeros at the multiples of the new sampling frequency: nothing is folded onto f = 0.
    """
    count = block_count(series.shape[1], size)
    shape = (series.shape[0], count, size, series.shape[2])
    return np.asarray(series[:, : count * size], float).reshape(shape).mean(axis=2)


def periodogram(series: np.ndarray, timestep: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided periodogram of each component at the non-negative frequencies; the mean is not removed.

    Returns `frequencies` (bins,) in THz and `power` (replicas, bins, c) = dt/N |sum_n x_n exp(-2 pi i k n/N)|^2.
    """
    frames = series.shape[1]
    power = np.abs(scipy.fft.rfft(series, axis=1)) ** 2 * (timestep / frames)
    return scipy.fft.rfftfreq(frames, timestep / THZ_FS), power


def power_spectrum(flux: np.ndarray, timestep: float, width: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Mean spectrum of all replicas and components, averaged in bins of `width` THz. For plots: the mean is removed."""
    frequencies, power = periodogram(flux - flux.mean(axis=1, keepdims=True), timestep)
    size = max(1, int(width / frequencies[1]))
    mean = power.mean(axis=(0, 2))[1:]
    count = len(mean) // size
    pick = slice(0, count * size)
    return frequencies[1:][pick].reshape(count, size).mean(1), mean[pick].reshape(count, size).mean(1)


def autocorrelation(flux: np.ndarray, max_lag: int | None = None) -> np.ndarray:
    """C_ab(n) = <J_a(0) J_b(n)> by FFT: (replicas, frames, c) -> (replicas, lags, c, c), in the flux's unit squared.

    The mean of each series is removed and each lag is divided by its own number of products (unbiased but for the
    mean). Padded with zeros, so nothing wraps around.
    """
    replicas, frames, c = flux.shape
    lags = frames // 2 if max_lag is None else min(max_lag, frames - 1) + 1
    length = scipy.fft.next_fast_len(frames + lags, real=True)
    spectrum = scipy.fft.rfft(flux - flux.mean(axis=1, keepdims=True), length, axis=1)
    out = np.empty((replicas, lags, c, c))
    for a in range(c):
        for b in range(c):
            product = np.conj(spectrum[:, :, a]) * spectrum[:, :, b]
            out[:, :, a, b] = scipy.fft.irfft(product, length, axis=1)[:, :lags]
    return out / (frames - np.arange(lags))[:, None, None]


def running_integral(correlation: np.ndarray, timestep: float, axis: int = 0) -> np.ndarray:
    """Integral from 0 to each lag by the trapezoidal rule, zero at lag 0; the same shape as `correlation`."""
    c = np.moveaxis(correlation, axis, 0)
    out = np.zeros(c.shape, dtype=float)
    out[1:] = np.cumsum(0.5 * timestep * (c[1:] + c[:-1]), axis=0)
    return np.moveaxis(out, 0, axis)


# Time-domain estimates


def automatic_cutoff(correlation: np.ndarray, samples: float) -> int:
    """First lag from which |C|, averaged over three lags, is below the noise of its own estimate; an index >= 1.

    The noise beyond the memory of the process is Bartlett's, `var C(n) = sum_m C(m)^2 / samples` (m of both signs),
    with `samples` the number of frames times independent components; the sum is cut at the lag found, and the rule
    iterated. Beyond this lag the integral gathers noise only. Use the correlation of block means: that of an optical
    oscillation crosses zero early.
    """
    squares = np.cumsum(np.concatenate([correlation[:1] ** 2, 2.0 * correlation[1:] ** 2]))
    size = np.convolve(np.abs(correlation), np.ones(3) / 3.0, mode="valid")
    lag, last = 1, 0
    for _ in range(20):  # a longer sum only raises the threshold, so this settles in two or three rounds
        if lag == last:
            break
        last = lag
        below = np.flatnonzero(size < np.sqrt(squares[lag] / samples))
        lag = max(1, int(below[0])) if below.size else len(correlation) - 1
    return lag


def first_zero(values: np.ndarray) -> int:
    """Index of the first value that is not positive; the last index if all are."""
    found = np.flatnonzero(values <= 0)
    return int(found[0]) if found.size else len(values) - 1


def correlation_time(correlation: np.ndarray, timestep: float) -> float:
    """`integral t C dt / integral C dt` in fs: tau of one exponential, of several the mean weighted by their areas."""
    weight = float(np.sum(correlation) - 0.5 * correlation[0])
    moment = float(np.sum(np.arange(len(correlation)) * correlation))
    return timestep * moment / weight if weight > 0 and moment > 0 else timestep


def direct_error(
    frequencies: np.ndarray, power: np.ndarray, components: float, cutoff_time: float, window: float = 0.0
) -> float:
    """Standard error of a running integral at `cutoff_time` (fs), averaged over `window` (fs); Gaussian noise.

    The integral weighs the periodogram with `w(f) = sin(2 pi f t_c)/(pi f) sinc(f window)`, whose bins are independent:
    `var = 1/(2 l T) integral S(f)^2 w(f)^2 df` over both signs of f, T the length of one series and l the number of
    independent ones. White noise: 2 K sqrt(t_c/(l T)). Strong optical modes add to it, which that formula misses.

    Args:
      frequencies, power: of `periodogram`, the power averaged over the l components; <S_k^2> = (1 + 1/l) S^2.
    """
    f = frequencies / THZ_FS
    weight = 2.0 * cutoff_time * np.sinc(2.0 * f * cutoff_time) * np.sinc(f * window)
    squares = (power * weight) ** 2 / (1.0 + 1.0 / components)
    return float(np.sqrt((squares[1:].sum() + 0.5 * squares[1]) / components) * f[1])


def running_error(value: float, times: np.ndarray, total_time: float) -> np.ndarray:
    """Error band of a running integral, 2 |value| sqrt(t/total): white noise of the strength of the final value."""
    return 2.0 * abs(value) * np.sqrt(times / total_time)


def running_tensor_error(tensor: np.ndarray, time: float, total_time: float) -> np.ndarray:
    """`running_error` for each pair of directions of an integral (d, d), 2 sqrt((K_aa K_bb + K_ab^2)/2) sqrt(t/total)."""
    diagonal = np.diag(tensor)
    return 2.0 * np.sqrt(0.5 * (np.abs(np.outer(diagonal, diagonal)) + tensor**2) * time / total_time)


def mean_diagonal(tensors: np.ndarray) -> np.ndarray:
    """Mean over the directions of (..., d, d) tensors."""
    return np.trace(tensors, axis1=-2, axis2=-1) / tensors.shape[-1]


def _smooth(values: np.ndarray, window: int, odd: bool) -> np.ndarray:
    pad = values[1:window][::-1]
    extended = np.concatenate([-pad if odd else pad, values])
    return savgol_filter(extended, window, 1, axis=0)[len(pad) :]


def filtered_integral(
    correlation: np.ndarray, timestep: float, frequency: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Running integral without the oscillations faster than `frequency` (THz), and its smooth derivative; along axis 0.

    Cumulate, filter (Savitzky-Golay, order 1, window 1/frequency, odd extension at t = 0), differentiate, filter again.
    Source: Knoop, Scheffler, Carbogno, arXiv 2209.01139 (frequency: lowest peak of the vibrational spectrum, or 1 THz).
    """
    running = running_integral(correlation, timestep)
    window = max(3, round(THZ_FS / (frequency * timestep)))
    window += 1 - window % 2
    if window > len(running) // 2:
        raise InputError(
            f"the filter of {frequency:g} THz spans {window} lags, but the correlation has only {len(running)}. "
            "Give a longer series or a higher filter frequency."
        )
    smooth = _smooth(running, window, odd=True)
    return smooth, _smooth(np.gradient(smooth, timestep, axis=0), window, odd=False)


def direct_estimate(
    correlation: np.ndarray, timestep: float, spectrum: tuple[np.ndarray, np.ndarray, float], lag: int, window: int = 1
) -> Direct:
    """Plain Green-Kubo integral of a correlation (lags,), its mean over `window` lags around `lag`.

    The mean takes out the phase of optical oscillations. `spectrum`: the arguments of `direct_error`.
    """
    running = running_integral(correlation, timestep)
    lag = min(lag, len(running) - 1)
    half = min(window // 2, lag, len(running) - 1 - lag)
    value = float(running[lag - half : lag + half + 1].mean())
    error = direct_error(*spectrum, lag * timestep, (2 * half + 1) * timestep)
    return Direct(value, error, lag * timestep, timestep * np.arange(len(running)), running)


def filtered_estimate(
    correlation: np.ndarray, timestep: float, spectrum: tuple[np.ndarray, np.ndarray, float], frequency: float = 1.0
) -> Direct:
    """Noise-filtered direct estimate of Knoop et al.: `filtered_integral` read at the first zero of its derivative."""
    smooth, slope = filtered_integral(correlation, timestep, frequency)
    lag = max(1, first_zero(slope))
    error = direct_error(*spectrum, lag * timestep, THZ_FS / frequency)
    return Direct(float(smooth[lag]), error, lag * timestep, timestep * np.arange(len(smooth)), smooth)


# Errors over replicas and blocks


def standard_error(values: np.ndarray, axis: int = 0) -> np.ndarray | None:
    """Standard error of the mean over an axis of independent values; None with fewer than two."""
    count = values.shape[axis]
    return values.std(axis=axis, ddof=1) / np.sqrt(count) if count > 1 else None


def block_error(series: np.ndarray, blocks: int = 10) -> np.ndarray:
    """Standard error of the time mean of a correlated series (frames, ...), from the means of `blocks` equal parts."""
    size = len(series) // blocks
    if size < 1:
        raise InputError(f"{len(series)} frames cannot be cut into {blocks} blocks; give a longer series.")
    means = series[: size * blocks].reshape(blocks, size, *series.shape[1:]).mean(axis=1)
    return means.std(axis=0, ddof=1) / np.sqrt(blocks)


def split_replicas(flux: np.ndarray, parts: int) -> np.ndarray:
    """Cut each replica into `parts` consecutive pieces of equal length, as replicas of their own."""
    size = flux.shape[1] // parts
    return flux[:, : size * parts].reshape(-1, size, flux.shape[2])
