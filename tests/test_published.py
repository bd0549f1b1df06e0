"""What README publishes: its figures are those of their tables, and the tables are those of today's presets."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

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


def test_the_table_of_samples_in_the_readme_is_the_one_of_its_file(generation):
    lines = (ROOT / "README.md").read_text().splitlines()
    for name in ("latent", "pixel", "autoregressive"):
        cells = next(line for line in lines if line.startswith(f"| {name} diffusion |")).split("|")[2:-1]
        rows, told = generation[name]["rows"], generation[name]["told"]["samples"]
        assert cells[0].split()[0] == f"{told['auc']:.0%}"
        distances = ("profile", "histogram", "peak_count", "diversity")
        assert [c.strip() for c in cells[1:5]] == [f"{rows['samples'][d] / rows['floor'][d]:.1f}" for d in distances]


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
