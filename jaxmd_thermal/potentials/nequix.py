"""Nequix: a NequIP-type E(3)-equivariant network, the architecture of the published foundation potentials.

Weights come from `load_potential` (names `nequix-...`, or a `.nqx` file) or, at random, from `Nequix.create`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal.potentials._learned import (
    LearnedPotential,
    check_cutoff,
    check_sizes,
    constant_energies,
    elements_of,
    random_parameters,
)
from jaxmd_thermal.potentials.tensor_product import neighbor_sum, paths, spherical_harmonics
from jaxmd_thermal.system import static

SILU_NORM = 0.5964586854233045
"""Root mean square of silu over a normal variable as e3nn samples it (a million quantiles), in float64.

Part of the weights: with the exact 0.59646921 energies would be off by 1e-5 eV.
"""

NORM_FLOOR = 1e-12

DEFAULT_BLOCK = 2
"""Receivers at a time; measured on CPUs, where their edges then stay in the cache."""


def activation(x):
    """silu of unit second moment."""
    return nn.silu(x) / SILU_NORM


def envelope(x, power: int):
    """Polynomial cutoff: 1 at x = 0, and 0 with two vanishing derivatives at x = 1 and beyond.

    Source: Gasteiger et al., ICLR 2020 (DimeNet), equation 8.
    """
    p = power
    x = jnp.minimum(x, 1.0)
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return 1.0 - x**p * (a - x * (b - x * c))


def radial_basis(distances_squared, cutoff: float, size: int, power: int):
    """(..., size): (2/rc) sin(n pi r/rc)/r times the envelope."""
    r = jnp.sqrt(distances_squared)[..., None]
    n = jnp.arange(1, size + 1, dtype=r.dtype)
    return jnp.sin(n * (math.pi / cutoff) * r) * (2.0 / cutoff * envelope(r / cutoff, power) / r)


class Layer(nn.Module):
    """One interaction: message, linear maps, norm, gate. Features are lists over l of (atoms, 2l + 1, channels).

    Attributes:
      inputs, outputs: channels of each degree before and after.
      radial: functions of the radial basis.
      hidden: widths of the radial network.
      first: the features are species (one degree, one-hot): linear maps are look-ups.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    l_edge: int
    radial: int
    hidden: tuple[int, ...]
    power: int
    neighbors: float
    first: bool

    def setup(self):
        def matrices(name, shapes):
            return {
                degree: self.param(f"{name}_{degree}", nn.initializers.normal(1.0, np.float64), shape)
                for degree, shape in shapes.items()
            }

        mine = paths(len(self.inputs) - 1, self.l_edge, len(self.outputs) - 1)
        received = {
            degree: sum(self.inputs[l1] for l1, _, l3 in mine if l3 == degree) for degree in range(len(self.outputs))
        }
        produced = dict(enumerate(self.outputs)) | {0: self.outputs[0] + sum(self.outputs[1:])}
        widths = (self.radial, *self.hidden, sum(received.values()))
        self.radial_maps = list(matrices("radial", dict(enumerate(itertools.pairwise(widths)))).values())
        self.linear_1 = matrices("linear_1", {degree: (c, c) for degree, c in enumerate(self.inputs)})
        self.linear_2 = matrices("linear_2", {degree: (c, produced[degree]) for degree, c in received.items()})
        both = range(min(len(self.inputs), len(self.outputs)))
        self.skip = matrices("skip", {degree: (self.inputs[degree], produced[degree]) for degree in both})
        self.norm = matrices("norm", {degree: (c,) for degree, c in produced.items()})

    def message(self, _, *arguments):
        """(rows, K, 2 l + 1, channels) of the neighbours of each degree, basis, harmonics -> sums of messages over them."""
        *sent, basis, harmonics = arguments
        # No biases: where the basis is zero, so are the weights, and empty slots need no mask.
        weights = basis
        for matrix in self.radial_maps[:-1]:
            weights = nn.silu(weights @ matrix)
        weights = weights @ self.radial_maps[-1]
        return neighbor_sum(harmonics, sent, weights, len(self.outputs) - 1)

    def linear(self, matrices, features, kinds):
        """Per degree x @ w / sqrt(inputs), for the degrees that both have."""
        scaled = {degree: w / math.sqrt(w.shape[0]) for degree, w in matrices.items()}
        if self.first:
            return [scaled[0][kinds][:, None]]
        return [x @ scaled[degree] for degree, x in enumerate(features) if degree in scaled]

    def __call__(self, graph, edges, features, kinds, block):
        sent = self.linear(self.linear_1, features, kinds)
        # Each degree by itself: what comes back for it is then a sum in the shape (2 l + 1, channels), whose inner loop is
        # vectorised; in one flat array of all degrees it is not (phonon fine-tuning: a third of the time).
        received = graph.map_rows(self.message, gathered=sent, rows=edges, block=block)
        kept = self.linear(self.skip, features, kinds)
        mixed = []
        for degree, x in enumerate(received):
            w = self.linear_2[degree]
            y = x @ (w / math.sqrt(w.shape[0] * self.neighbors))
            mixed.append(y + kept[degree] if degree < len(kept) else y)
        # One norm for all degrees: sums over channels, each degree divided by its dimension twice.
        square = sum(jnp.sum(y**2, axis=(1, 2)) / (2 * degree + 1) ** 2 for degree, y in enumerate(mixed))
        scale = jax.lax.rsqrt(NORM_FLOOR + square / len(mixed))[:, None, None]
        mixed = [y * self.norm[degree] * scale for degree, y in enumerate(mixed)]
        scalars, *gates = jax.lax.split(activation(mixed[0]), self.outputs, axis=-1)
        return [scalars] + [y * gate for y, gate in zip(mixed[1:], gates, strict=True)]


