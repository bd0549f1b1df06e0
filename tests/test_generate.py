"""Generative models from the command line: complete runs of every model, samples that are a function of their number, and refusals of one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import warm
from conftest import SMALL, WORDS
from test_run import xrddiff

from xrddiff.config.composition import compose_config, inference_config
from xrddiff.config.saved_config import to_yaml
from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import validate_frames
from xrddiff.data.transforms.values import drawn_range, range_words
from xrddiff.judge.inference.generators import open_generator
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.inference.training_previews import read_samples
from xrddiff.learn.diffusion.keyed_sampling import Sampler
from xrddiff.learn.models.generative import DrawSettings
from xrddiff.learn.recipes.latents import weights_sha256
from xrddiff.learn.telemetry.history import read_epochs, read_rows
from xrddiff.learn.telemetry.rules import read_findings
from xrddiff.learn.training.checkpoints import load_checkpoint, save_checkpoint
from xrddiff.run.execution.notebooks import run_notebook, run_notebook_path

pytestmark = pytest.mark.slow

MODELS = ("vae_kl", "vae_kl_8", "vq", "vq_8", "ddpm", "diff", "latent_diff")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_leaves_a_complete_run(runs, model):
    run = runs(model)
    wanted = ["notebook.ipynb", "config.yaml", "environment.json", "report.md", "report.html", "log.txt"]
    wanted += ["metrics/training_metrics.csv", "metrics/training_metrics.json", "metrics/summary.json"]
    generative = model in ("ddpm", "diff", "latent_diff")
    wanted += ["samples/samples.zarr", "template.zarr"] if generative else ["samples/reconstruction.zarr"]
    if model == "latent_diff":
        wanted += ["autoencoder/notebook.ipynb", "autoencoder/latent_statistics.ipynb", "autoencoder/report.html"]
        wanted += ["autoencoder/metrics/latent_statistics.json", "metrics/final_latent_stats.json"]
    assert [name for name in wanted if not (run / name).exists()] == []
    assert "report.html" in runs.printed(model)
    assert load_checkpoint(run).state["finished"]
    if generative:
        samples = validate_frames(open_frames(run / "samples" / "samples.zarr"), values=True)
        assert samples.sizes["frame"] == 16 and samples["sample"].values.tolist() == list(range(16))
        assert samples.attrs["checkpoint"] == load_checkpoint(run).sha256 and samples.attrs["seed"] == 0
        assert samples.attrs["distance"] > 0 and "model_name" in samples.attrs["config"]
        assert not samples["intensity"].values[:, ~samples["mask"].values].any()


def check_preset(sampler, preset):
    assert preset.startswith(sampler["name"].replace("_2m", "")) and preset.endswith(str(sampler["steps"]))


def test_samples_with_other_settings(runs):
    run, preset = runs("latent_diff"), "dpmpp16"
    words = ["-n", "32", f"inference={preset}", "--name", f"by {preset}", "--judge", "threads=1"]
    xrddiff("sample", str(run), *words, folder=run)
    folder = run / "samples" / f"by {preset}"
    samples = validate_frames(open_frames(folder / "samples.zarr"), values=True)
    assert samples.sizes["frame"] == 32
    check_preset(json.loads(samples.attrs["sampler"]), preset)
    assert (folder / "report.html").exists() and (folder / "notebook.ipynb").exists()


@pytest.mark.parametrize(("preset", "count"), [("ddim50", 4), ("ddpm1000", 1)])
def test_samples_with_other_samplers(runs, preset, count):
    """Without the notebook, which does not depend on the sampler, and in 50 steps (a thousand are those of diffusers, see test_samplers)."""
    words = [f"inference={preset}", f"inference.num_samples={count}", f"inference.batch_size={count}"]
    check_preset(json.loads(open_sample_job(runs("latent_diff"), words).about()["sampler"]), preset)
    job = open_sample_job(runs("latent_diff"), [*words, "inference.steps=50"])
    samples = validate_frames(job.make(slice(0, count))[0], values=True)
    assert samples.sizes["frame"] == count and json.loads(job.about()["sampler"])["steps"] == 50


@pytest.mark.parametrize("model", ["ddpm", "diff", "latent_diff"])
def test_a_sample_is_its_number(runs, model):
    generator = open_generator(runs(model))
    settings = DrawSettings(Sampler("unipc", 3, clamp=(-5.0, 8.0)), seed=5, batch_size=32)
    many, x = generator.sample(range(32), settings)
    _, y = generator.sample([7, 30], replace(settings, batch_size=1))
    assert torch.allclose(x[[7, 30]], y, atol=1e-4 * float(x.abs().max()))
    x = many["intensity"].values
    again, _ = generator.sample([30], settings)
    assert (again["intensity"].values[0] == x[30]).all()
    other, _ = generator.sample([30], replace(settings, seed=6))
    assert (other["intensity"].values[0] != x[30]).any()


def test_a_sample_is_the_same_in_another_process(runs, tmp_path):
    run = runs("latent_diff")
    words = ["inference.steps=3", "inference.batch_size=4", "threads=1"]
    for name, extra in (("a", ["-n", "8"]), ("b", ["-n", "2", "inference.first_sample=5"])):
        xrddiff("sample", str(run), *extra, "--name", name, *words, folder=tmp_path)
    a, b = (open_frames(run / "samples" / name / "samples.zarr") for name in "ab")
    assert (a["intensity"].values[5:7] == b["intensity"].values).all() and b["sample"].values.tolist() == [5, 6]


def test_poisson_draws_on_request(runs):
    """Of a single sample, whose report has no statistics over samples."""
    run = runs("latent_diff")
    words = ["--name", "drawn", "--judge", "inference.steps=2", "inference.poisson=true"]
    xrddiff("sample", str(run), "-n", "1", *words, folder=run)
    samples = open_frames(run / "samples" / "drawn" / "samples.zarr")
    gain = samples["intensity"].attrs["gain"]
    counts = samples["drawn"].values[:, samples["mask"].values] / gain
    assert samples.attrs["samples_are"] == "expected values" and np.isfinite(counts).all()


def test_conditions_are_kept_and_asked_for(runs):
    run = runs("ddpm")
    words = ["-n", "3", "--name", "single", "inference.steps=2", "inference.guidance_scale=1.5"]
    xrddiff("sample", str(run), *words, "inference.condition={hit_class: 1}", folder=run)
    samples = open_frames(run / "samples" / "single" / "samples.zarr")
    assert samples["hit_class"].values.tolist() == [1, 1, 1] and (samples["wavelength"].values > 0).all()
    mixed = open_frames(run / "samples" / "samples.zarr")["hit_class"].values
    assert len(set(mixed.tolist())) > 1


@pytest.mark.parametrize("model", ["ddpm", "diff", "latent_diff"])
def test_what_is_drawn_beyond_the_data_is_said_by_all_from_one_number(runs, model):
    """Samples, summary, report and health of each kind of model."""
    run = runs(model)
    samples = open_frames(run / "samples" / "samples.zarr")
    found, said = drawn_range(samples), {f.rule: f.seen for f in read_findings(run)}
    assert samples["intensity"].max() <= np.float32(found["upper"]) == np.float32(samples.attrs["intensity_limits"][1])
    summary = json.loads((run / "metrics" / "summary.json").read_text())
    assert summary["pixels beyond the limits"]["samples"] == found["pixels"]
    assert (f"{range_words(found)}." in (run / "report.md").read_text()) == (found["beyond"] > 0)
    assert (said.get("samples_out_of_range") == range_words(found)) == (found["share_low"] > 0.02)


def test_a_model_that_draws_far_too_much(runs):
    """Its samples are what counts can be, and say what they were; one that draws training values says nothing."""
    from xrddiff.judge.inference.sample_jobs import open_sample_job
    from xrddiff.learn.telemetry.rules import Evidence, look

    job = open_sample_job(runs("ddpm"), ["inference.num_samples=4", "inference.steps=2"], device="cpu")
    g, settings = job.generator, job.settings
    for size, found in ((0.1, []), (50.0, ["samples_out_of_range"])):
        draw = type(g.model).draw
        g.model.draw = lambda *a, size=size, draw=draw, **k: size * draw(g.model, *a, **k).clamp(-1, 1)
        frames, _ = g.sample(range(4), settings)
        assert np.isfinite(frames["intensity"]).all() and frames["intensity"].max() <= np.float32(g.limits[1])
        range_ = drawn_range(frames)
        assert [f.rule for f in look(Evidence(facts={"drawn": range_}), "result", ["samples_out_of_range"])] == found
        assert (range_["highest"] > 1e6) == bool(found)


DURING = ["training.sample_every=1", "training.sample_count=3"]


def test_an_autoencoder_of_a_few_steps_reconstructs_no_peaks(runs):
    findings = {f.rule: f for f in read_findings(runs("vae_kl"))}
    assert findings["no_peaks"].severity == "error" and "peaks of held-out frames" in findings["no_peaks"].seen


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A small run of ddpm with network=dit."""
    folder = tmp_path_factory.mktemp("dit")
    words = ["model=ddpm", "network=dit", "model.network_options={depth: 2}", "model.condition=[hit_class]"]
    words += [*SMALL, "data.limit=32", "inference.num_samples=4", "inference.steps=4", "training.checkpoint_every=2"]
    done = xrddiff("run", *words, "training.keep_checkpoints=null", "run_name=dit", *DURING, folder=folder)
    assert "DiT" in done.stdout
    return folder / "output" / "ddpm_test" / "dit"


