"""Models that need one or two evaluations, tuned or trained so: the run, its samples, and what is refused before anything is made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_run import xrddiff

from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import read_store
from xrddiff.learn.diffusion.consistency import AutoregressiveConsistency, ConsistencyObjective
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.mean_flow import MeanFlowObjective
from xrddiff.learn.models.autoregressive import AutoregressiveDiffusion
from xrddiff.learn.models.unet import UNet
from xrddiff.learn.training.checkpoints import load_checkpoint


@pytest.mark.slow
def test_a_run_is_tuned_and_sampled(runs, tmp_path):
    base = runs("ddpm")
    words = ["model=ddpm", *SMALL, "training.objective=consistency"]
    words += ["training.objective_options={stages: 2, guidance: 1.5}", "model.condition=[hit_class,wavelength]"]
    words += [f"training.init={base}", "inference=fast", "inference.num_samples=3", "inference.index_frames=0", "run_name=tuned"]  # fmt: skip
    xrddiff("run", *words, folder=tmp_path)
    run = tmp_path / "output" / "ddpm_test" / "tuned"
    before, after = load_checkpoint(base).weights(), load_checkpoint(run).weights()
    assert after.keys() <= before.keys() and any(not torch.equal(before[k], after[k]) for k in after)
    kept = load_checkpoint(run).tensors("objective")  # the teacher, for a run that goes on: what the run began with
    assert kept and all(torch.equal(v, before[k.removeprefix("teacher.denoiser.net.")]) for k, v in kept.items())
    made = read_store(run / "samples" / "samples.zarr")
    assert json.loads(made.attrs["sampler"])["name"] == "consistency" and np.isfinite(made["intensity"].values).all()
    xrddiff("sample", run, "-n", "2", "--name", "again", folder=tmp_path)
    again = read_store(run / "samples" / "again" / "samples.zarr")["intensity"].values
    np.testing.assert_array_equal(again, made["intensity"].values[:2])


@pytest.mark.slow
def test_a_mean_flow_is_trained_and_sampled(tmp_path):
    words = ["model=ddpm", *SMALL, "training.objective=mean_flow", "model.condition=[hit_class]"]
    words += ["training.objective_options={jumps: 0.5, guidance: 1.5}", "training.max_steps=4"]
    words += ["inference=mean_flow", "inference.num_samples=3", "inference.index_frames=0", "run_name=flow"]
    xrddiff("run", *words, folder=tmp_path)
    run = tmp_path / "output" / "ddpm_test" / "flow"
    made = read_store(run / "samples" / "samples.zarr")
    assert json.loads(made.attrs["sampler"])["name"] == "mean_flow" and np.isfinite(made["intensity"].values).all()
    assert "span" not in load_checkpoint(run).state["generator"]["conditions"]  # nothing that a user chooses
    xrddiff("sample", run, "-n", "2", "inference=default", "inference.steps=2", "--name", "unipc", folder=tmp_path)
    assert np.isfinite(read_store(run / "samples" / "unipc" / "samples.zarr")["intensity"].values).all()


OBJECTIVES = {
    "consistency": lambda net: ConsistencyObjective(Denoiser(net, sigma_data=0.5), steps=10),
    "consistency, guided": lambda net: ConsistencyObjective(Denoiser(net, sigma_data=0.5), steps=10, guidance=2.0),
    "mean flow": lambda net: MeanFlowObjective(Denoiser(net, "mean_flow"), jumps=0.5, guidance=1.5),
}


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_loss_of_a_frame_does_not_depend_on_its_batch(make, one_thread):
    torch.manual_seed(0)
    net = UNet(
        in_channels=1, out_channels=1, widths=[32, 64], layers_per_block=1, conditions={"kind": 3, "span": [0.5, 0.3]}
    )
    objective = make(net)
    x, index = torch.randn(6, 1, 16, 16), torch.arange(6)
    mask = torch.rand(6, 1, 16, 16) > 0.2
    cond = {"kind": torch.tensor([0, 1, 2, 0, 1, 2])}
    whole = objective({"x": x, "index": index, "mask": mask, "cond": cond}, 7)
    for rows in (slice(0, 2), slice(2, 6)):
        batch = {"x": x[rows], "index": index[rows], "mask": mask[rows], "cond": {"kind": cond["kind"][rows]}}
        part = objective(batch, 7)
        assert all(torch.allclose(part[k], whole[k][rows], rtol=1e-5) for k in whole)
    hidden = torch.where(mask, x, 1e6)  # what is masked does not count
    other = objective({"x": hidden, "index": index, "mask": mask, "cond": cond}, 7)
    assert torch.equal(other["loss"], whole["loss"])
    whole["loss"].mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_each_stage_has_its_share_of_the_steps_and_held_out_frames_the_last_one():
    objective = OBJECTIVES["consistency"](UNet(in_channels=1, out_channels=1, widths=[32]))
    assert [objective.stage(s) for s in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert objective.eval().stage(0) == 4


def test_held_out_tokens_have_the_last_stage_too():
    torch.manual_seed(0)
    model = AutoregressiveDiffusion(size=(8, 8), patch_size=4, width=16, depth=1, heads=1)
    torch.nn.init.normal_(model.denoiser.net.proj_out.weight, std=0.3)
    objective = AutoregressiveConsistency(model, steps=100)
    batch = {"x": torch.randn(2, 1, 8, 8), "index": torch.tensor([4, 9])}
    first = objective(batch, 0)["loss"]
    objective.training = False  # as the trainer says it
    early, late = (objective(batch, step)["loss"] for step in (0, 99))
    assert torch.equal(early, late) and not torch.equal(first, early)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected training.init=RUN"),
        (["model.parameterisation=x0", "training.init={base}"], "returns a noise-free frame unchanged"),
        (["model.parameterisation=flow", "training.init={base}"], "the denoiser of training.init predicts edm"),
        (["training.init={base}", "training.objective_options={stages: 0}"], "at least 1"),
        (["training.init={base}", "training.objective_options={guidance: 2}"], "no conditions to be guided by"),
        (["training.init={base}", "training.objective_options={stage: 2}"], "did you mean 'stages'"),
        (["training.init={base}", "training.objective=consistent"], "did you mean 'consistency'"),
    ],
)
def test_refusals(words, sentence, tmp_path):
    from xrddiff.run.execution.run_folder import create_run

    base = create_run(compose_plan(["model=latent_diff"]), tmp_path / "base")
    words = [w.replace("{base}", str(base)) for w in words]
    with pytest.raises(BadInput, match=sentence):
        compose_config(["model=latent_diff", "training.objective=consistency", *words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["training.objective=mean_flow", "model.parameterisation=edm"], "found model.parameterisation=edm"),
        (["model.parameterisation=mean_flow", "training.objective=denoising"], "found training.objective=denoising"),
        (["inference=mean_flow"], "expected a model with mean_flow"),
        (["model=diff", "training.objective=mean_flow"], "cannot train an autoregressive model"),
        (["model=diff", "inference=mean_flow"], "the head of an autoregressive model"),
        (["training.objective=mean_flow", "training.objective_options={jumps: 2}"], "at least 0 and at most 1"),
    ],
)
def test_an_average_velocity_has_its_own_objective_and_sampler(words, sentence):
    with pytest.raises(BadInput, match=sentence):
        compose_config(["model=latent_diff", *words])
    either = ["training.objective=mean_flow"], ["model.parameterisation=mean_flow"]
    cfgs = [compose_config(["model=latent_diff", "inference=mean_flow", *w]) for w in either]
    assert all((c.training.objective, c.model.parameterisation) == ("mean_flow",) * 2 for c in cfgs)


def test_the_latent_is_that_of_the_run_it_begins_with(tmp_path):
    from xrddiff.run.execution.run_folder import create_run

    base = create_run(compose_plan(["model=latent_diff"]), tmp_path / "a run")
    (base / "autoencoder").mkdir()
    words = ["model=latent_diff", "training.objective=consistency", f"init={base}"]
    assert compose_config(words).training.pretrained_vae_path == str(base / "autoencoder")
    assert compose_config(words[:1] + words[2:]).training.pretrained_vae_path is None  # fine-tuning trains both
