"""The table of replaced.yaml: what the documents name that xrddiff replaces, and where it is here. Its page is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
# How an item begins -> how it is written on the page, with what follows in code.
SAID = {
    "xrddiff": "`xrddiff {}`", "words": "`{}`", "preset": "preset `{}`", "presets": "`{}`", "profile": "profile `{}`",
    "env": "profile `{}`", "accelerate": "`xrddiff cluster accelerate-config`: `{}`", "option": "option `{}`", "name": "`{}`",
    "default": "`xrddiff.{}`", "python": "`xrddiff.{}`", "params": "parameters of `{}`", "channels": "U-Net of `{}`",
    "script": "batch script of `{}`", "artifact": "`RUN/{}`", "predicts": "`xrddiff cluster scaling`: `{}`", "sweep": "`sweep.yaml` with `{}`",
    "yaml": "a profile with `{}`", "file": "`{}`", "cite": "cited as `{}`", "count": "`xrddiff config list {}`", "differs": "[differs](differences.md): {}",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a document has `there`, with its `value`, and what is here: one item or several."""

    document: str
    section: str
    words: tuple[str, ...]
    there: str
    value: str
    here: tuple[str, ...]


def documents() -> list[dict]:
    """The documents of replaced.yaml, as they are written there."""
    return yaml.safe_load((ROOT / "docs" / "replaced.yaml").read_text(encoding="utf-8"))


def rows_of(document: dict) -> Iterator[Row]:
    """The rows of a document, in order."""
    for section in document["sections"]:
        for line in section["rows"].splitlines():
            there, value, here = (cell.strip() for cell in re.split(r" \|(?= )", line))
            words = tuple(section.get("words", "").split())
            yield Row(document["document"], section["section"], words, there, value, tuple(here.split(" ; ")))


def differences() -> list[str]:
    """What is there, of each row of differences.md."""
    lines = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8").splitlines()
    return [line[2:].partition(" | ")[0] for line in lines if re.match(r"\| (?!there \||---)", line)]


def plain(text: str) -> str:
    """Text in which nothing is Markdown."""
    return re.sub(r"([\\*_<>$`\[\]~])", r"\\\1", text)


def said(item: str, value: str) -> str:
    """An item of the column "here" as the page has it."""
    kind, _, rest = item.partition(" ")
    if kind == "differs":
        rest = next(text for text in differences() if text.startswith(rest))
    if kind in SAID:
        return SAID[kind].format(rest)
    return f"`{item}`" if "=" in item else f"`{item}={value}`"


def replaced_page() -> str:
    """Every row, in a table for each section."""
    from generated import code, table

    found = documents()
    count = sum(1 for document in found for _ in rows_of(document))
    lines = [
        "# Word by word",
        "",
        "Groups train such models by guides that came with scripts. Five of them are taken apart here: every preset, number, "
        f"command and file, {count} rows, with its word here or the [difference](differences.md). A test resolves every word, parses every command and looks for every file.",
        "",
    ]
    for document in found:
        lines += [f"## {document['document']}", "", document["about"][0].upper() + document["about"][1:] + ".", ""]
        rows = list(rows_of(document))
        for section in document["sections"]:
            words = f", with `{section['words']}`" if section.get("words") else ""
            own = [r for r in rows if r.section == section["section"]]
            lines += [f"### {section['section']}{words}", ""]
            cells = [(plain(r.there), code(r.value), "<br>".join(said(item, r.value) for item in r.here)) for r in own]
            lines += [table(["there", "value", "here"], cells), ""]
    return "\n".join(lines)