class NequixNetwork(nn.Module):
    """The architecture: layers and readout of one number per atom.

    Attributes:
      n_species: elements that it knows.
      channels: of each degree l = 0, 1, ...; the last layer keeps only the scalars.
      layers: interactions.
      l_edge: largest degree of the spherical harmonics.
      radial, hidden: size of the radial basis, widths of the radial network.
      power: of the cutoff polynomial.
      neighbors: mean number of neighbours, by whose root messages are divided.
      block: receivers evaluated at a time and recomputed in the reverse pass; None for all at once.
    """

    n_species: int
    channels: tuple[int, ...]
    layers: int
    l_edge: int
    radial: int
    hidden: tuple[int, ...]
    power: int
    neighbors: float
    block: int | None

    def setup(self):
        self.steps = [
            Layer(
                inputs=self.channels if step else (self.n_species,),
                outputs=self.channels if step + 1 < self.layers else self.channels[:1],
                l_edge=self.l_edge,
                radial=self.radial,
                hidden=self.hidden,
                power=self.power,
                neighbors=self.neighbors,
                first=step == 0,
            )
            for step in range(self.layers)
        ]
        self.readout = self.param("readout", nn.initializers.normal(1.0, np.float64), (self.channels[0], 1))

    def declare(self):
        """Touches every parameter and computes nothing; for initialisation."""
        for step in self.steps:
            step.norm  # noqa: B018

    def __call__(self, graph, kinds):
        features = []
        edges = graph.map_rows(self.edge_functions, block=self.block)
        for step in self.steps:
            features = step(graph, edges, features, kinds, self.block)
        return (features[0] @ self.readout)[:, 0, 0] / math.sqrt(self.channels[0])

    def edge_functions(self, graph):
        """(rows, K, radial) basis and (rows, K, (l_edge + 1)^2) harmonics, the same for all layers."""
        basis = radial_basis(graph.distances_squared, graph.cutoff, self.radial, self.power)
        return basis, spherical_harmonics(graph.edge_vectors, self.l_edge)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nequix(LearnedPotential):
    """E(3)-equivariant network with the Nequix architecture.

    Attributes:
      params: Flax parameters, NumPy float64 (leaves; cast to the precision of the run).
      scale: eV, unit of the network's output (leaf).
      references: (species,) eV, energy that each element contributes whatever its neighbours (leaf). In the energy, not
        in the heat flux.
      network: the architecture (static).
      cutoff: Å.
      species: atomic numbers, in the order of the parameters.

    Source: Koker, Kotak and Smidt, arXiv 2508.16067 (Nequix); Batzner et al., Nature Communications 13, 2453 (2022).
    """

    params: Any
    scale: Any
    references: Any
    network: NequixNetwork = static()
    cutoff: float = static()
    species: tuple[int, ...] = static()

    @classmethod
    def create(
        cls,
        key,
        species,
        cutoff: float = 6.0,
        *,
        channels: tuple[int, ...] = (32, 16, 8),
        layers: int = 3,
        l_edge: int = 2,
        radial: int = 8,
        hidden: tuple[int, ...] = (64, 64),
        power: int = 6,
        neighbors: float = 40.0,
        scale: float = 1.0,
        references=None,
        block: int | None = DEFAULT_BLOCK,
    ) -> Nequix:
        """A network with random weights, the same numbers whatever the user's `jax_enable_x64`.

        Args:
          key: JAX random key, or an integer seed.
          species: atomic numbers or chemical symbols that it shall know.
          cutoff: Å.
          references: {species: eV} of constant energies.
          The others are those of `NequixNetwork` and `Nequix`.

        Raises:
          InputError: an unknown element, or a number out of its range.
        """
        numbers = tuple(sorted(elements_of(species)))
        network = NequixNetwork(
            len(numbers), tuple(channels), layers, l_edge, radial, tuple(hidden), power, float(neighbors), block
        )
        check_architecture(network)
        return cls(
            params=_scaled_to_start(random_parameters(key, network), network),
            scale=np.asarray(scale, np.float64),
            references=constant_energies(references, numbers),
            network=network,
            cutoff=check_cutoff(cutoff),
            species=numbers,
        )

    def atomic_energies(self, graph):
        return self.scale * self.applied(graph, self.kinds(graph.numbers))


def check_architecture(network: NequixNetwork) -> None:
    """Raises InputError where a size is out of its range."""
    sizes = {
        "layers": (network.layers, 1, 8), "l_edge": (network.l_edge, 0, 4), "radial": (network.radial, 1, 256),
        "power": (network.power, 2, 64), "neighbors": (network.neighbors, 1e-3, 1e4), "block": (network.block or 1, 1, 2**20),
        "number of degrees of the channels": (len(network.channels), 1, network.l_edge + 1),
        "smallest number of channels": (min(network.channels, default=0), 1, 4096),
        "number of hidden layers of the radial network": (len(network.hidden), 1, 8),
    }  # fmt: skip
    check_sizes(sizes)


def _scaled_to_start(params, network: NequixNetwork):
    """Random normals -> a network whose signals start at order one: the radial maps carry no 1/sqrt(inputs) of their own."""
    out = dict(params)
    for step in range(network.layers):
        layer = dict(params[f"steps_{step}"])
        for name, w in layer.items():
            if name.startswith("radial"):
                layer[name] = w / math.sqrt(w.shape[0])
            elif name.startswith("norm"):
                layer[name] = np.ones_like(w)
        out[f"steps_{step}"] = layer
    return out