def test_a_transformer_denoises_frames(transformer):
    samples = validate_frames(open_frames(transformer / "samples" / "samples.zarr"), values=True)
    generator = open_generator(transformer)
    assert samples.sizes["frame"] == 4 and (transformer / "report.html").exists()
    assert len(generator.model.net.blocks) == 2 and generator.fields["hit_class"] == 3
    xrddiff("sample", str(transformer), "-n", "2", "--name", "two", "inference.batch_size=2", folder=transformer)
    two = open_frames(transformer / "samples" / "two" / "samples.zarr")
    assert two["sample"].values.tolist() == [0, 1] and np.isfinite(two["intensity"].values).all()


def test_samples_and_findings_of_a_training(transformer):
    """The last samples are those of the final weights; a network of a few steps draws noise and uses no label."""
    during, epochs = read_samples(transformer), read_epochs(transformer)
    table = pd.DataFrame(read_rows(transformer / "samples_during"))
    assert list(during) == table.epoch.tolist() == epochs.epoch.tolist()
    with open_frames(transformer / "samples" / "samples.zarr") as final:
        np.testing.assert_allclose(during[max(during)]["intensity"][:3], final["intensity"][:3], atol=1)
    assert (table.pairwise_mse_mean > 0.1).all() and {"profile", "histogram"} <= set(table)
    assert (transformer / "plots" / "samples_over_epochs.png").is_file()
    findings = {f.rule: f for f in read_findings(transformer)}
    assert "condition_ignored" in findings and "held-out frames" in findings["condition_ignored"].seen


