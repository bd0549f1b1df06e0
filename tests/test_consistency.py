"""A trained denoiser is tuned to need one or two evaluations: the run, its samples, and what is refused before anything is made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_run import xrddiff

from xrddiff.config import compose_config
from xrddiff.diffusion.consistency import ConsistencyObjective
from xrddiff.diffusion.denoisers import Denoiser
from xrddiff.errors import BadInput
from xrddiff.formats.store import read_store
from xrddiff.models.unet import UNet
from xrddiff.training.checkpoints import load_checkpoint


@pytest.mark.slow
def test_a_run_is_tuned_and_sampled(runs, tmp_path):
    base = runs("ddpm")
    words = ["model=ddpm", *SMALL, "training.objective=consistency", "training.objective_options={stages: 2}"]
    words += [f"training.init={base}", "inference=fast", "inference.num_samples=3", "inference.index_frames=0", "run_name=tuned"]  # fmt: skip
    xrddiff("run", *words, folder=tmp_path)
    run = tmp_path / "output" / "ddpm_test" / "tuned"
    before, after = load_checkpoint(base).weights(), load_checkpoint(run).weights()
    assert after.keys() <= before.keys() and any(not torch.equal(before[k], after[k]) for k in after)
    made = read_store(run / "samples" / "samples.zarr")
    assert json.loads(made.attrs["sampler"])["name"] == "consistency" and np.isfinite(made["intensity"].values).all()
    xrddiff("sample", run, "-n", "2", "--name", "again", folder=tmp_path)
    again = read_store(run / "samples" / "again" / "samples.zarr")["intensity"].values
    np.testing.assert_array_equal(again, made["intensity"].values[:2])


def test_the_loss_of_a_frame_does_not_depend_on_its_batch(one_thread):
    torch.manual_seed(0)
    net = UNet(in_channels=1, out_channels=1, widths=[32, 64], layers_per_block=1, conditions={"kind": 3})
    objective = ConsistencyObjective(Denoiser(net, sigma_data=0.5), steps=10)
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
    # each stage has its share of the steps, and held-out frames always the last one
    assert [objective.stage(s) for s in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert objective.eval().stage(0) == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected training.init=RUN"),
        (["model.parameterisation=x0", "training.init={base}"], "leaves a frame without noise as it is"),
        (["model.parameterisation=flow", "training.init={base}"], "the denoiser of training.init predicts edm"),
        (["training.init={base}", "training.objective_options={stages: 0}"], "at least 1"),
        (["training.init={base}", "training.objective_options={stage: 2}"], "did you mean 'stages'"),
        (["training.init={base}", "training.objective=consistent"], "did you mean 'consistency'"),
    ],
)
def test_refusals(words, sentence, tmp_path):
    from xrddiff.execution.run_folder import create_run

    base = create_run(compose_config(["model=latent_diff"]), tmp_path / "base")
    words = [w.replace("{base}", str(base)) for w in words]
    with pytest.raises(BadInput, match=sentence):
        compose_config(["model=latent_diff", "training.objective=consistency", *words])


def test_the_latent_is_that_of_the_run_it_begins_with(tmp_path):
    from xrddiff.execution.run_folder import create_run

    base = create_run(compose_config(["model=latent_diff"]), tmp_path / "a run")
    (base / "autoencoder").mkdir()
    words = ["model=latent_diff", "training.objective=consistency", f"init={base}"]
    assert compose_config(words).training.pretrained_vae_path == str(base / "autoencoder")
    assert compose_config(words[:1] + words[2:]).training.pretrained_vae_path is None  # fine-tuning trains both
