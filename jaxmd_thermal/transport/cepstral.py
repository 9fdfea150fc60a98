"""Cepstral estimate of the zero-frequency limit of a spectrum: from its logarithm, whose noise is additive and known.

The conventions of `statistics`: flux (replicas, frames, components), fs and THz, values are S(0)/2. Sources: Ercole,
Marcolongo, Baroni, Sci. Rep. 7, 15835 (2017); several components: Bertossa et al., PRL 122, 255901 (2019).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from scipy.special import digamma, polygamma

from jaxmd_thermal.errors import InputError
from jaxmd_thermal.transport.statistics import THZ_FS, block_means, block_size, periodogram

FIRST_BLOCKS, LAST_BLOCKS = 1024, 256
"""Samples that the automatic f* begins with at least, and does not go below."""


@dataclass(frozen=True)
class Cepstral:
    """A cepstral estimate. `value` is `exp(log_s0)/2`, `relative_error` that of `value`; `spectrum` the smooth S(f)."""

    value: float
    relative_error: float
    coefficients: int  # P, the number of cepstral coefficients kept
    aic_coefficients: int  # P*, what the criterion of Akaike asks for
    components: float  # l
    samples: int  # N, two-sided
    block: int  # frames averaged into one sample
    frequency_cutoff: float  # f*, THz
    frequencies: np.ndarray
    power: np.ndarray
    spectrum: np.ndarray

    @property
    def stderr(self) -> float:
        return self.value * self.relative_error


def cepstral_coefficients(power: np.ndarray, components: float) -> tuple[np.ndarray, np.ndarray]:
    """Bias-free log spectrum and its cosine coefficients C_n, from a power (N/2 + 1,) that is a mean of l components.

    `y_k = ln S_k - (psi(l) - ln l)`, with l/2 for l at both ends, where the Fourier sum is real; DCT-I, so that
    `y_0 = C_0 + 2 sum_{1..N/2-1} C_n + C_{N/2}`.
    """
    if not np.all(power > 0):
        k = int(np.flatnonzero(~(power > 0))[0])
        raise InputError(
            f"the flux has no power ({power[k]:g}) in frequency bin {k}; a logarithm needs noise in every bin. "
            "Is the flux constant, or was its mean removed? Keep the mean for the cepstral estimate."
        )
    half = components / 2.0
    y = np.log(power) - (digamma(components) - np.log(components))
    y[[0, -1]] = np.log(power[[0, -1]]) - (digamma(half) - np.log(half))
    return y, scipy.fft.dct(y, type=1) / (2 * (len(power) - 1))


def akaike(coefficients: np.ndarray, components: float) -> np.ndarray:
    """AIC(P) = sum_k (y_k - y_k^P)^2 / psi'(l) + 2 P for P = 1 .. N/2, the first entry being P = 1.

    The sum over the bins is that of the coefficients left out (Parseval; the two end bins count one half).
    """
    bins = len(coefficients) - 1
    weights = np.full(bins + 1, 2.0)
    weights[[0, -1]] = 1.0
    left_out = bins * np.cumsum((weights * coefficients**2)[::-1])[::-1]
    return left_out[1:] / polygamma(1, components) + 2.0 * np.arange(1, bins + 1)


def cepstral_estimate(
    flux: np.ndarray,
    timestep: float,
    *,
    frequency_cutoff: float | None = None,
    block: int | None = None,
    components: float | None = None,
    coefficients: int | None = None,
    aic_factor: float = 1.0,
    unbias: bool = False,
) -> Cepstral:
    """Zero-frequency limit of the spectrum from its logarithm; replicas and directions pooled as components.

    `ln S(0) = C_0 + 2 sum_{1..P-1} C_n`, relative error `sqrt(psi'(l)/N (4 P - 2))`.

    Args:
      flux: (replicas, frames, c) eV Å/fs. All replicas and components must have one spectrum; if not, give an
        effective `components` (`effective_components`).
      timestep: fs between frames.
      frequency_cutoff, block: f* in THz, or the frames in a block; neither: no resampling.
      components: l; default replicas x c.
      coefficients: P; default `aic_factor` times the minimum of the AIC. The AIC minimises the error of the whole
        log spectrum, where a narrow peak at f = 0 weighs little: the plain estimate (factor 1) is too low for slow
        decays, by 3 to 10 % for one exponential and by up to 35 % for crystals, with an error bar that is too small.
        With 2 both are repaired (tests/physics/test_coverage.py).
      unbias: divide by exp(error^2/2), the mean of the log-normal distribution that the estimate has.
    """
    block = block or (1 if frequency_cutoff is None else block_size(timestep, frequency_cutoff))
    step = block * timestep
    samples = block_means(flux, block)
    frequencies, powers = periodogram(samples, step)
    power = powers.mean(axis=(0, 2))
    l = float(components or flux.shape[0] * flux.shape[2])  # noqa: E741 (the symbol of the paper)
    count = samples.shape[1]
    _, c = cepstral_coefficients(power, l)
    best = int(np.argmin(akaike(c, l))) + 1
    keep = coefficients or round(aic_factor * best)
    keep = max(1, min(keep, count // 2))
    error = float(np.sqrt(polygamma(1, l) / count * (4 * keep - 2)))
    kept = np.where(np.arange(len(c)) < keep, c, 0.0)
    log_spectrum = scipy.fft.dct(kept, type=1)
    value = 0.5 * float(np.exp(log_spectrum[0] - (0.5 * error**2 if unbias else 0.0)))
    cutoff, spectrum = THZ_FS / (2.0 * step), np.exp(log_spectrum)
    return Cepstral(value, error, keep, best, l, count, block, cutoff, frequencies, power, spectrum)


def effective_components(samples: np.ndarray) -> float:
    """Number l of equal components whose mean fluctuates like that of these unequal or correlated ones.

    `l = replicas (tr K)^2 / tr K^2` with K the covariance of the directions: 3 per replica if isotropic, 1 if one
    direction carries everything (Satterthwaite's rule), whatever the axes. Within 3 % of isotropic counts as isotropic.
    """
    replicas, _, c = samples.shape
    k = _covariance(samples)
    l = replicas * np.trace(k) ** 2 / np.sum(k * k)  # noqa: E741
    return float(replicas * c if l > 0.97 * replicas * c else l)


def _covariance(samples: np.ndarray) -> np.ndarray:
    flat = (samples - samples.mean(axis=1, keepdims=True)).reshape(-1, samples.shape[2])
    return flat.T @ flat / len(flat)


def cepstral_mean(
    flux: np.ndarray, timestep: float, block: int, *, aic_factor: float = 1.0, unbias: bool = False
) -> Cepstral:
    """Mean of S(0)/2 over the directions. Isotropic: all directions pooled.

    If the directions differ, the logarithm of their pooled power is biased (down to 0.7 times the value); then the sum
    is over the principal axes of the flux, each with its own logarithm and the P that the pooled spectrum asks for.
    """
    samples = block_means(flux, block)
    l = effective_components(samples)  # noqa: E741
    options: dict = {"block": block, "unbias": unbias}
    pooled = cepstral_estimate(flux, timestep, components=l, aic_factor=aic_factor, **options)
    if l == flux.shape[0] * flux.shape[2]:
        return pooled
    turned = flux @ np.linalg.eigh(_covariance(samples))[1]
    parts = [
        cepstral_estimate(turned[:, :, k : k + 1], timestep, coefficients=pooled.coefficients, **options)
        for k in range(flux.shape[2])
    ]
    value = float(np.mean([p.value for p in parts]))
    error = float(np.sqrt(np.sum([p.stderr**2 for p in parts]))) / len(parts)
    return replace(pooled, value=value, relative_error=error / value)


def choose_block(flux: np.ndarray, timestep: float, start: float = 1.0, most: int = 5) -> tuple[int, str]:
    """Automatic f*: block length in frames, and the reason in words.

    Begins at `start` THz (crystals: the optical part of the spectrum is averaged away), or higher where that would
    leave less than 1024 samples. Then the blocks double while the AIC still asks for more than `most` coefficients (a
    peak at f = 0 too narrow for this resolution, which biases the estimate) and 256 samples would remain.
    """
    frames = flux.shape[1]
    block, reason = block_size(timestep, start), f"{start:g} THz"
    if frames // block < FIRST_BLOCKS and block > 1:
        block = max(1, frames // FIRST_BLOCKS)
        reason = f"as low as {FIRST_BLOCKS} samples allow"
    while frames // (2 * block) >= LAST_BLOCKS:
        if cepstral_estimate(flux, timestep, block=block).aic_coefficients <= most:
            break
        block *= 2
        reason = f"lowered until the AIC asked for at most {most} coefficients or {LAST_BLOCKS} samples remained"
    return block, reason


def cepstral_tensor(flux: np.ndarray, timestep: float, block: int, coefficients: int) -> tuple[np.ndarray, np.ndarray]:
    """Cepstral S(0)/2 of all pairs of c directions: values (c, c) and standard errors (c, c), replicas pooled.

    Only auto-spectra have the gamma statistics that the logarithm needs, so the pairs come by polarisation: with
    J± = (J_a ± J_b)/sqrt 2, `K_ab = (K_++ - K_--)/2`, the part symmetric in a, b (the other part vanishes without a
    magnetic field). `coefficients` is the P of the pooled estimate: one direction has too little data to choose it.
    """

    def estimate(x: np.ndarray) -> Cepstral:
        return cepstral_estimate(x[:, :, None], timestep, block=block, coefficients=coefficients, unbias=True)

    c = flux.shape[2]
    value, error = np.zeros((c, c)), np.zeros((c, c))
    for a in range(c):
        one = estimate(flux[:, :, a])
        value[a, a], error[a, a] = one.value, one.stderr
        for b in range(a):
            plus = estimate((flux[:, :, a] + flux[:, :, b]) / np.sqrt(2.0))
            minus = estimate((flux[:, :, a] - flux[:, :, b]) / np.sqrt(2.0))
            value[a, b] = value[b, a] = 0.5 * (plus.value - minus.value)
            error[a, b] = error[b, a] = 0.5 * np.hypot(plus.stderr, minus.stderr)
    return value, error
