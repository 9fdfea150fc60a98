"""An E(3)-equivariant message-passing network, and the pattern that every learned potential follows.

Written with Flax (parameters) and e3nn-jax (spherical harmonics, Clebsch-Gordan coefficients). Neighbours are seen
through `graph.map_rows` only, so forces, stress and the exact heat flux come from the engine.
"""

from __future__ import annotations

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

MAX_DEGREE = 4
MAX_LAYERS = 8


def cutoff_function(x):
    """(1 - u)^4 (1 + 4u + 10u^2 + 20u^3) with u = x^2 below 1, then 0.

    1 with three vanishing derivatives at x = 0, and 0 with three at x = 1: the third derivatives of the energy, which
    gradients through forces and heat flux reach, stay continuous when a neighbour comes or goes.
    """
    u = jnp.minimum(x * x, 1.0)
    return (1.0 - u) ** 4 * (1.0 + u * (4.0 + u * (10.0 + 20.0 * u)))


def radial_basis(distances_squared, cutoff: float, size: int):
    """(..., size) Bessel functions sqrt(2/rc) sin(n pi r/rc)/r, times the cutoff function; zero from the cutoff on."""
    r = jnp.sqrt(distances_squared)
    n = np.arange(1, size + 1) * np.pi / cutoff
    waves = jnp.sin(r[..., None] * n.astype(r.dtype)) / r[..., None]
    # Scaled to order one at typical distances, so that the first layer starts in the linear range of silu.
    return waves * (math.sqrt(2.0 * cutoff) * cutoff_function(r / cutoff))[..., None]


class Layer(nn.Module):
    """Message, mixing, gate. Features are (atoms, (l, m), channels)."""

    channels: int
    l_in: int
    l_edge: int
    l_out: int
    radial: int
    hidden: int
    neighbors: float

    def setup(self):
        c, mine = self.channels, paths(self.l_in, self.l_edge, self.l_out)
        weights = nn.initializers.normal(1.0, np.float64)
        self.up = self.param("up", weights, (self.l_in + 1, c, c))
        self.first = self.param("radial_1", weights, (self.radial, self.hidden))
        self.second = self.param("radial_2", weights, (self.hidden, len(mine) * c))
        self.down = [
            self.param(f"down_{l3}", weights, (sum(p[2] == l3 for p in mine) * c, c)) for l3 in range(self.l_out + 1)
        ]
        self.skip = self.param("skip", weights, (min(self.l_in, self.l_out) + 1, c, c))
        self.gate = self.param("gate", weights, (c, self.l_out * c))

    def message(self, _, sent, basis, harmonics):
        """Sum over neighbours: sent (rows, K, (l1, m1), c) -> list over l3 of (rows, m3, paths * c)."""
        # No biases: where the basis is zero, so is the message, and empty slots need no mask.
        weights = nn.silu(basis @ self.first / math.sqrt(self.radial)) @ self.second / math.sqrt(self.hidden)
        features = jax.lax.split(sent, [2 * degree + 1 for degree in range(self.l_in + 1)], axis=2)
        sums = neighbor_sum(harmonics, features, weights, self.l_out)
        return [s / math.sqrt(self.neighbors) for s in sums]

    def __call__(self, graph, edges, features, block):
        def linear(weights, x):
            per_component = [w for degree, w in enumerate(weights) for _ in range(2 * degree + 1)]
            return jnp.einsum("nmc,mcd->nmd", x, jnp.stack(per_component)) / math.sqrt(x.shape[-1])

        received = graph.map_rows(self.message, gathered=(linear(self.up, features),), rows=edges, block=block)
        mixed = jnp.concatenate(
            [r @ w / math.sqrt(w.shape[0]) for r, w in zip(received, self.down, strict=True)], axis=1
        )
        kept = linear(self.skip, features[:, : mixed.shape[1]])
        mixed = mixed + jnp.pad(kept, ((0, 0), (0, mixed.shape[1] - kept.shape[1]), (0, 0)))
        scalars = mixed[:, :1]
        if self.l_out == 0:
            return nn.silu(scalars)
        gates = nn.sigmoid(scalars[:, 0] @ self.gate / math.sqrt(self.channels))
        gates = gates.reshape(-1, self.l_out, self.channels)
        of_component = np.repeat(np.arange(self.l_out), 2 * np.arange(1, self.l_out + 1) + 1)
        return jnp.concatenate([nn.silu(scalars), mixed[:, 1:] * gates[:, of_component]], axis=1)


