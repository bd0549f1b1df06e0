"""A run begins with the weights of another one: both networks of a latent model, new conditions and maps, and what is refused before anything is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from test_run import xrddiff

from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.judge.inference.model_from_plan import build_autoregressive, build_generative, open_space
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.recipes.autoencoders import build_autoencoder
from xrddiff.learn.recipes.latents import weights_sha256
from xrddiff.learn.recipes.setup import run_accelerator
from xrddiff.learn.training.checkpoints import load_checkpoint, save_checkpoint
from xrddiff.run.execution.checks import check_run

STILL = ["training.lr=1e-12", "training.max_steps=1"]  # weights stay as they were loaded


@pytest.fixture(scope="module")
def begun(runs, tmp_path_factory) -> tuple[Path, Path, str]:
    """A latent model that begins with another one and has more conditions, the other one, and what it printed."""
    folder = tmp_path_factory.mktemp("init")
    other = shutil.copytree(runs("latent_diff"), folder / "other")
    words = [
        "model=latent_diff",
        *SMALL,
        *STILL,
        "model.condition=[hit_class]",
        "model.condition_maps=[q,lattice,solid_angle]",
    ]
    words += ["init=other", "run_name=new", "inference.steps=2", "inference.num_samples=2", "inference.index_frames=0"]
    printed = xrddiff("run", *words, folder=folder).stdout
    return folder / "output" / "latent_diff_test" / "new", other, printed


def test_both_networks_of_a_latent_model_begin_with_those_of_another(begun):
    new, other, printed = begun
    for folder, part in (("autoencoder", "autoencoder"), (".", "denoiser")):
        a, b = load_checkpoint(new / folder), load_checkpoint(other / folder)
        record, given = a.state["init"], b.weights()
        assert (record["checkpoint"], record["weights"]) == (b.sha256, weights_sha256(b))
        assert f"the {part} starts from {record['taken']} of {record['of']} tensors of {other}" in printed
        same = [k for k, v in a.weights().items() if k in given and v.shape == given[k].shape and k != "conv_in.weight"]
        assert len(same) > 30 and all(torch.allclose(a.weights()[k], given[k], atol=1e-6) for k in same)
    assert set(record["new"]) == {"map solid_angle", "condition hit_class"}
    assert record["left"] == [f"map {name}" for name in b.state["generator"]["maps"] if name not in ("q", "lattice")]
    assert "new: map solid_angle, condition hit_class" in (new / "report.html").read_text()


def test_a_run_that_began_with_another_goes_on_without_it(begun):
    new, other, _ = begun
    moved = other.rename(other.with_name("elsewhere"))
    try:
        assert compose_config([f"resume={new}"]).training.init == str(other)
        with pytest.raises(BadInput, match="does not exist"):
            compose_config(["model=latent_diff", f"init={other}"])
    finally:
        moved.rename(other)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=ddpm", "network=dit"], "its denoiser has network unet, and this one dit; expected the same"),
        (["model=ddpm", "model.parameterisation=flow"], "parameterisation edm, and this one flow; expected the same"),
        (["model=ddpm", "size.widths=[32,32,64]"], r"its model has widths \[64, 64, 96\], and this one \[32, 32, 64\]"),
        (["model=vae_kl"], "a run of model=ddpm has no weights for model=vae_kl"),
        (["model=latent_diff"], "a run of model=ddpm has no weights for model=latent_diff"),
        (["model=diff"], "has no weights for model=diff"),
        (
            ["model=ddpm", "training.train_diff_from_checkpoint=true", "training.pretrained_diff_path=."],
            "both say where the denoiser starts",
        ),
    ],
)
def test_another_kind_of_model_is_refused_before_a_folder_is_made(runs, words, sentence):
    with pytest.raises(BadInput, match=sentence):
        check_run(compose_plan([*words, *SMALL, f"init={runs('ddpm')}"]))


def ended(folder: Path, words: list[str], **state) -> Path:
    """The folder of an autoencoder's run, as far as the next run looks into it."""
    folder.mkdir()
    plan = compose_plan(words)
    net = build_autoencoder(plan.model.autoencoder)
    state = {"step": 7, "finished": True, "model": net.config} | state
    save_checkpoint(folder / "checkpoints", 7, {"model": net.state_dict()}, state)
    (folder / "config.yaml").write_text(plan.words)
    return folder


