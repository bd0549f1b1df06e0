"""Charts, report and model card of a run: written at its end, and again from its folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_run import xrddiff

from xrddiff.config.composition import compose_config
from xrddiff.config.saved_config import load_config
from xrddiff.config.words.vocabulary import get_word, vocabulary

# In a process of its own: the limit on the size of files holds for everything that a process writes, its log too.
CODE = """
import resource, sys
import pandas as pd
from xrddiff.core.errors import XrddiffError
from xrddiff.judge.views.report import Report

report = Report("a run")
report.add("Table", table=pd.DataFrame({"value": range(1000)}))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    report.write(sys.argv[1])
except XrddiffError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_former_report(tmp_path):
    former = tmp_path / "report.md"
    former.write_text("the report of before")
    done = subprocess.run([sys.executable, "-c", CODE, tmp_path], text=True, capture_output=True, check=True)
    assert done.stdout.startswith("cannot save ") and "report.md" in done.stdout and len(done.stdout.splitlines()) == 1
    assert former.read_text() == "the report of before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


COLUMNS = ["lr", "loss_std", "loss_min", "loss_max", "loss_median", "recon_mean", "kl_mean", "grad_norm_mean", "grad_norm_max", "ema_divergence", "seconds", "samples_per_second", "gpu_peak_mb", "memory_mb"]  # fmt: skip


def test_charts_are_drawn_from_the_columns_that_there_are():
    from xrddiff.judge.views.charts import drawable, training_dashboard

    epochs = np.arange(1, 6)
    least = pd.DataFrame({"epoch": epochs, "loss_mean": 1.0 / epochs})
    full = least.assign(validation_loss=[np.nan, 0.6, np.nan, 0.3, 0.5], **dict.fromkeys(COLUMNS, 2.0))
    names, why = drawable(full)
    assert len(names) == 11 and why == {} and len(training_dashboard(full).axes) == 9
    names, why = drawable(least)
    assert names == ["loss_linear", "loss_log", "loss_derivative"] and len(training_dashboard(least).axes) == 3
    assert why["grad_norm"] == "this training recorded no grad norm mean" and len(why) == 8
    names, why = drawable(full.assign(loss_mean=-1.0))  # a likelihood may be negative
    assert "loss_log" not in names and "no logarithm" in why["loss_log"]
    assert {np.isfinite(v) for v in full["validation_loss"]} == {True, False}


@pytest.fixture(scope="module")
def run(runs, tmp_path_factory):
    """A small run of its own, whose table of epochs has at least three rows."""
    run = Path(shutil.copytree(runs("vae_kl"), tmp_path_factory.mktemp("report") / "my run"))
    table = pd.read_csv(run / "metrics" / "epochs.csv")
    more = [table.tail(1).assign(epoch=table["epoch"].max() + i) for i in (1, 2)]
    pd.concat([table, *more]).to_csv(run / "metrics" / "epochs.csv", index=False)
    (run / "metrics" / "epochs.json").unlink()  # would be read instead
    return run


@pytest.fixture(scope="module")
def written(run):
    (run / "README.md").unlink()
    return xrddiff("runs", "report", str(run), folder=run.parent)


def test_a_report_is_written_again_from_the_folder(run, written):
    assert written.stdout == f"report: {run}/report.html\n"
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    order = ["In short", "Original, reconstruction, residual", "Epochs", "Held-out shots", "Limits", "Do it again", "Settings"]  # fmt: skip
    assert [line[3:] for line in text.splitlines() if line.startswith("## ") and line[3:] in order] == order
    for name in ("dashboard", "loss_linear", "throughput"):
        for file in (f"{name}.png", f"{name}-dark.png"):
            assert round(Image.open(run / "plots" / "training" / file).info["dpi"][0]) == 180
    assert page.count("prefers-color-scheme: dark)") > 12 and "http" not in re.sub(r'data:image/[^"]*', "", page)
    again = re.findall(r"^xrddiff run (model=.*)$", text, re.MULTILINE)
    cfg, saved = compose_config(shlex.split(again[0])), load_config(run / "config.yaml")
    assert all(get_word(cfg, w) == get_word(saved, w) for w in vocabulary() if w not in ("run_name", "output_dir"))
    assert f"xrddiff evaluate '{run}'" in text


def test_the_card_is_one_of_the_hub(run, written):
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard.load(run / "README.md", ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData) and card.data.library_name == "xrddiff"
    summary = json.loads((run / "metrics" / "summary.json").read_text())
    shown = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert shown and all(next(iter(summary[name].values())) == value for name, value in shown.items())
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert len(pictures) == 2 and all((run / p).is_file() for p in pictures) and "xrddiff evaluate ." in card.text


def test_folders_that_have_no_report(run, tmp_path):
    def refused(folder: Path) -> str:
        done = xrddiff("runs", "report", str(folder), folder=tmp_path, check=False)
        assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done
        return done.stderr

    assert "does not exist" in refused(tmp_path / "none")
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "it has no config.yaml" in refused(bare)
    shutil.copy(run / "config.yaml", bare)
    assert "has no training history" in refused(bare)
    shutil.copytree(run / "metrics", bare / "metrics")
    (bare / "plots").write_text("not a folder")
    assert "cannot save" in refused(bare) and not (bare / "report-so-far.html").exists()
    (bare / "report.html").touch()
    (bare / "metrics" / "report.json").write_text('{"sections": [{"title": 3}]}')
    assert "report.json is damaged" in refused(bare)


def test_an_unfinished_run_gets_a_page_that_does_not_finish_it(run, tmp_path):
    begun = tmp_path / "begun"
    (begun / "metrics").mkdir(parents=True)
    for name in ("config.yaml", "metrics/epochs.csv", "metrics/training_metrics.csv"):
        shutil.copy(run / name, begun / name)
    assert xrddiff("runs", "report", str(begun), folder=tmp_path).stdout == f"report: {begun}/report-so-far.html\n"
    said = (begun / "report-so-far.md").read_text()
    assert "The run is not finished: unknown (nothing says who worked on it)" in said
    assert not (begun / "report.html").exists() and not (begun / "README.md").exists()