def test_a_transformer_is_resumed_to_the_bit(transformer, tmp_path):
    """The same run, set back to the first of its checkpoints, ends at the same weights."""
    shutil.copytree(transformer, tmp_path / "dit")
    first, *later = sorted((tmp_path / "dit" / "checkpoints").glob("step-*"))
    for path in later:
        shutil.rmtree(path)
    (tmp_path / "dit" / "report.html").unlink()
    done = xrddiff("run", f"resume={tmp_path / 'dit'}", folder=tmp_path)
    assert later and "report.html" in done.stdout
    a, b = (load_checkpoint(run).weights() for run in (tmp_path / "dit", transformer))
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_a_transformer_denoises_latents(runs, tmp_path):
    words = ["model=latent_diff", "network=dit", *SMALL, f"training.pretrained_vae_path={runs('vae_kl')}"]
    xrddiff("run", *words, "data.limit=32", "inference.num_samples=2", "inference.steps=2", folder=tmp_path)
    (run,) = (tmp_path / "output" / "latent_diff_test").glob("*/*")
    net = open_generator(run).model.net
    assert type(net).__name__ == "DiT" and net.patch == 2 and not net.pictures.mask


def test_a_latent_run_goes_on_where_it_was_killed(runs, tmp_path):
    """Killed in the third notebook, the first two are not repeated, and the weights are those of the undisturbed run."""
    words = ["run", "model=latent_diff", *SMALL, *WORDS["latent_diff"], "run_name=whole", "training.checkpoint_every=2"]
    words += ["inference.num_samples=4", "inference.steps=2"]  # after the weights
    run = tmp_path / "output" / "latent_diff_test" / "whole"
    child = warm.start("xrddiff", *words, cwd=tmp_path)
    for _ in range(4000):
        if list((run / "checkpoints").glob("step-*")) or child.poll() is not None:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    first = (run / "autoencoder" / "notebook.ipynb").read_bytes()
    done = xrddiff("run", f"resume={run}", folder=tmp_path)
    assert "train_autoencoder: done before" in done.stdout and "latent_statistics: done before" in done.stdout
    assert (run / "autoencoder" / "notebook.ipynb").read_bytes() == first
    a, b = (load_checkpoint(r).weights() for r in (run, runs("latent_diff")))
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_latent_statistics_are_measured_again_when_their_checkpoint_breaks(runs, tmp_path):
    """The newest checkpoint of the autoencoder breaks after its statistics were stored: the one before steps in, and is measured."""
    run = tmp_path / "run"
    shutil.copytree(runs("latent_diff"), run)
    newest = load_checkpoint(run / "autoencoder").path
    older = newest.with_name("step-00000001")
    opened = load_checkpoint(newest)
    weights = {k: v * 0.5 if v.is_floating_point() else v for k, v in opened.weights().items()}
    state = {k: v for k, v in opened.state.items() if k != "latent_statistics"}
    shutil.copytree(save_checkpoint(tmp_path / "before", 1, {"model": weights}, state | {"step": 1}), older)
    (newest / "model.safetensors").write_bytes(b"lost")

    words = ["run", f"resume={run}"]
    done = xrddiff(*words, folder=tmp_path, check=False)
    assert done.returncode == 2 and "was trained with the autoencoder of weights" in done.stderr
    assert "train_autoencoder: done before" in done.stdout and "latent_statistics: done before" not in done.stdout
    shutil.rmtree(run / "checkpoints")
    done = xrddiff(*words, folder=tmp_path)
    assert "latent_statistics: done before" in done.stdout
    used = load_checkpoint(run / "autoencoder")
    assert used.path == older and used.state["latent_statistics"]["sha256"] == weights_sha256(used)
    assert load_checkpoint(run).state["generator"]["autoencoder"] == weights_sha256(used)


