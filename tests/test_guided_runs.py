"""Runs whose samples are led by a classifier or by a weaker model: what they need, what they say of it, and the same bits from workers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from test_run import xrddiff

from xrddiff.config.composition import compose_config, inference_config
from xrddiff.config.saved_config import to_yaml
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.learn.training.checkpoints import load_checkpoint
from xrddiff.run.execution.finished import execute_sample

pytestmark = pytest.mark.slow

FEW = ["inference.num_samples=4", "inference.steps=3", "inference.batch_size=2", "threads=1"]
LED = ["inference.guidance=classifier", "inference.guidance_scale=3"]


@pytest.fixture(scope="module")
def led(runs, tmp_path_factory):
    """A copy of the small ddpm run, which has no classifier, and then one."""
    run = tmp_path_factory.mktemp("led") / "run"
    shutil.copytree(runs("ddpm"), run)
    return run


def make(run, *words):
    job = open_sample_job(run, [*FEW, *words])
    return job.make(slice(0, 4))[0]["intensity"].values, job


def test_a_classifier_is_trained_on_request(led, tmp_path):
    before = sorted(p.name for p in (led / "samples").iterdir())
    with pytest.raises(BadInput, match="run resume=RUN training.classifier=hit_class"):
        execute_sample(led, [*FEW, *LED])
    assert sorted(p.name for p in (led / "samples").iterdir()) == before

    weights = load_checkpoint(led).sha256
    xrddiff("run", f"resume={led}", "training.classifier=hit_class", folder=tmp_path)
    assert load_checkpoint(led).sha256 == weights and "Guiding classifier" in (led / "report.md").read_text()
    guide = load_checkpoint(led / "guide")
    assert guide.state["field"] == "hit_class" and guide.state["about"]["accuracy"]["0"] > 0

    plain, (mine, job) = make(led)[0], make(led, *LED)
    assert (mine != plain).any() and np.isfinite(mine).all() and job.guide.interval[1] > 80
    xrddiff("sample", str(led), *FEW, *LED, "--name", "led", "--workers", "local:2", folder=tmp_path)
    samples = open_frames(led / "samples" / "led" / "samples.zarr")
    assert (samples["intensity"].values == mine).all()  # workers give the same bits
    said = json.loads(samples.attrs["guidance"])
    assert (said["kind"], said["scale"], said["label"], said["checkpoint"]) == (
        "classifier",
        3,
        "hit_class",
        guide.sha256,
    )
    assert "guided by a classifier of hit_class, scale 3" in (led / "samples" / "led" / "report.md").read_text()
    assert (make(led, *LED, "inference.num_samples=2", "inference.first_sample=2")[0][:2] == mine[2:]).all()


def test_a_weaker_model_is_an_earlier_checkpoint_another_average_or_another_run(runs, tmp_path):
    run = runs("ddpm")
    plain, words = make(run)[0], ["inference.guidance=autoguidance", "inference.guidance_scale=2"]
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for extra in (
        ["guidance_step=3"],
        ["guidance_ema=0.1"],
        ["guidance_ema=0.1", "guidance_step=3"],
        [f"guidance_run={other}", "guidance_step=3"],
    ):
        led, job = make(run, *words, *(f"inference.{w}" for w in extra))
        assert (led != plain).any() and np.isfinite(led).all()
        said = json.loads(job.about()["guidance"])
        assert said["step"] == (3 if "guidance_step=3" in extra else 7) and len(said["checkpoint"]) == 64
    same, _ = make(run, *words, f"inference.guidance_run={other}")  # weaker than nothing: D + (w − 1)(D − D)
    assert np.allclose(same, plain, atol=1e-3 * np.abs(plain).max())
    none, _ = make(run, *words, "inference.guidance_step=3", "inference.guidance_interval=[1000,2000]")
    assert (none == plain).all()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inference.guidance_step=99"], r"keeps the checkpoints \[.*7\]; expected one of them"),
        (["inference.guidance_run=/nowhere"], "has no config.yaml"),
        ([], "needs a weaker model; expected inference.guidance_step"),
        (["inference.guidance_step=3", "inference.guidance_scale=1"], "has no effect at guidance_scale=1"),
        (["inference.guidance_step=3", "inference.guidance=classifier_free"], "expected autoguidance"),
        (["inference.guidance=sideways"], "inference.guidance"),
    ],
)
def test_a_weaker_model_that_is_not_there(runs, words, sentence):
    words = ["inference.guidance=autoguidance", "inference.guidance_scale=2", *words]
    with pytest.raises(BadInput, match=sentence):
        inference_config(runs("ddpm"), words)


def test_a_weaker_model_that_does_not_fit(runs):
    words = ["inference.guidance=autoguidance", "inference.guidance_scale=2"]
    with pytest.raises(BadInput, match="the weaker model .* draws .*; expected"):
        open_sample_job(runs("ddpm"), [*words, f"inference.guidance_run={runs('latent_diff')}"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=ddpm", "inference.guidance=classifier"], "expected training.classifier=LABEL, which trains one"),
        (["model=diff", "inference.guidance=classifier"], "draws patch by patch"),
        (
            ["model=diff", "model.condition=[hit_class]", "training.classifier=hit_class"],
            "only a denoiser of whole frames",
        ),
        (["model=ddpm", "training.classifier=hit_class"], "is no condition of the model"),
    ],
)
def test_guidance_that_could_not_be_is_refused_before_training(words, sentence):
    with pytest.raises(BadInput, match=sentence):
        compose_config(words)


def test_a_number_has_no_classes(tmp_path):
    words = [
        "run",
        "model=ddpm",
        "model.condition=[wavelength]",
        "training.classifier=wavelength",
        "experiment_type=test",
    ]
    done = xrddiff(*words, "data=pooling_422", "data.limit=16", folder=tmp_path, check=False)
    assert (
        done.returncode == 2
        and "wavelength does not have two classes" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_paths_of_a_sampling_are_absolute(tmp_path, monkeypatch):
    from xrddiff.config.overrides import absolute_words

    monkeypatch.chdir(tmp_path)
    assert absolute_words(["inference.guidance_run=a b", "inference.steps=3"]) == [
        f"inference.guidance_run='{tmp_path}/a b'",
        "inference.steps=3",
    ]
    words = ["model=ddpm", "inference.guidance=autoguidance", "inference.guidance_scale=2", "inference.guidance_run=x"]
    assert str(tmp_path / "x") in to_yaml(compose_config(words))
