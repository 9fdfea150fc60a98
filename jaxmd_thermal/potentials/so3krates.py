"""So3krates: a message-passing network with invariant features x and equivariant ones chi that meet only in invariants.

Neighbours are weighed by attention: a filter of distance and relative orientation times a query of the receiver times a
key of the sender. Weights come from `read_so3krates` or, at random, from `So3krates.create`.

Source: Frank, Unke and Müller, NeurIPS 2022; Frank, Unke, Müller and Chmiela, Nature Communications 15, 6539 (2024).
Model of SnSe: Langer, Frank and Knoop, J. Chem. Phys. 159, 174105 (2023). Heat flux: Langer et al., PRB 108, L100302 (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmd_thermal._arrays import take
from jaxmd_thermal.errors import InputError
from jaxmd_thermal.potentials._learned import (
    LearnedPotential,
    check_cutoff,
    constant_energies,
    elements_of,
    kinds_of,
    random_parameters,
)
from jaxmd_thermal.system import static

DEFAULT_BLOCK = 32
"""Receivers at a time; on CPUs 8 to 64 are equally fast (256 atoms, two layers), all at once take twice as long."""

NORMAL = nn.initializers.normal(1.0, np.float64)


def radial_basis(distances, cutoff: float, size: int):
    """(..., size) Gaussians of exp(-r): `exp(-beta (exp(-r) - mu_k)^2)`, centres mu from exp(-rc) to 1.

    Source: Unke and Meuwly, J. Chem. Theory Comput. 15, 3678 (2019), with lengths in Å.
    """
    end = math.exp(-cutoff)
    centres = jnp.asarray(np.linspace(end, 1.0, size), distances.dtype)
    return jnp.exp(-((2.0 / size * (1.0 - end)) ** -2) * (jnp.exp(-distances)[..., None] - centres) ** 2)


def cutoff_function(distances, mask, cutoff: float):
    """(cos(pi r/rc) + 1)/2 where the mask is set, 0 elsewhere: beyond the cutoff the cosine would rise again."""
    return jnp.where(mask, 0.5 * (jnp.cos(distances * (math.pi / cutoff)) + 1.0), 0.0)


def harmonics(vectors, degrees: tuple[int, ...]):
    """(..., 3) -> (..., sum of 2l+1) real spherical harmonics of the directions, orthonormal on the sphere.

    The order of the components does not matter: energies know only norms of each degree.
    """
    irreps = e3nn.Irreps([(1, (degree, (-1) ** degree)) for degree in degrees])
    # "dense": the alternative "sparse" takes 2.5 times as long to compile, and is slower.
    return e3nn.spherical_harmonics(irreps, vectors, True, "integral", algorithm=("recursive", "dense")).array


def components(degrees: tuple[int, ...]) -> np.ndarray:
    """(degrees, sum of 2l+1) of 0 and 1: which components belong to a degree."""
    return np.repeat(np.eye(len(degrees)), [2 * degree + 1 for degree in degrees], axis=1)


def invariants(chi, degrees: tuple[int, ...]):
    """(..., sum of 2l+1) -> (..., degrees): `c_l = sum_m chi_lm^2 / sqrt(2l+1)`, smooth where chi vanishes."""
    weights = components(degrees).T / np.sqrt([2 * degree + 1 for degree in degrees])
    return chi**2 @ jnp.asarray(weights, chi.dtype)


def per_component(values, degrees: tuple[int, ...]):
    """(..., degrees) -> (..., sum of 2l+1): the number of each degree, for each of its components."""
    return values @ jnp.asarray(components(degrees), values.dtype)


class Perceptron(nn.Module):
    """Two dense layers with SiLU between them."""

    sizes: tuple[int, int, int]

    def setup(self):
        first, hidden, last = self.sizes
        self.kernel_1 = self.param("kernel_1", NORMAL, (first, hidden))
        self.bias_1 = self.param("bias_1", NORMAL, (hidden,))
        self.kernel_2 = self.param("kernel_2", NORMAL, (hidden, last))
        self.bias_2 = self.param("bias_2", NORMAL, (last,))

    def hidden(self, x):
        return nn.silu(x @ self.kernel_1 + self.bias_1)

    def __call__(self, x):
        return self.hidden(x) @ self.kernel_2 + self.bias_2


class Attention(nn.Module):
    """alpha_h = sum over the head's features of Q_i w_ij K_j, over sqrt(F / heads).

    The filter is `w = MLP(radial basis) + MLP(c(chi_j - chi_i))`; Q and K are dense layers of each head's own features.
    """

    features: int
    heads: int
    radial: tuple[int, int]
    spherical: tuple[int, int]

    def setup(self):
        width = self.features // self.heads
        self.query = self.param("query", NORMAL, (self.heads, width, width))
        self.key = self.param("key", NORMAL, (self.heads, width, width))
        self.radial_filter = Perceptron((*self.radial, self.features))
        self.spherical_filter = Perceptron((*self.spherical, self.features))

    def declare(self):
        return self.query, self.radial_filter.kernel_1, self.spherical_filter.kernel_1

    def split(self, x):
        """(..., features) -> (..., heads, features / heads)."""
        return x.reshape(*x.shape[:-1], self.heads, self.features // self.heads)

    def project(self, kernel, x):
        """A dense layer for each head: (n, features) -> (n, features)."""
        return jnp.einsum("nhc,hcd->nhd", self.split(x), kernel).reshape(x.shape)

    def between_atoms(self, basis, turns, queries, keys):
        """(rows, K, heads).

        Args:
          basis: (rows, K, radial).
          turns: (rows, K, degrees) c(chi_j - chi_i), or (degrees,) for all alike.
          queries, keys: (rows, features) and (rows, K, features).
        """
        filters = self.radial_filter(basis) + self.spherical_filter(turns)
        alpha = jnp.sum(self.split(filters * keys * queries[:, None]), axis=-1)
        return alpha / math.sqrt(self.features // self.heads)

    def between_species(self, basis, table, here, there):
        """(rows, K, heads), where features are those of the species (species, features) and chi is zero.

        Q_i K_j then has one value for each pair of species and folds into the last layer of the filter: a number for
        each pair and head takes the place of one for each feature, which made the published model 2.3 times as fast.
        """
        queries, keys = self.project(self.query, table), self.project(self.key, table)
        straight = jnp.zeros(self.spherical[0], basis.dtype)
        n = table.shape[0]
        if n**2 * self.heads > self.features:  # so many species that folding costs more
            return self.between_atoms(basis, straight, take(queries, here), take(keys, there))
        products = jnp.einsum("shc,thc->sthc", self.split(queries), self.split(keys))
        products = products.reshape(n * n, self.heads, -1) / math.sqrt(self.features // self.heads)
        kernel = jnp.einsum("khc,phc->kph", self.split(self.radial_filter.kernel_2), products)
        constant = self.split(self.radial_filter.bias_2 + self.spherical_filter(straight))
        every = self.radial_filter.hidden(basis) @ kernel.reshape(-1, n * n * self.heads)
        every = every.reshape(*basis.shape[:-1], n * n, self.heads) + jnp.einsum("hc,phc->ph", constant, products)
        chosen = jax.nn.one_hot(n * here[:, None] + there, n * n, dtype=basis.dtype)
        return jnp.einsum("nkph,nkp->nkh", every, chosen)


class Layer(nn.Module):
    """Two attentions over the neighbours, one for each kind of feature, and an exchange between the two kinds.

    `x (atoms, F) += sum_j phi alpha V_j`, `chi (atoms, (l, m)) += sum_j phi alpha_l Y_l(r_ij)`, then `exchange`.
    """

    features: int
    heads: int
    degrees: tuple[int, ...]
    radial: int
    hidden_radial: int
    hidden_spherical: int

    def setup(self):
        filters = ((self.radial, self.hidden_radial), (len(self.degrees), self.hidden_spherical))
        self.feature = Attention(self.features, self.heads, *filters)
        self.geometric = Attention(self.features, len(self.degrees), *filters)
        width, size = self.features // self.heads, self.features + len(self.degrees)
        self.value = self.param("value", NORMAL, (self.heads, width, width))
        self.exchange_kernel = self.param("exchange_kernel", NORMAL, (size, size))
        self.exchange_bias = self.param("exchange_bias", NORMAL, (size,))

    def declare(self):
        return self.value, self.feature.declare(), self.geometric.declare()

    def edges(self, graph):
        """Radial basis (rows, K, radial), cutoff function phi (rows, K, 1), harmonics (rows, K, (l, m))."""
        distances = jnp.sqrt(graph.distances_squared)  # never of zero: empty slots hold a vector beyond the cutoff
        phi = cutoff_function(distances, graph.mask, graph.cutoff)[..., None]
        return radial_basis(distances, graph.cutoff, self.radial), phi, harmonics(graph.edge_vectors, self.degrees)

    def turned(self, alpha, angular):
        """(rows, (l, m)): sum over neighbours of alpha_l Y_l."""
        return jnp.sum(per_component(alpha, self.degrees) * angular, axis=1)

    def from_species(self, graph, table, species):
        """What the first layer receives, (rows, F) and (rows, (l, m)): nothing has to be gathered for it."""
        basis, phi, angular = self.edges(graph)
        here, there = kinds_of(species, graph.numbers), kinds_of(species, graph.neighbor_numbers)
        alpha = phi * self.feature.between_species(basis, table, here, there)
        beta = phi * self.geometric.between_species(basis, table, here, there)
        shares = jnp.einsum("nkh,nks->nhs", alpha, jax.nn.one_hot(there, table.shape[0], dtype=basis.dtype))
        values = self.feature.split(self.feature.project(self.value, table))
        return jnp.einsum("nhs,shc->nhc", shares, values).reshape(-1, self.features), self.turned(beta, angular)

    def from_neighbors(self, graph, sent, queries, geometric_queries, chi):
        """What later layers receive, (rows, F) and (rows, (l, m)); sent is (rows, K, keys, values, keys, chi)."""
        basis, phi, angular = self.edges(graph)
        keys, values, geometric_keys, there = jax.lax.split(sent, [*[self.features] * 3, chi.shape[-1]], axis=-1)
        turns = invariants(there - chi[:, None], self.degrees)
        alpha = phi * self.feature.between_atoms(basis, turns, queries, keys)
        beta = phi * self.geometric.between_atoms(basis, turns, geometric_queries, geometric_keys)
        received = jnp.einsum("nkh,nkhc->nhc", alpha, self.feature.split(values))
        return received.reshape(-1, self.features), self.turned(beta, angular)

    def __call__(self, graph, x, chi, block):
        a, b = self.feature, self.geometric
        sent = [a.project(a.key, x), a.project(self.value, x), b.project(b.key, x), chi]
        rows = (a.project(a.query, x), b.project(b.query, x), chi)
        gathered = (jnp.concatenate(sent, axis=-1),)
        received, turned = graph.map_rows(self.from_neighbors, gathered=gathered, rows=rows, block=block)
        return self.exchange(x + received, chi + turned)

    def exchange(self, x, chi):
        """`[a, b] = Dense([x, c(chi)])`; x + a and chi_l + b_l chi_l."""
        both = jnp.concatenate([x, invariants(chi, self.degrees)], axis=-1) @ self.exchange_kernel + self.exchange_bias
        a, b = both[:, : self.features], both[:, self.features :]
        return x + a, chi * (1.0 + per_component(b, self.degrees))


class So3kratesNetwork(nn.Module):
    """The architecture: embedding of the atomic number, layers, readout of one energy per atom.

    Attributes:
      layers: message-passing steps.
      features: F, length of the invariant features.
      heads: of the attention between them; the other attention has one head for each degree.
      degrees: l of the equivariant features, in the order of the parameters.
      radial: size of the radial basis.
      hidden_radial, hidden_spherical, hidden_energy: widths of the filters of distance and orientation, of the readout.
      elements: rows of the embedding, one for each atomic number from 0 on.
      block: receivers evaluated at a time and recomputed in the reverse pass; None for all at once.
    """

    layers: int
    features: int
    heads: int
    degrees: tuple[int, ...]
    radial: int
    hidden_radial: int
    hidden_spherical: int
    hidden_energy: int
    elements: int
    block: int | None

    def setup(self):
        self.embedding = self.param("embedding", NORMAL, (self.elements, self.features))
        self.steps = [
            Layer(self.features, self.heads, self.degrees, self.radial, self.hidden_radial, self.hidden_spherical)
            for _ in range(self.layers)
        ]
        self.readout = Perceptron((self.features, self.hidden_energy, 1))

    def declare(self):
        """Touches every parameter and computes nothing; for initialisation."""
        return [step.declare() for step in self.steps], self.readout.kernel_1

    def __call__(self, graph, species):
        table = self.embedding[np.array(species)]
        first, *later = self.steps
        # Rows that come in blocks already (`row_local`) need no smaller ones.
        block = None if graph.local else self.block
        received, chi = graph.map_rows(lambda rows: first.from_species(rows, table, species), block=block)
        x, chi = first.exchange(table[kinds_of(species, graph.numbers)] + received, chi)
        for step in later:
            x, chi = step(graph, x, chi, self.block)
        return self.readout(x)[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class So3krates(LearnedPotential):
    """So3krates network with 1 to 8 message-passing layers.

    Attributes:
      params: Flax parameters, NumPy float64 (leaves; cast to the precision of the run).
      references: (species,) eV, constant energies of the elements (leaf). In the energy, not in the heat flux.
      network: the architecture (static).
      cutoff: Å.
      species: atomic numbers that it knows.
    """

    params: Any
    references: Any
    network: So3kratesNetwork = static()
    cutoff: float = static()
    species: tuple[int, ...] = static()

    @classmethod
    def create(
        cls,
        key,
        species,
        cutoff: float = 5.0,
        layers: int = 1,
        *,
        features: int = 48,
        heads: int = 4,
        degrees: tuple[int, ...] = (1, 2, 3),
        radial: int = 32,
        hidden_radial: int | None = None,
        hidden_spherical: int | None = None,
        hidden_energy: int | None = None,
        elements: int = 100,
        references=None,
        block: int | None = DEFAULT_BLOCK,
    ) -> So3krates:
        """A network with random weights, the same numbers whatever the user's `jax_enable_x64`.

        Args:
          key: JAX random key, or an integer seed.
          species: atomic numbers or chemical symbols that it shall know.
          cutoff: Å.
          hidden_radial, hidden_spherical, hidden_energy: default F, F/4 and F, as in the published model (F = 132).
          references: {species: eV} of constant energies.
          The others are those of `So3kratesNetwork`.

        Raises:
          InputError: an unknown element, or a number out of its range.
        """
        numbers = tuple(sorted(elements_of(species)))
        network = So3kratesNetwork(
            layers, features, heads, tuple(degrees), radial, hidden_radial or features,
            hidden_spherical or max(features // 4, 1), hidden_energy or features, elements, block,
        )  # fmt: skip
        check_architecture(network, cutoff, numbers)
        return cls(
            params=jax.tree_util.tree_map_with_path(_initial, random_parameters(key, network)),
            references=constant_energies(references, numbers),
            network=network,
            cutoff=float(cutoff),
            species=numbers,
        )

    @property
    def row_local(self) -> bool:  # type: ignore[override]
        # A single layer sees positions and species of its neighbours, nothing that they computed.
        return self.network.layers == 1

    def atomic_energies(self, graph):
        return self.applied(graph, self.species)


def _initial(path, normal):
    """Unit variance of what a layer puts out: kernels by the root of their inputs, biases zero."""
    name = path[-1].key
    if "bias" in name:
        return np.zeros_like(normal)
    return normal if name == "embedding" else normal / math.sqrt(normal.shape[-2])


def check_architecture(network: So3kratesNetwork, cutoff: float, species: tuple[int, ...]) -> None:
    """Raises InputError, which names the number, its limits and the remedy."""
    limits = {
        "layers": 8, "features": 4096, "heads": 256, "radial": 256, "hidden_radial": 4096, "hidden_spherical": 4096,
        "hidden_energy": 4096, "elements": 1024, "block": 2**20,
    }  # fmt: skip
    for name, high in limits.items():
        value = 1 if (name, getattr(network, name)) == ("block", None) else getattr(network, name)
        if not (isinstance(value, int) and 1 <= value <= high):
            raise InputError(f"{name} is {value!r}; it must be a whole number between 1 and {high}")
    degrees = network.degrees
    if not degrees or not set(degrees) <= set(range(1, 9)) or len(set(degrees)) < len(degrees):
        raise InputError(f"degrees are {degrees}; they must be at least one of 1 to 8, each only once")
    for name, parts in (("heads", network.heads), ("degrees", len(degrees))):
        if network.features % parts:
            raise InputError(f"features are {network.features}; needed is a multiple of the number of {name}, {parts}")
    check_cutoff(cutoff)
    if not species or len(set(species)) < len(species) or max(species) >= network.elements:
        raise InputError(
            f"species are {species}; give at least one element, each only once, below Z = {network.elements} (elements)"
        )