def test_a_trained_autoencoder_is_taken_as_it_is(runs, tmp_path):
    vae = runs("vae_kl")
    words = ["model=latent_diff", *SMALL, f"training.pretrained_vae_path={vae}", "run_name=taken"]
    xrddiff("run", *words, "inference.steps=2", "inference.num_samples=4", folder=tmp_path)
    run = tmp_path / "output" / "latent_diff_test" / "taken"
    a, b = load_checkpoint(vae), load_checkpoint(run / "autoencoder")
    assert all(torch.equal(v, b.weights()[k]) for k, v in a.weights().items())
    assert load_checkpoint(run).state["generator"]["shape"][0] == 4  # its channels, not the preset's 3
    assert "latent_statistics" not in a.state and "latent_statistics" in b.state


def test_autoregression_in_the_latent_of_a_quantised_autoencoder(runs, tmp_path):
    words = ["model=diff", "model.latent_diff=true", "model.autoencoder=vq", "model.order=random", *SMALL]
    words += ["model.diffusion_kwargs.num_sample_steps=4", "inference.num_samples=4"]
    words += [f"training.pretrained_vae_path={runs('vq')}"]
    xrddiff("run", *words, "run_name=both", folder=tmp_path)
    state = load_checkpoint(tmp_path / "output" / "diff_test" / "both").state
    assert state["generator"]["kind"] == "autoregressive" and state["model"]["patch_size"] == 2
    assert state["model"]["order"] == "random"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inference.steps=0"], "inference.steps: found 0, expected at least 1"),
        (["inference.schedule_options={sigma_min: 5, sigma_max: 2}"], "found 5, expected less than sigma_max, 2"),
        (["inference.sampler=unipk"], "did you mean 'unipc'"),
        (["inference.condition={hit_class: 1}"], "the model has no conditions"),
        (["training.lr=1"], "sampling changes the words of inference only"),
    ],
)
def test_sampling_refuses_in_one_sentence(runs, words, sentence):
    run = runs("latent_diff")
    before = sorted(p.name for p in (run / "samples").iterdir())
    done = xrddiff("sample", str(run), "-n", "2", *words, folder=run, check=False)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in (run / "samples").iterdir()) == before


