"""The command `jaxmd-thermal`. Importing this module, and `--help`, import neither JAX nor ASE."""

from __future__ import annotations

from jaxmd_thermal.cli.app import main

__all__ = ["main"]
