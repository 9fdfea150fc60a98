"""What all pages have in common: the document around a body, framed figures, tables of names and values."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from jaxmd_thermal.errors import OutputError
from jaxmd_thermal.report import figures
from jaxmd_thermal.report.style import CSS


def page(title: str, sections: list[str]) -> str:
    """A whole document of the sections that are not empty; no outside resources."""
    body = "\n".join(s for s in sections if s)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page so that a reader sees the old one or the new one.

    Raises:
      OutputError: the page cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}; free space or change permissions"
        ) from error
    return path


def escape(value: Any) -> str:
    """The text of a value, safe inside HTML."""
    return html.escape(str(value))


def framed(figure: Any, name: str, heading: str, caption: str, wide: bool = False) -> str:
    """A matplotlib figure with heading and caption; empty where there is none. `wide`: over the whole width."""
    if figure is None:
        return ""
    return (
        f"<figure{' class=wide' if wide else ''}><h3>{escape(heading)}</h3>{figures.to_svg(figure, name)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(heading: str, parts: list[str]) -> str:
    """A section of the page with its parts in a grid; empty where all parts are."""
    shown = "".join(p for p in parts if p)
    return f'<section><h2>{escape(heading)}</h2><div class="grid">{shown}</div></section>' if shown else ""


def rows(pairs: list[tuple[str, Any]]) -> str:
    """A table of names and values; absent values are left out."""
    found = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in pairs if v not in (None, ""))
    return f"<table class=list>{found}</table>" if found else ""
