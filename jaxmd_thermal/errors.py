"""Exceptions that name the value, the limit and the remedy; status bits that are carried inside compiled code."""

from __future__ import annotations

from enum import IntFlag
from pathlib import Path


class ThermalError(Exception):
    """Base of all errors that the package raises on purpose."""


class InputError(ThermalError, ValueError):
    """What the user gave cannot be used; the message says what was expected and how to repair it."""


class UnsupportedError(ThermalError, NotImplementedError):
    """A property that this potential or system has no definition for (for example a heat flux with k-space terms)."""


class CapacityError(ThermalError, MemoryError):
    """A buffer would not fit, or the repair of an overflow did not converge."""


class UnstableError(ThermalError, FloatingPointError):
    """A run became non-finite, overheated, melted or drifted. `path` holds the last good state, if one was saved."""

    def __init__(self, message: str, path: str | Path | None = None):
        super().__init__(message)
        self.path = None if path is None else Path(path)


class CheckpointError(ThermalError):
    """A checkpoint is unreadable, or belongs to a run with other settings."""


class OutputError(ThermalError, OSError):
    """Results could not be written (disk full, no permission). What was computed before is still in the last checkpoint."""


class DownloadError(ThermalError, OSError):
    """Weights could not be fetched; the message says how to get them by hand."""


class ToolchainError(ThermalError, ImportError):
    """The installed JAX computes wrong numbers on this device."""


class Status(IntFlag):
    """Sticky bits of the carried state. The driver looks once a chunk (architecture, decision 4)."""

    OK = 0
    NEIGHBORS = 1  # an atom has more neighbours than slots
    GHOSTS = 2  # more periodic images than slots
    BINS = 4  # a run of cells holds more atoms than the search looks at
    GEOMETRY = 8  # the cell has left the range for which images and cells were planned
    NON_FINITE = 16
    TOO_HOT = 32
    STALE = 64  # an atom crossed the skin within one step: forces were taken from an outdated list

    @classmethod
    def capacity(cls) -> Status:
        """The bits that a larger plan and a replay repair."""
        return cls.NEIGHBORS | cls.GHOSTS | cls.BINS | cls.GEOMETRY | cls.STALE


def nearest(word: str, known) -> str:
    """`", did you mean 'x'?"` for the closest known word, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.4)
    return f", did you mean '{close[0]}'?" if close else ""
