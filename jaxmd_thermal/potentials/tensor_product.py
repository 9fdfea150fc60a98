"""Messages of equivariant networks: the sum over neighbours of feature x radial weight x spherical harmonic.

Every degree l has the parity (-1)^l. A path (l1, l2, l3) couples features of degree l1 with harmonics of degree l2 to
messages of degree l3.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.errors import InputError

SWITCH = "JAXMD_THERMAL_TENSOR_PRODUCT"
"""Environment variable: `matmul`, the default, or `cuequivariance`, whose kernels need a GPU. Read when a program is traced, so
it is for a whole process. The benchmark `kernels` times one against the other."""


@lru_cache
def paths(l_in: int, l_edge: int, l_out: int) -> tuple[tuple[int, int, int], ...]:
    """(l1, l2, l3) of feature, harmonic and message that conserve parity, sorted by l3, then l1, then l2."""
    return tuple(
        (l1, l2, l3)
        for l3 in range(l_out + 1)
        for l1 in range(l_in + 1)
        for l2 in range(l_edge + 1)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    )


@lru_cache
def coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real Clebsch-Gordan coefficients, scaled so that unit-variance inputs give unit-variance components."""
    return e3nn.clebsch_gordan(l1, l2, l3) * math.sqrt(2 * l3 + 1)


def spherical_harmonics(vectors, lmax: int):
    """(..., 3) -> (..., (lmax + 1)^2) of the direction, |Y_l|^2 = 2 l + 1, in e3nn's order (y is the polar axis)."""
    return e3nn.spherical_harmonics(
        [e3nn.Irrep(degree, (-1) ** degree) for degree in range(lmax + 1)],
        vectors,
        normalize=True,
        normalization="component",
        algorithm=("recursive", "dense"),
    ).array


def neighbor_sum(harmonics, sent, weights, l_out: int):
    """Messages summed over neighbours: `sum_k R_p(k) C^p (x(k), Y(k))` for every path p.

    Harmonics multiply first and coefficients last, on the sum: then neighbours are summed by matrix products, nothing
    is as large as edges times coefficients, and the coefficients cost as much as an atom, not as its edges.

    Args:
      harmonics: (n, K, (l_edge + 1)^2).
      sent: one (n, K, 2 l1 + 1, channels of l1) for each degree of the features.
      weights: (n, K, sum over paths of the channels of l1), in the order of `paths`.
      l_out: largest degree of the messages.

    Returns:
      one (n, 2 l3 + 1, channels of the paths to l3 in order) for each degree l3.

    Raises:
      InputError: an unknown value of `SWITCH`, or a package is missing that it asks for.
    """
    method = os.environ.get(SWITCH) or "matmul"
    if method not in ("matmul", "cuequivariance"):
        raise InputError(f"{SWITCH} is {method!r}; it must be 'matmul' or 'cuequivariance', or unset")
    l_edge = math.isqrt(harmonics.shape[-1]) - 1
    mine = paths(len(sent) - 1, l_edge, l_out)
    by_path = jax.lax.split(weights, [sent[l1].shape[-1] for l1, _, _ in mine], axis=-1)
    found = (_by_kernels if method == "cuequivariance" else _by_matmul)(harmonics, sent, by_path, mine)
    sums: list[list] = [[] for _ in range(l_out + 1)]
    for (_, _, l3), message in zip(mine, found, strict=True):
        sums[l3].append(message)
    return [jnp.concatenate(s, axis=-1) for s in sums]