def test_an_average_of_a_width_chosen_afterwards(runs):
    run = runs("ddpm")
    wide, ema = open_generator(run, ema_sigma_rel=0.1), open_generator(run)
    pairs = list(zip(wide.model.parameters(), ema.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs) and all(a.isfinite().all() for a, _ in pairs)
    with pytest.raises(XrddiffError, match="holds no snapshots of averages"):
        open_generator(runs("diff"), ema_sigma_rel=0.1)


def test_weights_of_another_configuration_do_not_fit(runs, tmp_path):
    start = [f"training.pretrained_diff_path={runs('ddpm')}", "training.train_diff_from_checkpoint=true"]
    done = xrddiff("run", "model=ddpm", *SMALL, *start, folder=tmp_path, check=False)
    assert done.returncode == 2 and "does not fit the model (UNet)" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=latent_diff", "data.transform=minmax"], "minmax has no inverse"),
        (
            ["model=ddpm", "inference=ddpm1000", "training.timesteps=600"],
            "inference.steps: found 1000, expected at most",
        ),
        (["model=ddpm", "inference.ema_sigma_rel=0.1"], "set training.ema_tracks"),
        (["model=ddpm", "inference.poisson=true"], "gives no expected counts to draw from"),
        (["model=ddpm", "inference.guidance_interval=[1,2]"], "no effect without guidance"),
        (
            ["model=diff", "model.condition=[a]", "inference.guidance_scale=2", "inference.guidance_interval=[1,2]"],
            "an autoregressive model is guided at all noise levels",
        ),
        (
            ["model=ddpm", "model.condition=[a]", "inference.guidance_scale=2", "training.condition_dropout=0"],
            "expected training.condition_dropout above 0",
        ),
        (["model=latent_diff", "model.latent_diff=false"], "contradicts model.model_name=latent_diff"),
    ],
)
def test_what_could_not_be_sampled_is_refused_before_training(words, sentence):
    with pytest.raises(BadInput, match=sentence):
        compose_config(words)


