"""What README publishes: its figures are those of their tables, and the tables are those of today's presets."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest

from xrddiff.config.composition import compose_config

ROOT = Path(__file__).resolve().parent.parent


def bench_module(name, monkeypatch):
    """A benchmark of bench/, imported."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module(name)


@pytest.fixture
def generation():
    return json.loads((ROOT / "bench" / "results" / "generation.json").read_text())


def test_every_figure_of_the_readme_is_that_of_its_table():
    """What index.ipynb makes of the tables of today stands in README, word for word; its text has no figures of its own."""
    readme, space, made = (ROOT / "README.md").read_text(), {}, 0
    for cell in nbformat.read(ROOT / "index.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            words = re.sub(
                r"`[^`]*`|```.*?```|\([^)]*\)|\d\.\d+ or newer|HDF5|Apache-2\.0|LGPL-2\.1", "", cell.source, flags=re.S
            )
            assert not re.search(r"\d", words), f"a figure without a table: {words}"
        elif "Picture" not in cell.source:
            *statements, last = ast.parse(cell.source).body
            exec(compile(ast.Module(statements, []), "index.ipynb", "exec"), space)
            if isinstance(last, ast.Expr):
                text = eval(compile(ast.Expression(last.value), "index.ipynb", "eval"), space).data
                assert text in readme, (
                    "README is older than its tables: python docs/execute.py index.ipynb; make readme"
                )
                made += 1
            else:
                exec(compile(ast.Module([last], []), "index.ipynb", "exec"), space)
    assert made >= 2
    assert len(readme.split()) <= 700, "what README says fits on two pages; the rest is in the guides"


def older(table, cfg, settings):
    """The words whose value in a table is not the one that the same command gives today."""
    now = settings(cfg)
    return {word: (then, now[word]) for word, then in table["settings"].items() if word in now and now[word] != then}


@pytest.mark.parametrize("name", ["latent", "pixel", "autoregressive"])
def test_the_table_of_samples_is_not_older_than_the_presets(name, generation, monkeypatch):
    bench = bench_module("generation", monkeypatch)
    cfg = compose_config([*bench.MODELS[name]])
    assert generation[name]["words"] == bench.MODELS[name]
    assert not older(generation[name], cfg, bench.settings), "run bench/generation.py again: a preset has changed"
    cfg.model.diff_epochs += 1
    assert list(older(generation[name], cfg, bench.settings)) == ["model.diff_epochs"]
