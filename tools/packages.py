"""How many packages an installation of xrddiff has, plain and with each extra: `python tools/packages.py`, where all of them are installed."""

from __future__ import annotations

from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def closure(words: list[str]) -> set[str]:
    """The names of all packages that these requirements bring, as they are installed here."""
    found: set[str] = set()
    todo = [Requirement(word) for word in words]
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        key = f"{name}[{','.join(sorted(asked.extras))}]" if asked.extras else name
        if key in found:
            continue
        found.add(key)
        try:
            needs = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:
            continue
        extras = [{"extra": extra} for extra in ("", *asked.extras)]
        todo += [n for n in needs if n.marker is None or any(n.marker.evaluate(e) for e in extras)]
    return {name.partition("[")[0] for name in found}


def main() -> None:
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    words = {key: value.split() for key, value in settings["DEFAULT"].items() if key.endswith("requirements")}
    plain = closure(words.pop("requirements"))
    print(f"{'plain':10} {len(plain):4}")
    for key, own in words.items():
        print(f"{key.removesuffix('_requirements'):10} {len(closure(own) - plain):+4}")


if __name__ == "__main__":
    main()
