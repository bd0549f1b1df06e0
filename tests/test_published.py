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


def told(name):
    """A table of bench/results, and its JSON."""
    return (ROOT / "bench" / "results" / f"{name}.md").read_text(), json.loads(
        (ROOT / "bench" / "results" / f"{name}.json").read_text()
    )


def compiled_in_cpp():
    """Medians of the time in C++ over that of torch.compile, of every row but the decoder of 32 frames, and of that one."""
    ratios = re.findall(r"\| \w+ \| \d+ \|.*\((\d\.\d+)\) \|$", told("exported")[0], re.M)
    return f"takes {min(ratios)} to {max(ratios)} times as long"


def minutes_of_models():
    minutes = [row["minutes"] for row in told("generation")[1].values() if "minutes" in row]
    return f"after {min(minutes):.0f} to {max(minutes):.0f} minutes of CPU each"


def pixels_over_latent():
    ratios = [
        float(r)
        for r in re.findall(r"^\| f4 \|.*\| (\d+\.\d) \(", (ROOT / "bench/results/latent.md").read_text(), re.M)
    ]
    return f"costs [{int(min(ratios))} to {int(max(ratios))} times as much on a CPU]"


def cost_of_telemetry():
    share = told("telemetry")[1]["cost"]["median"]
    assert 0 <= share < 0.01
    return "below one per cent of a step"


def peak_networks():
    seconds = told("peak_nets_measured")[1]["tests"]["thaumatin, Pilatus 6M"]["seconds"]
    classical = f"{seconds['classical']:.1f}".lstrip("0")
    return f"A 6 Mpx frame takes it {seconds['network, twin']:.1f} s of CPU, the classical finder {classical} s"


def indexing_rates():
    small, large = re.findall(r"- (\d+) frames/s on one thread", (ROOT / "bench/results/indexing.md").read_text())
    return f"{small} frames/s on `sim128` and {large} on `sim-522`"


CLAIMS = {
    compiled_in_cpp: "docs/exports.md", minutes_of_models: "nbs/tutorials/which_model.ipynb", pixels_over_latent: "nbs/tutorials/which_model.ipynb",
    cost_of_telemetry: "docs/health.md", peak_networks: "CHANGELOG.md", indexing_rates: "CHANGELOG.md",
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_a_claim_is_that_of_its_table(claim):
    """Sentences about times, or about somebody else's program, that stand outside of README."""
    assert claim() in (ROOT / CLAIMS[claim]).read_text(), f"{CLAIMS[claim]} says something else than its table"


def test_the_scale_is_that_of_its_measurements(monkeypatch):
    """docs/scale.md is what its program makes of bench/results/scale.json, and of a GPU what its table says."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    scale = importlib.import_module("scale_page")
    found = json.loads(scale.MEASURED.read_text())
    assert scale.PAGE.read_text() == scale.page(found), (
        "docs/scale.md is older than its measurements: python docs/scale_page.py"
    )
    gpu = (ROOT / "bench" / "results" / "gpu.md").read_text()
    at, batch = f"{1e3 * scale.H100['step']:.1f}", scale.H100["batch"]
    assert f"| tiny | {scale.H100['parameters'] / 1e6:.2f} M | {batch} × 4 × 32² | 5.8e-04 | eager | {at} (" in gpu
