"""Replicas shared out over the devices that there are."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax
import numpy as np

from jaxmd_thermal.dynamics.loop import Carry, Simulation

log = logging.getLogger(__name__)


def devices_used(n_replicas: int, n_devices: int) -> int:
    """Devices that replicas are shared out over: all of them get the same number."""
    return max(d for d in range(1, min(n_devices, n_replicas) + 1) if n_replicas % d == 0)


def replica_mesh(n_replicas: int):
    """A mesh over as many devices as divide the replicas, or None for one; says what number would use all of them."""
    devices = jax.devices()
    count = devices_used(n_replicas, len(devices))
    if count < min(n_replicas, len(devices)):
        log.warning(
            "%d replicas run on %d of %d devices, which all get the same number: %d replicas would use all devices",
            n_replicas, count, len(devices), -(-n_replicas // len(devices)) * len(devices),
        )  # fmt: skip
    return None if count == 1 else jax.sharding.Mesh(np.array(devices[:count]), ("replica",))


def everywhere(mesh):
    """Placement of what all devices of the mesh need."""
    return None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def shard(carry: Carry, simulation: Simulation, mesh) -> tuple[Carry, Simulation]:
    """Replicas shared out over the mesh; what they have in common on every device."""
    parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
    common = jax.device_put(replace(simulation, field=None), everywhere(mesh))
    fields = None if simulation.field is None else jax.device_put(simulation.field, parts)
    return jax.device_put(carry, parts), replace(common, field=fields)
