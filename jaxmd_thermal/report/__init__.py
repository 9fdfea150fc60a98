"""One HTML page about a run, built from its files. `build_report` is the only entry."""

from __future__ import annotations

from jaxmd_thermal.report.page import build_report

__all__ = ["build_report"]