def _by_matmul(harmonics, sent, by_path, mine):
    """(n, 2 l3 + 1, channels) of each path."""
    n, k, size = harmonics.shape
    # Split, not sliced: the transpose of a split is one concatenation, that of slices a chain of padded sums. Neighbours last:
    # products of (components, K) with (K, features) are what compilers have a fast form of.
    degrees = [2 * degree + 1 for degree in range(math.isqrt(size))]
    by_degree = jax.lax.split(jnp.swapaxes(harmonics, 1, 2), degrees, axis=1)
    found = []
    for (l1, l2, l3), weight in zip(mine, by_path, strict=True):
        weighted = (sent[l1] * weight[:, :, None]).reshape(n, k, -1)
        if l2 == 0:  # Y_0 = 1, and nothing of it is differentiated
            outer = jnp.sum(weighted, axis=1)
        else:
            outer = jnp.matmul(by_degree[l2], weighted)
        coefficients = coupling(l1, l2, l3).transpose(2, 1, 0).reshape(2 * l3 + 1, -1)
        # The same matrix for every receiver: with the receivers as its leading axis as well, nothing is transposed.
        coefficients = jnp.broadcast_to(jnp.asarray(coefficients, harmonics.dtype), (n, *coefficients.shape))
        found.append(jnp.matmul(coefficients, outer.reshape(n, coefficients.shape[-1], -1)))
    return found


def _by_kernels(harmonics, sent, by_path, mine):
    """The same by cuEquivariance: one polynomial for each degree of the features, whose channels are the lanes of its kernel."""
    try:
        import cuequivariance_jax as cuex
    except ImportError as error:
        raise InputError(
            f"{SWITCH} is 'cuequivariance', but cuequivariance-jax is not installed: install jaxmd-thermal with the extra "
            "cuda12 or cuda13, or unset the variable"
        ) from error
    if jax.__version_info__ >= (0, 12) and cuex.__version__ == "0.13.0":
        raise InputError(
            f"{SWITCH} is 'cuequivariance', and cuequivariance-jax 0.13.0 does not run with jax {jax.__version__}: install a "
            "newer one of the first or jax below 0.12, or unset the variable"
        )
    # Elsewhere its plain JAX form, which is slow and says the same.
    method = "uniform_1d" if jax.default_backend() == "gpu" else "naive"
    n, k, size = harmonics.shape
    found: list = [None] * len(mine)
    for degree, features in enumerate(sent):
        places = [i for i, (l1, _, _) in enumerate(mine) if l1 == degree]
        polynomial = _polynomial(tuple(mine[i] for i in places), size, features.shape[-1])
        weights = jnp.concatenate([by_path[i] for i in places], axis=-1)
        summed = jax.ShapeDtypeStruct((n, 1, polynomial.outputs[0].size), harmonics.dtype)
        inputs = [harmonics, features.reshape(n, k, -1), weights]
        (messages,) = cuex.segmented_polynomial(polynomial, inputs, [summed], method=method)
        components = [2 * mine[i][2] + 1 for i in places]
        messages = jax.lax.split(messages.reshape(n, sum(components), -1), components, axis=1)
        for i, message in zip(places, messages, strict=True):
            found[i] = message
    return found


@lru_cache
def _polynomial(mine: tuple[tuple[int, int, int], ...], size: int, channels: int):
    """Harmonics (components), features (components of one degree, channels), weights (paths, channels) -> messages (components
    of all paths, channels)."""
    import cuequivariance as cue

    product = cue.SegmentedTensorProduct.from_subscripts(",u,u,u")
    product.add_segments(0, [()] * size)
    product.add_segments(1, [(channels,)] * (2 * mine[0][0] + 1))
    product.add_segments(2, [(channels,)] * len(mine))
    product.add_segments(3, [(channels,)] * sum(2 * l3 + 1 for _, _, l3 in mine))
    first = 0
    for path, (l1, l2, l3) in enumerate(mine):
        coefficients = coupling(l1, l2, l3)
        for a, b, c in zip(*np.nonzero(coefficients), strict=True):
            product.add_path(l2**2 + int(b), int(a), path, first + int(c), c=float(coefficients[a, b, c]))
        first += 2 * l3 + 1
    return cue.SegmentedPolynomial.eval_last_operand(product)
