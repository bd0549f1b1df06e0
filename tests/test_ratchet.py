"""The ratchet of `make lint` sees each thing that it counts, refuses a number that rises, and writes down one that has fallen."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import prose  # noqa: E402
import ratchet  # noqa: E402


def write(root: Path, module: str, *cells: str) -> None:
    """A notebook of these cells and the module that it makes."""
    texts = [f"#| default_exp {module}", *cells]
    made = [{"cell_type": "code", "source": text.splitlines(keepends=True)} for text in texts]
    (root / "nbs" / f"{module}.ipynb").write_text(json.dumps({"cells": made}))
    code = "\n".join(c.removeprefix("#| export\n") for c in cells if c.startswith("#| export"))
    (root / "xrddiff" / f"{module}.py").write_text(code)


@pytest.fixture
def root(tmp_path) -> Path:
    """A package without a fault."""
    for folder in ("nbs", "xrddiff", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "xrddiff" / "__init__.py").write_text("")
    (tmp_path / ".importlinter").write_text("[importlinter]\nroot_package = xrddiff\n")
    write(tmp_path, "low", "#| export\ndef one():\n    return 1", "assert one() == 1")
    write(
        tmp_path, "high", "#| export\nfrom .low import one\n\n\ndef two():\n    return 2 * one()", "assert two() == 2"
    )
    (tmp_path / "tools" / "ratchet.json").write_text(json.dumps({"modules": 3, "public names defined twice": 0}))
    return tmp_path


FAULTS = {
    "functions above 60 lines": ["#| export\ndef three():\n" + 60 * "    1\n" + "    return 3", "assert three() == 3"],
    "classes above 300 lines": ["#| export\nclass Three:\n" + 301 * "    x = 3\n", "assert Three.x == 3"],
    "methods hung onto classes": [
        "#| export\nclass Three:\n    x = 3\n\n\ndef four(self):\n    return 4\n\n\nThree.four = four",
        "assert Three().four() == 4",
    ],
    "modules whose notebook asserts nothing": ["#| export\ndef three():\n    return 3", "assert True\nthree()"],
    "examples of errors that need not occur": [
        "#| export\ndef three():\n    return 3",
        "assert three() == 3\ntry:\n    three()\nexcept ValueError as error:\n    print(error)",
    ],
    "imported modules without show_doc or example": ["#| export\nfrom .other import one", "from re import sub"],
    "public names defined twice": ["#| export\ndef one():\n    return 3", "assert one() == 3"],
    "private names without meaning": ["#| export\ndef _told():\n    return 3", "assert _told() == 3"],
    "circles of imports": ["#| export\ndef three():\n    from .third import three", "assert three() is None"],
    "words of a run taken below config": [
        "#| export\ndef three(cfg: 'Config', plan):\n    return plan.config.training.lr",
        "assert three",
    ],
    "private names of other packages": [
        "#| export\nimport os.path as p\nfrom json import _default_encoder\n\nthree = p._get_sep",
        "assert three",
    ],
    "ignored imports": ["#| export\nthree = 3", "assert three == 3"],
    "modules": ["#| export\nthree = 3", "assert three == 3"],
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_counted_is_refused_when_it_rises(root, name, capsys):
    write(root, "third", *FAULTS[name])
    if name == "ignored imports":
        (root / ".importlinter").write_text("[importlinter:contract:rooms]\nignore_imports =\n    a -> b\n")
    if name == "circles of imports":
        write(root, "high", "#| export\nfrom .third import three", "assert three")
        write(
            root,
            "third",
            "#| export\ndef three():\n    from .high import three as found\n    return found",
            "assert three",
        )
    if name == "imported modules without show_doc or example":
        write(root, "high", "#| export\nfrom .third import one", "assert one")
    if name == "modules":
        write(root, "fourth", *FAULTS[name])
    assert ratchet.main(["--root", str(root)]) == 1
    assert f"{name}: " in capsys.readouterr().out


def test_what_falls_is_said_and_written_down(root, capsys):
    assert ratchet.main(["--root", str(root)]) == 0
    assert "modules: 2, down from 3" in capsys.readouterr().out
    assert ratchet.main(["--root", str(root), "--lower"]) == 0
    assert json.loads((root / "tools" / "ratchet.json").read_text())["modules"] == 2
    capsys.readouterr()
    assert ratchet.main(["--root", str(root)]) == 0 and capsys.readouterr().out == ""
    write(root, "third", "#| export\nthree = 3", "assert three == 3")
    assert ratchet.main(["--root", str(root), "--lower"]) == 1  # it lowers, and never raises
    assert json.loads((root / "tools" / "ratchet.json").read_text())["modules"] == 2


def test_the_numbers_of_the_architecture_are_those_of_the_ratchet():
    """What docs/architecture.md says of the source now is what `make lint` counts."""
    home = Path(__file__).resolve().parent.parent
    rows = re.findall(r"^\| ([^|]+) \| \d+ \| (\d+) \|$", (home / "docs" / "architecture.md").read_text(), re.M)
    counted = json.loads((home / "tools" / "ratchet.json").read_text())
    said = {name: int(number) for name, number in rows if name in counted}
    assert len(said) >= 6 and said == {name: counted[name] for name in said}


def test_prose_counts_clauses_as_nouns_and_leaves_code_and_questions_out():
    text = """The report lists what was found. What is in it? `what` is code; `.5` too.

    what = is no code

- A checksum is no signature, and .5 is chance.
- There is no file, and 0.5 is chance.
"""
    found = list(prose._sentences("a.md", prose._without_code(text)))
    wrong = {name: [s.text for s in those] for name, those in prose.broken(found).items()}
    assert wrong["clauses as nouns"] == ["The report lists what was found."]
    assert wrong["is no"] == wrong["numbers without a zero"] == ["- A checksum is no signature, and .5 is chance."]