def test_asked_conditions_replace_those_of_the_run(tmp_path):
    words = ["model=ddpm", "model.condition=[hit_class,wavelength]", "inference.condition={hit_class: 1}"]
    (tmp_path / "config.yaml").write_text(to_yaml(compose_config(words)))
    asked = inference_config(tmp_path, ["inference.condition={wavelength: 1.3}"])
    assert asked.inference.condition == {"wavelength": 1.3}


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", " "])
def test_samples_stay_in_their_run(runs, tmp_path, name):
    done = xrddiff("sample", str(runs("ddpm")), "-n", "2", "--name", name, folder=tmp_path, check=False)
    assert done.returncode == 2 and "the name of the samples is" in done.stderr


def test_an_unknown_class_is_refused(runs):
    with pytest.raises(
        BadInput, match=r"hit_class=7: there is no such class; expected 0 \(blank\), 1 \(single\), 2 \(multiple\)"
    ):
        open_generator(runs("ddpm")).scenes.given.draw([0], 0, {"hit_class": 7})


def test_sampling_needs_a_generative_model(runs, tmp_path):
    done = xrddiff("sample", str(runs("vae_kl")), folder=tmp_path, check=False)
    assert done.returncode == 2 and "holds no generative model" in done.stderr
    done = xrddiff("sample", str(tmp_path), folder=tmp_path, check=False)
    assert done.returncode == 2 and "it has no config.yaml" in done.stderr


def test_another_autoencoder_is_refused(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("latent_diff"), run)
    shutil.rmtree(run / "autoencoder" / "checkpoints")
    shutil.copytree(runs("vae_kl") / "checkpoints", run / "autoencoder" / "checkpoints")
    with pytest.raises(BadInput, match="no latent statistics|was trained in the latent space of weights"):
        open_generator(run)


def test_the_order_of_the_notebooks_is_enforced(tmp_path):
    """The third notebook by itself: there is no autoencoder, and it says so before any work."""
    parameters = dict(model="latent_diff", experiment_type="test", data="sim128", overrides=["data.limit=40"])
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for name in ("train_generative", "latent_statistics"):
            with pytest.raises(Exception, match="autoencoder"):
                run_notebook(run_notebook_path(name), tmp_path / f"{name}.ipynb", parameters, terminal=False)
    finally:
        os.chdir(here)


def test_frames_of_another_size_do_not_fit_the_autoencoder(runs, tmp_path):
    words = ["model=latent_diff", *SMALL, "data.crop=[32,32]", f"training.pretrained_vae_path={runs('vae_kl')}"]
    done = xrddiff("run", *words, folder=tmp_path, check=False)
    assert done.returncode == 2 and "the autoencoder was trained on frames cut as" in done.stderr


def test_a_class_is_asked_for_by_its_name(runs):
    generator = open_generator(runs("ddpm"))
    named, numbered = (generator.scenes.given.draw([0, 1], 0, {"hit_class": v}) for v in ("multiple", 2))
    assert all((named[k] == numbered[k]).all() for k in named) and named["hit_class"].tolist() == [2, 2]
    with pytest.raises(BadInput, match=r"hit_class=dull: there is no such class; expected 0 \(blank\), 1 \(single\)"):
        generator.scenes.given.draw([0], 0, {"hit_class": "dull"})
    with pytest.raises(BadInput, match="wavelength=blank: expected a finite number"):
        generator.scenes.given.draw([0], 0, {"wavelength": "blank"})


def test_names_of_classes_are_words(tmp_path):
    words = ["model=ddpm", "model.condition=[hit_class,wavelength]"]
    cfg = compose_config([*words, "inference.condition={hit_class: blank, wavelength: 1.25}"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert cfg.inference.condition == inference_config(tmp_path, []).inference.condition
    assert cfg.inference.condition == {"hit_class": "blank", "wavelength": 1.25}
    for wrong in ("[1]", "true", "null"):
        with pytest.raises(BadInput, match="inference.condition"):
            compose_config([*words, f"inference.condition={{hit_class: {wrong}}}"])