def test_a_run_that_has_not_ended_or_is_damaged_is_refused(tmp_path):
    words = ["model=vae_kl", *SMALL]
    stopped = ended(tmp_path / "stopped", words, finished=False)
    with pytest.raises(BadInput, match="its autoencoder stopped at step 7; expected a finished run"):
        check_run(compose_plan([*words, f"init={stopped}"]))
    broken = ended(tmp_path / "broken", words)
    (broken / "checkpoints" / "step-00000007" / "model.safetensors").write_bytes(b"lost")
    with pytest.raises(XrddiffError, match="holds no intact checkpoint"), pytest.warns(UserWarning, match="skipped"):
        check_run(compose_plan([*words, f"init={broken}"]))
    for path, sentence in ((tmp_path, ": it has no config.yaml"), (tmp_path / "none", " does not exist")):
        with pytest.raises(BadInput, match=f"training.init[=:] ?{path}{sentence}"):
            compose_config([*words, f"init={path}"])


@pytest.mark.parametrize(
    ("kind", "other", "sentence"),
    [
        ("vae_kl", "model=vq", "has no weights for model=vq"),
        ("vae_kl", "model.latent_channels=8", "latent_channels 4, and this one 8"),
        ("vq", "model.downsampling=8", "expected the same"),
    ],
)
def test_autoencoders_that_do_not_fit(tmp_path, kind, other, sentence):
    run = ended(tmp_path / "run", [f"model={kind}", *SMALL])
    with pytest.raises(BadInput, match=sentence):
        check_run(compose_plan([f"model={kind}", *SMALL, other, f"init={run}"]))


def test_the_autoencoder_of_a_run_is_the_autoencoder_of_a_latent_model(tmp_path):
    """The denoiser has nothing to begin with, and says so."""
    run = ended(tmp_path / "run", ["model=vae_kl", *SMALL, "model.latent_channels=3"])
    words = ["model=latent_diff", *SMALL, "model.latent_channels=3", f"init={run}"]
    check_run(compose_plan(words))


def test_an_autoregressive_model_of_frames_of_another_size(tmp_path):
    words = ["model=diff", *SMALL]
    plan = compose_plan(words)
    net = build_autoregressive(plan.model.denoiser, (1, 32, 48), None, {}, (0.5, (-1.0, 1.0)))
    run = ended(
        tmp_path / "run",
        ["model=vae_kl", *SMALL],
        model=net.config,
        generator=dict(kind="autoregressive", denoiser=None),
    )
    (run / "config.yaml").write_text(plan.words)
    check_run(compose_plan([*words, f"init={run}"]))
    with pytest.raises(BadInput, match="its model has order raster, and this one random"):
        check_run(compose_plan([*words, "model.order=random", f"init={run}"]))


def test_the_average_begins_with_the_loaded_weights_and_statistics_are_measured_again(runs, tmp_path, capsys):
    words = ["model=ddpm", *SMALL, "data.limit=32", "model.condition=[wavelength]", f"init={runs('ddpm')}"]
    plan = compose_plan(words)
    space, transform = open_space(plan.model, tmp_path)
    building = build_generative(plan, prepare_planned(plan, transform), run_accelerator(plan.training), space)
    trainer, given = building.trainer(tmp_path), load_checkpoint(runs("ddpm"))
    assert trainer.averages.ema.updates == 0 and "not taken: condition hit_class" in capsys.readouterr().out
    assert all(torch.equal(v, given.weights()[k]) for k, v in trainer.averages.ema.averages.items())
    ours = building.state()
    assert ours["generator"]["denoiser"]["sigma_data"] != given.state["generator"]["denoiser"]["sigma_data"]
    assert ours["transform"] != given.state["transform"]