class Network(nn.Module):
    """Embedding of the species, layers, readout of one energy per atom."""

    n_species: int
    layers: int
    channels: int
    lmax: int
    radial: int
    hidden: int
    neighbors: float
    block: int | None

    def setup(self):
        weights = nn.initializers.normal(1.0, np.float64)
        self.embedding = self.param("embedding", weights, (self.n_species, self.channels))
        self.steps = [
            Layer(
                self.channels,
                l_in=self.lmax if step else 0,
                l_edge=self.lmax,
                l_out=self.lmax if step + 1 < self.layers else 0,
                radial=self.radial,
                hidden=self.hidden,
                neighbors=self.neighbors,
            )
            for step in range(self.layers)
        ]
        self.readout_1 = self.param("readout_1", weights, (self.channels, self.channels))
        self.readout_2 = self.param("readout_2", weights, (self.channels,))

    def declare(self):
        """Touches every parameter and computes nothing; for initialisation."""
        for step in self.steps:
            step.up  # noqa: B018

    def edge_functions(self, graph):
        """(rows, K, radial) basis and (rows, K, (lmax + 1)^2) harmonics, the same for all layers."""
        basis = radial_basis(graph.distances_squared, graph.cutoff, self.radial)
        return basis, spherical_harmonics(graph.edge_vectors, self.lmax)

    def __call__(self, graph, kinds):
        features = self.embedding[kinds][:, None]
        edges = graph.map_rows(self.edge_functions, block=self.block)
        for step in self.steps:
            features = step(graph, edges, features, self.block)
        scalars = nn.silu(features[:, 0] @ self.readout_1 / math.sqrt(self.channels))
        return scalars @ self.readout_2 / math.sqrt(self.channels)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EquivariantNetwork(LearnedPotential):
    """E(3)-equivariant network with 1 to 8 message-passing layers; made by `create`.

    Attributes:
      params: Flax parameters of the network, NumPy float64 (leaves; cast to the precision of the run).
      scale: eV, unit of the network's output (leaf).
      references: (species,) eV, constant energies of the elements (leaf). In the energy, not in the heat flux.
      network: the architecture (static).
      cutoff: Å.
      species: atomic numbers, in the order of the embedding.

    Source of the pattern: NequIP, Batzner et al., Nature Communications 13, 2453 (2022).
    """

    params: Any
    scale: Any
    references: Any
    network: Network = static()
    cutoff: float = static()
    species: tuple[int, ...] = static()

    @classmethod
    def create(
        cls,
        key,
        species,
        cutoff: float,
        layers: int,
        *,
        channels: int = 16,
        lmax: int = 2,
        radial: int = 8,
        hidden: int = 32,
        neighbors: float = 16.0,
        scale: float = 1.0,
        references=None,
        block: int | None = 8,
    ) -> EquivariantNetwork:
        """A network with random weights, the same numbers whatever the user's `jax_enable_x64`.

        Args:
          key: JAX random key, or an integer seed.
          species: atomic numbers or chemical symbols that it shall know.
          cutoff: Å.
          layers: message-passing steps, 1 to 8.
          channels: channels of every degree.
          lmax: largest degree l of features and spherical harmonics, 0 to 4.
          radial: Bessel functions.
          hidden: width of the radial network.
          neighbors: typical number of neighbours, by whose root messages are divided.
          scale: eV.
          references: {species: eV} of constant energies.
          block: receivers evaluated at a time and recomputed in the reverse pass, None for all: memory then does not
            grow with edges times features.

        Raises:
          InputError: an unknown element, or a number out of its range.
        """
        numbers = elements_of(species)
        sizes = {
            "layers": (layers, 1, MAX_LAYERS), "lmax": (lmax, 0, MAX_DEGREE), "channels": (channels, 1, 4096),
            "radial": (radial, 1, 256), "hidden": (hidden, 1, 4096), "neighbors": (neighbors, 1e-3, 1e4),
            "block": (block or 1, 1, 2**20),
        }  # fmt: skip
        check_sizes(sizes)
        network = Network(len(numbers), layers, channels, lmax, radial, hidden, float(neighbors), block)
        return cls(
            params=random_parameters(key, network),
            scale=np.asarray(scale, np.float64),
            references=constant_energies(references, numbers),
            network=network,
            cutoff=check_cutoff(cutoff),
            species=numbers,
        )

    def atomic_energies(self, graph):
        return self.scale * self.applied(graph, self.kinds(graph.numbers))
