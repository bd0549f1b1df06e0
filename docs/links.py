"""Links and citations: what holds in the repository becomes what holds on the site."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is left as it stands: code, formulas, links.
KEPT = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]*`|!?\[[^\]]*\]\([^)]*\)|\$\$.*?\$\$|\$[^$\n]*\$|<[^>\n]*>)", re.S)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ARXIV = re.compile(r"\barXiv[: ]\s?(\d{4}\.\d{4,5})\b")
DOI = re.compile(r"\bdoi[: ]\s?(10\.\d{4,}/[^\s),;]*[^\s),;.])", re.I)


@dataclass
class Site:
    """Where each file of the repository stands on the site.

    pages: path in the repository -> path among the sources of the site, both relative. pictures: pictures that pages
    show, path in the repository -> path on the site. cited: key of the bibliography -> the pages that cite it.
    """

    pages: dict[str, str]
    pictures: dict[str, str] = field(default_factory=dict)
    cited: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def links(self, markdown: str, source: str, page: str) -> str:
        """Links of a file of the repository as links of a page; what the site does not have becomes plain text."""

        def relink(found: re.Match) -> str:
            image, text, target, anchor = found.groups()
            if re.match(r"[a-z]+:", target):
                return found[0]
            path = os.path.normpath(Path(source).parent / target)
            if not (ROOT / path).exists():
                # a formula that looks like a link stays; a file that is gone is for tests/test_docs.py to find
                return text if re.search(r"\.(md|ipynb)$", path) and not image else found[0]
            if image:
                self.pictures[path] = f"pictures/{Path(path).name}"
                return f"![{text}]({relative(self.pictures[path], page)})"
            if path in self.pages:
                return f"[{text}]({relative(self.pages[path], page)}{anchor or ''})"
            return text

        return LINK.sub(relink, markdown)

    def citations(self, markdown: str, page: str) -> str:
        """Citations as links to the bibliography; notes which page has them."""
        parts = KEPT.split(markdown)
        for i in range(0, len(parts), 2):
            parts[i] = self._cite(parts[i], page)
        return "".join(parts)

    def mentions(self, text: str, page: str) -> None:
        """Note which page has these citations."""
        self._cite(text, page)

    def _cite(self, text: str, page: str) -> str:
        def link(key: str, words: str) -> str:
            self.cited[key].add(page)
            return f"[{words}](#ref-{key})"

        identifiers = _identifiers()
        for pattern in (ARXIV, DOI):
            text = pattern.sub(lambda m: link(identifiers[m[1]], m[0]) if m[1] in identifiers else m[0], text)
        for name, pattern, key in _names() if re.search(r"\b[12]\d{3}\b", text) else ():
            if name not in text:
                continue
            # "Karras et al. 2022 (arXiv 2206.00364)" has its link already
            text = pattern.sub(lambda m, key=key: m[0] if _linked(m) else link(key, m[0]), text)
        return text


def _linked(found: re.Match) -> bool:
    after, before = found.string[found.end() :], found.string[: found.start()]
    return bool(re.match(r"[,;]? ?\(?\[(arXiv|doi)", after)) or before.endswith("[")


def relative(target: str, page: str) -> str:
    """A path on the site as seen from a page."""
    return os.path.relpath(target, os.path.dirname(page) or ".")


@dataclass(frozen=True)
class Entry:
    """One entry of docs/references.bib."""

    key: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        return dict(self.fields).get(name)

    @property
    def surnames(self) -> list[str]:
        return [author.split(",")[0].strip() for author in (self.get("author") or "").split(" and ")]

    def written(self) -> str:
        """Authors (year). Title. Where. Link."""
        names = [
            " ".join(reversed([p.strip() for p in a.split(",")])) for a in (self.get("author") or "").split(" and ")
        ]
        names = [n.replace("others", "et al.") for n in names]
        authors = (
            names[0]
            if len(names) == 1
            else ", ".join(names[:-1]) + (" " if names[-1] == "et al." else " & ") + names[-1]
        )
        where = self.get("journal") or self.get("booktitle") or self.get("publisher") or ""
        pages = f", {self.get('pages')}" if self.get("pages") else ""
        volume = f" {self.get('volume')}" if self.get("volume") else ""
        parts = [f"{authors} ({self.get('year')}). *{self.get('title')}*."]
        if where:
            parts.append(f"{where}{volume}{pages}.")
        if doi := self.get("doi"):
            parts.append(f"[doi {doi}](https://doi.org/{doi})")
        elif eprint := self.get("eprint"):
            parts.append(f"[arXiv {eprint}](https://arxiv.org/abs/{eprint})")
        elif url := self.get("url"):
            parts.append(f"[{re.sub('https?://', '', url)}]({url})")
        return " ".join(parts)


@cache
def bibliography() -> tuple[Entry, ...]:
    """The entries of docs/references.bib."""
    text = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    entries = []
    for key, body in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.M | re.S):
        fields = re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, re.M)
        entries.append(Entry(key, tuple((name, value.replace("{", "").replace("}", "")) for name, value in fields)))
    return tuple(entries)


@cache
def _identifiers() -> dict[str | None, str]:
    return {e.get("eprint"): e.key for e in bibliography()} | {e.get("doi"): e.key for e in bibliography()}


@cache
def _names() -> list[tuple[str, re.Pattern, str]]:
    """How a text names each entry by its authors and year."""
    found = []
    for entry in bibliography():
        first, *others = [re.escape(name) for name in entry.surnames]
        year = entry.get("year")
        ways = [rf"{first}\s\*?et\s+al\.?\*?"] if len(others) > 1 else []
        if 0 < len(others) < 3 and "others" not in others:
            ways.append(rf"{first}{''.join(f', {name}' for name in others[:-1])},?(?:\s(?:and|&))?\s{others[-1]}")
        who = "|".join(ways or [first])
        # "Ho et al. (2020", "Wilson, *Acta Cryst.* **2** (1949)"
        where = r"(?:,?\s(?:\*?J\.|\*?Acta|SC11)[^\n]{0,40}?)?"
        found.append(
            (entry.surnames[0], re.compile(rf"(?<!\w)(?:{who}){where},?\s(?:\({year}\)|\(?{year}\b)"), entry.key)
        )
    return found


def unknown_citations(markdown: str) -> list[str]:
    """arXiv numbers and DOIs that the bibliography does not have."""
    return [m[1] for pattern in (ARXIV, DOI) for m in pattern.finditer(markdown) if m[1] not in _identifiers()]
