"""The words of a run: presets and their numbers, refusals, sweeps, YAML and resume."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from xrddiff.app.verbs.main import main
from xrddiff.config.active_settings import ModelParts, model_parts, unused_words
from xrddiff.config.checks import check_config
from xrddiff.config.composition import compose_config, inference_config, note_unused, origins
from xrddiff.config.overrides import conf_dir, expand_multirun, made_preset, presets
from xrddiff.config.plan import compose_plan, resolve
from xrddiff.config.saved_config import load_config, to_yaml
from xrddiff.config.settings import preset_about
from xrddiff.config.words.data_sets import check_cut, data_name
from xrddiff.config.words.vocabulary import GROUPS, Config, vocabulary
from xrddiff.core.errors import BadInput
from xrddiff.judge.inference.model_from_plan import build_autoregressive, build_network, network_words
from xrddiff.judge.inference.samplers import training_noise
from xrddiff.learn.diffusion.schedules import alphas_bar
from xrddiff.learn.loading.loader import split_by_group
from xrddiff.learn.recipes.autoencoders import build_autoencoder

TRAINING = dict(
    batch_size=2, test_pipeline=False, test_suffix="", num_epochs=30, lr=1e-4, weight_decay=1e-3, beta_recons=0.5,
    recons_loss="iwmse", ema_decay=0.9999, train_vae_from_checkpoint=False, train_diff_from_checkpoint=False,
    pretrained_vae_path=None, pretrained_diff_path=None, annealing_shape="cosine",
)  # fmt: skip


def values(section, names):
    return {name: getattr(section, name) for name in names}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("train", {}),
        ("train_mse", dict(recons_loss="mse")),
        ("train_l1", dict(recons_loss="l1")),
        ("train_iwmse", dict(recons_loss="iwmse")),
        ("test", dict(test_pipeline=True, test_suffix="_test", num_epochs=20)),
    ],
)
def test_experiment_type(preset, changes):
    cfg = compose_config([f"experiment_type={preset}"])
    assert values(cfg.training, TRAINING) == TRAINING | changes
    assert cfg.data.limit == (256 if preset == "test" else None)


@pytest.mark.parametrize(
    ("preset", "trained", "batch", "epochs", "log"),
    [
        ("full_train", None, 16, 1000, 100),
        ("overfit_one", 1, 1, 1000, 10),
        ("safe_stable", None, 16, 1000, 100),
        ("overfit_5", 5, 5, 1500, 25),
        ("overfit_8", 8, 8, 1500, 25),
        ("overfit_16", 16, 16, 1500, 25),
        ("overfit_32", 32, 16, 1500, 25),
        ("overfit_100", 100, 16, 1500, 25),
    ],
)
def test_safe_and_stable_training(preset, trained, batch, epochs, log):
    cfg = compose_config(["model=latent_diff", f"experiment_type={preset}", "data=sim128"])
    names = ("lr", "weight_decay", "batch_size", "num_epochs", "log_every")
    assert list(values(cfg.training, names).values()) == [3e-5, 0.01, batch, epochs, log]
    assert cfg.training.sample_every == (5 if preset == "overfit_one" else 10)
    assert [cfg.model.diff_lr, cfg.model.diff_batch_size, cfg.model.diff_epochs] == [
        None
    ] * 3  # nor has the denoiser others
    if trained is None:
        assert cfg.data.limit is None and cfg.data.train_ratio == 0.8
        return
    # the first shots are of one group, and so a series
    train, held_out = split_by_group(np.arange(cfg.data.limit), cfg.data.train_ratio, cfg.data.seed, contiguous=True)
    assert len(train) == trained and len(held_out) >= 1
    assert cfg.training.test_suffix == f"_{preset}"


@pytest.mark.parametrize(
    ("preset", "data_id", "pooling", "name"),
    [
        ("full", 522, False, "sim-522"),
        ("pooling", 522, True, "sim-522"),
        ("full_422", 422, False, "sim-422"),
        ("pooling_422", 422, True, "sim-422"),
        ("sim128", None, False, "sim128"),
        ("pilatus", None, False, "pilatus-reflectivity"),
        ("cspad", None, False, "cspad-lysozyme"),
    ],
)
def test_data(preset, data_id, pooling, name):
    cfg = compose_config([f"data={preset}"])
    assert values(cfg.data, ("data_id", "avg_pooling", "topk", "data_path", "train_ratio", "seed")) == dict(
        data_id=data_id, avg_pooling=pooling, topk=1.0, data_path=None, train_ratio=0.8, seed=42
    )
    assert data_name(cfg) == name


@pytest.mark.parametrize(
    ("preset", "autoencoder", "denoiser", "channels"),
    [
        ("vae_kl", "vae_kl", None, 4),
        ("vae_kl_8", "vae_kl", None, 8),
        ("vq", "vq", None, 4),
        ("vq_8", "vq", None, 8),
        ("ddpm", None, "unet", 4),
        ("diff", None, "autoregressive", 3),
        ("latent_diff", "vae_kl", "unet", 3),
    ],
)
def test_models(preset, autoencoder, denoiser, channels):
    cfg = compose_config([f"model={preset}"])
    assert model_parts(cfg) == ModelParts(autoencoder, denoiser)
    assert cfg.model.latent_channels == channels


def test_latent_diff_makes_a_latent_model_of_any():
    parts = [model_parts(compose_config([f"model={m}", "model.latent_diff=true"])) for m in ("vq", "diff")]
    assert parts == [ModelParts("vq", "unet"), ModelParts("vae_kl", "autoregressive")]


def test_the_numbers_of_the_diffusion_presets():
    diff = compose_config(["model=diff_published"]).model
    assert values(diff, ("patch_size", "diff_epochs")) == dict(patch_size=16, diff_epochs=10)
    own = dict(num_sample_steps=64, sigma_min=0.002, sigma_max=10.0, sigma_data="auto")
    assert asdict(diff.diffusion_kwargs) == own and diff.training_noise_options == dict(P_mean=-1.2, P_std=0.8)
    tuned = compose_config(["model=diff"]).model
    assert asdict(tuned.diffusion_kwargs) == own | dict(num_sample_steps=16, sigma_min=0.02, sigma_max=40.0)
    assert tuned.training_noise_options == dict(P_mean=-0.2, P_std=1.5)
    ddpm = compose_config(["model=ddpm", "training.timesteps=600"])
    assert ddpm.model.noise_schedule == "squaredcos_cap_v2"
    assert values(ddpm.training, ("timesteps", "ema_decay", "condition_dropout")) == dict(
        timesteps=600, ema_decay=0.999, condition_dropout=0.1
    )
    assert compose_config(["model=ddpm"]).training.timesteps == 1000
    assert values(compose_config(["model=vq"]).model, ("codes", "commitment")) == dict(codes=1024, commitment=0.25)


def test_inference_presets():
    found = {name: compose_config([f"inference={name}"]).inference for name in presets("inference")}
    assert {name: (i.sampler, i.steps) for name, i in found.items()} == dict(
        default=("unipc", None),
        dpmpp16=("dpmpp_2m", 16),
        ddim50=("ddim", 50),
        ddpm1000=("ddpm", 1000),
        edm=("heun", 32),
        quick=("ddpm", 250),
        final=("ddpm", 500),
        fast=("consistency", 2),
        mean_flow=("mean_flow", 2),
    )
    assert all(found[name].schedule == "vp" for name in ("ddpm1000", "ddim50", "quick", "final"))


def test_a_model_has_its_own_way_of_sampling():
    def sampler(*words):
        i = compose_config(words).inference
        return i.sampler, i.steps

    published = "model=diff_published"
    assert sampler(published) == sampler(published, "inference=default") == ("heun", None)  # S_churn has an effect
    assert sampler(published, "inference=dpmpp16") == ("dpmpp_2m", 16)
    assert sampler(published, "inference.sampler=unipc") == sampler("model=diff") == ("unipc", None)


def test_a_mapping_is_a_value():
    words = [
        "model=ddpm",
        "model.condition=[crystals]",
        "inference.condition={crystals: 1}",
        "inference.guidance_scale=2",
    ]
    assert compose_config(words).inference.condition == {"crystals": 1.0}


def test_any_number_of_frames_can_be_overfitted():
    for k in range(1, 70):
        d = made_preset("experiment_type", f"overfit_{k}")["data"]
        train, held_out = split_by_group(np.arange(d["limit"]), d["train_ratio"], 42, contiguous=True)
        assert len(train) == k and len(held_out) >= 1
    given = compose_config(["training.batch_size=3", "experiment_type=overfit_8"])
    assert (given.training.batch_size, given.training.lr) == (3, 3e-5)
    for wrong in ("overfit_0", "overfit_", "overfit_x", "overfit_-1"):
        with pytest.raises(BadInput, match="there is no such preset"):
            compose_config([f"experiment_type={wrong}"])


@pytest.mark.parametrize(
    ("preset", "size", "side", "batch", "widths"),
    [
        ("small_28", "small", 28, 2048, (64, 128, 256)),
        ("medium_64", "medium", 64, 384, (64, 128, 256, 256)),
        ("large_96", "large", 96, 96, (96, 192, 384, 384)),
        ("xl_128", "xl", 128, 32, (128, 256, 512, 512)),
    ],
)
def test_sizes_with_their_resolution_and_batch(preset, size, side, batch, widths):
    cfg = compose_config([f"experiment_type={preset}"])
    assert (cfg.size.name, cfg.data.crop, cfg.training.batch_size) == (size, [side, side], batch)
    assert values(
        cfg.training, ("num_epochs", "lr", "timesteps", "ema_decay", "condition_dropout", "weight_decay")
    ) == dict(num_epochs=50, lr=1e-4, timesteps=600, ema_decay=0.999, condition_dropout=0.1, weight_decay=0.0)
    assert network_words(resolve(cfg).model.denoiser, None)["widths"] == widths
    published(cfg, 600, "squaredcos_cap_v2")


def published(cfg, steps, schedule):
    """Noise is predicted, for classes, over so many steps of this schedule, and taken away in all of them."""
    assert values(cfg.model, ("parameterisation", "noise_schedule", "condition")) == dict(
        parameterisation="eps", noise_schedule=schedule, condition=["hit_class"]
    )
    i, noise = cfg.inference, training_noise(resolve(cfg).model.denoiser)
    assert (i.sampler, i.schedule, i.steps, i.sampler_options) == ("ddpm", "vp", steps, {"variance": "fixed_large"})
    assert not {"training.timesteps", "model.noise_schedule", "training.condition_dropout"} & unused_words(cfg).keys()
    np.testing.assert_array_equal(noise.alphas_bar, alphas_bar(schedule, steps))


def test_diffusion_as_it_was_published(tmp_path):
    published(cfg := compose_config(["model=ddpm_published"]), 1000, "linear")
    assert values(cfg.training, ("timesteps", "condition_dropout")) == dict(timesteps=1000, condition_dropout=0.1)
    published(compose_config(["model=ddpm_published", "training.timesteps=400"]), 400, "linear")
    fast = compose_config(["model=ddpm_published", "inference=ddim50"]).inference
    assert (fast.sampler, fast.steps, fast.sampler_options) == ("ddim", 50, {})
    assert origins(cfg)["inference.steps"] == "follows training.timesteps"
    # a finished run goes back through its own steps
    cfg = compose_config(["experiment_type=small_28", "data=sim128"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert inference_config(tmp_path, ["inference=default"]).inference.steps == 600
    assert inference_config(tmp_path, ["inference=quick"]).inference.steps == 250


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["experiment_type=small_28"], None),
        (["experiment_type=small_28", "model=ddpm"], "training.timesteps of experiment_type=small_28 (inference.schedule=karras)"),
        (["experiment_type=small_28", "model=ddpm", "training.timesteps=9"], "training.timesteps (inference.schedule=karras)"),
        (["experiment_type=train_l1", "model=ddpm"], "training.recons_loss of experiment_type=train_l1 (no autoencoder is trained)"),
        (["experiment_type=full_train"], None),
        (["experiment_type=test", "model=vq_8"], None),
        (["model=diff", "inference=ddim50"], None),
    ],
)  # fmt: skip
def test_what_a_preset_sets_without_effect_is_noted_as_if_it_were_typed(words, note, recwarn):
    note_unused(compose_config(words), words)
    assert [str(w.message) for w in recwarn] == ([] if note is None else [f"no effect in this run: {note}"])


def parameters(*words):
    """Of the network that these words train, in millions."""
    plan = compose_plan(words).model
    space, denoiser = plan.autoencoder, plan.denoiser
    with torch.device("meta"):
        if denoiser is None:
            net = build_autoencoder(space)
        elif plan.autoregressive:
            net = build_autoregressive(denoiser, (1, 128, 128), None, {}, (0.5, (-1.0, 1.0)))
        else:
            net = build_network(denoiser, space.latent_channels, space, {})
    return net, sum(p.numel() for p in net.parameters()) / 1e6


@pytest.mark.parametrize(
    ("model", "millions"), [("vae_kl", 50), ("vae_kl_8", 80), ("vq", 45), ("vq_8", 45), ("latent_diff", 150)]
)
def test_networks_of_the_size_seed(model, millions):
    assert parameters(f"model={model}", "size=seed")[1] == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize("model", ["diff", "diff_published"])
def test_the_transformer_of_the_size_seed(model):
    """Eight heads of 1024 values: the attention is the 200 M parameters that such a model is said to have."""
    words = compose_config([f"model={model}", "size=seed"]).model
    assert values(words, ("vit_size", "depth", "heads", "dim_head", "mlp_depth")) == dict(
        vit_size="base", depth=8, heads=8, dim_head=1024, mlp_depth=3
    )
    assert words.diffusion_kwargs.sigma_data == "0.5"
    net, _ = parameters(f"model={model}", "size=seed")
    attention = sum(p.numel() for block in net.transformer.blocks for p in block.attention.parameters())
    assert attention / 1e6 == pytest.approx(200, rel=0.1)


def test_safe_and_stable_networks_have_96_base_channels():
    cfg = compose_config(["model=latent_diff", "experiment_type=safe_stable"])
    assert network_words(resolve(cfg).model.denoiser, SimpleNamespace(downsampling=4))["widths"][0] == 96
    assert compose_config(["experiment_type=safe_stable", "size=tiny"]).size.name == "tiny"


def test_every_value_tells_where_it_comes_from(tmp_path, capsys):
    words = ["model=latent_diff", "experiment_type=overfit_8", "training.num_epochs=7", "size=seed"]
    came = origins(compose_config(words))
    assert came["training.lr"] == "experiment_type=full_train" and came["data.limit"] == "experiment_type=overfit_8"
    assert came["training.num_epochs"] == "given" and came["model.diff_epochs"] == "experiment_type=full_train"
    follows = origins(compose_config(["model=latent_diff", "training.num_epochs=7"]))["model.diff_epochs"]
    assert follows == "follows training.num_epochs"
    assert origins(compose_config(["model=diff_published", "size=seed"]))["model.depth"] == "model_size=seed_diff"
    assert origins(compose_config(["model=ddpm"]))["training.ema_decay"] == "model_training=ddpm"
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(compose_config(words)))
    assert origins(load_config(run / "config.yaml")) == came
    assert main(["config", "show", str(run), "--json"]) == 0
    shown = {row["word"]: row for row in json.loads(capsys.readouterr().out)}
    assert shown["data.limit"] | dict(meaning="") == dict(
        word="data.limit", value=10, unit="frames", origin="experiment_type=overfit_8", meaning="", unused=None
    )
    assert main(["config", "diff", str(run), " ".join(words[:3]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["word"], row["values"]) for row in rows] == [("size.name", ["seed", "tiny"])]
    assert main(["config", "show", *words, "--changed"]) == main(["config", "list"]) == 0
    assert "experiment_type=overfit_8" in capsys.readouterr().out
    assert main(["config", "show", str(tmp_path)]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["config", "list", "sizes"]) == 2


def test_model_and_size():
    assert compose_config(["model=vae_kl"]).model.latent_channels == 4
    eight = compose_config(["model=vae_kl_8"]).model
    assert (eight.model_name, eight.latent_channels, eight.latent_diff) == ("vae_kl", 8, False)
    assert [compose_config([f"size={s}"]).size.name for s in presets("size")] == [
        "tiny",
        "small",
        "medium",
        "large",
        "xl",
        "seed",
    ]
    assert compose_config().size.name == "tiny"


def test_demo_trains_on_sim128_unless_told_otherwise():
    assert data_name(compose_config(["experiment_type=scratch"])) == "sim128"
    assert compose_config(["experiment_type=scratch"]).presets["model"] == "latent_diff"
    assert compose_config(["experiment_type=scratch", "model=vae_kl"]).presets["model"] == "vae_kl"
    assert data_name(compose_config(["experiment_type=scratch", "data=pooling"])) == "sim-522"


def test_every_preset_of_every_group_composes(tmp_path):
    for group in GROUPS:
        for name in presets(group):
            cfg = compose_config([f"{group}={name}", *([f"folder={tmp_path}"] if name == "folder" else [])])
            assert cfg.presets[group] == name
            assert preset_about(group, name)
            given = {word for word, source in origins(cfg).items() if source == "given"}
            assert given == ({"data.data_path"} if name == "folder" else set())


def test_every_key_in_the_presets_is_a_word():
    words = set(vocabulary())
    for path in conf_dir().rglob("*/*.yaml"):
        text = path.read_text()
        content = yaml.safe_load(text) or {}
        content.pop("defaults", None)
        package = text.partition("# @package ")[2].split("\n")[0] or path.parent.name
        section = "" if package == "_global_" else f"{package}."
        for key, value in content.items():
            keys = [section + key]
            if isinstance(value, dict) and keys[0] not in words:
                keys = [f"{section}{key}.{k}" for k in value]
            assert set(keys) <= words, path


def test_later_words_win_and_plus_sets():
    cfg = compose_config(
        ["training.lr=1", "+training.lr=2e-3", "++data.limit=7", "training.max_steps=5", "~training.max_steps"]
    )
    assert (cfg.training.lr, cfg.data.limit, cfg.training.max_steps) == (2e-3, 7, None)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=vea_kl"], "did you mean 'vae_kl'"),
        (["data=poling"], "did you mean 'pooling'"),
        (["training.num_epoch=3"], "did you mean 'training.num_epochs'"),
        (["experiment_type.recons_loss=mse"], "did you mean 'training.recons_loss'"),
        (["batch_size=3"], "'training.batch_size' or 'inference.batch_size'"),
        (["trainig.lr=1"], "did you mean 'training.lr'"),
        (["zzzz=1"], "xrddiff run --help"),
        (["training={lr: 1}"], "'training' is a section"),
        (["training.ddp=1"], "'training.ddp' is a section"),
        (["presets.model=x"], "no word 'presets.model'"),
        (["hydra.run.dir=x"], "no word 'hydra.run.dir'"),
        (["data@training=full"], "@package"),
        (["~data"], "takes the name of one preset"),
        (["model"], "expected word=value"),
        (["training.lr=[1"], "cannot read the override"),
        (["training.lr=fast"], "training.lr: found 'fast', expected a number"),
        (["training.lr=null"], "training.lr: found null, expected a number"),
        (["~training.lr"], "cannot be cleared"),
        (["training.num_epochs=2.5"], "expected a whole number"),
        (["data.avg_pooling=4"], "expected true or false"),
        (["data.crop=5"], "expected a list of whole numbers"),
        (["data.crop=[5]"], "expected [height, width]"),
        (["inference.steps=0"], "inference.steps: found 0, expected at least 1"),
        (["inference.sampler=dpmp"], "did you mean"),
        (["model.diffusion_kwargs.sigma_min=90"], "found 90, expected less than sigma_max, 80"),
        (["model.diffusion_kwargs.sigma_data=much"], "expected auto or a number above 0"),
        (["model.diffusion_kwargs=3"], "'model.diffusion_kwargs' is a section"),
        (["inference.condition=4"], "expected a mapping"),
        (["inference.condition={crystals: 1}"], "set model.condition"),
        (["inference.guidance_scale=2"], "no conditions to be guided by"),
        (["inference.guidance_interval=[3,1]"], "expected [low, high]"),
        (["model=ddpm", "training.pretrained_vae_path=."], "model=ddpm has no autoencoder"),
        (["training.pretrained_diff_path=."], "model=vae_kl has no denoiser"),
        (["model=latent_diff", "training.pretrained_vae_path=/nowhere"], "/nowhere does not exist"),
        (["data.topk=1.5"], "data.topk: found 1.5, expected at least 0 and at most 1"),
        (["data.topk=-0.1"], "data.topk"),
        (["data.train_ratio=0"], "more than 0"),
        (["training.lr=nan"], "training.lr: found nan"),
        (["training.lr=inf"], "training.lr: found inf"),
        (["training.batch_size=0"], "at least 1"),
        (["training.recons_loss=iwsme"], "did you mean 'iwmse'"),
        (["training.annealing_shape=sine"], "did you mean 'cosine'"),
        (["data.transform=asin"], "did you mean 'asinh'"),
        (["size.widths=[16,0]"], "size.widths: found 0"),
        (["engine=jupyter"], "expected one of inprocess, kernel"),
        (["training.train_vae_from_checkpoint=true"], "needs training.pretrained_vae_path"),
        (
            ["training.train_vae_from_checkpoint=true", "training.pretrained_vae_path=/no/such"],
            "/no/such does not exist",
        ),
        (["training.pretrained_vae_path=/"], "would not be used"),
        (["data.data_path=/no/such.h5"], "data.data_path: /no/such.h5 does not exist"),
        (["data.name=sim128", "data.data_path=/"], "both say where the frames are"),
        (["data.data_id=333"], "expected 422 or 522"),
        (["data.data_id=null"], "no data"),
        (["run_name=../up"], "run_name"),
        (["data.limit=1"], "at least 2 frames"),
        (["training.batch_size=4,8"], "add --multirun"),
        (["resume=/no/such"], "does not exist"),
        (["resume=/"], "has no config.yaml"),
    ],
)
def test_refusals(overrides, sentence):
    with pytest.raises(BadInput) as refused:
        compose_config(overrides)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(BadInput) as refused:
        compose_config(["data.topk=2", "training.lr=0", "training.train_vae_from_checkpoint=true"])
    assert len(str(refused.value).splitlines()) == 3


def test_starting_from_a_checkpoint_is_not_from_scratch(tmp_path):
    cfg = compose_config(["training.train_vae_from_checkpoint=true", f"training.pretrained_vae_path={tmp_path}"])
    assert cfg.training.train_vae_from_checkpoint and cfg.training.pretrained_vae_path == str(tmp_path)


def test_a_series_of_files_is_a_data_path(tmp_path):
    (tmp_path / "a_001.cbf").touch()
    assert compose_config([f"data.data_path='{tmp_path}/a_*.cbf'"]).data.data_path == f"{tmp_path}/a_*.cbf"
    with pytest.raises(BadInput, match="does not exist"):
        compose_config([f"data.data_path='{tmp_path}/b_*.cbf'"])


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames.h5").touch()
    assert compose_config(["data.data_path=frames.h5"]).data.data_path == str(tmp_path / "frames.h5")


def test_ranks_need_a_frame_each(monkeypatch):
    cfg = compose_config(["training.global_batch_size=4"])
    check_config(cfg, ranks=4)
    with pytest.raises(BadInput, match="each of the 8 ranks"):
        check_config(cfg, ranks=8)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(BadInput, match="each of the 8 ranks"):
        compose_config(["training.global_batch_size=4"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data=pilatus", "data.avg_pooling=true"], "195 x 487 pixels do not divide"),
        (["data=pooling", "data.pool=3"], "512 x 512 pixels do not divide"),
        (["data=sim128", "data.patch=256"], "data.patch: found 256 x 256"),
        (["data=full", "data.name=sim12"], "did you mean 'sim128'"),
    ],
)
def test_named_data_is_checked_before_it_is_opened(overrides, sentence):
    with pytest.raises(BadInput, match=sentence):
        compose_config(overrides)
    compose_config(["data=pooling", "data.crop=[64,64]"])


def test_frames_that_do_not_fit():
    check_cut(compose_config(["data=pooling"]).data, (9, 512, 512))
    with pytest.raises(BadInput, match="195 x 487"):
        check_cut(compose_config(["data=pooling"]).data, (9, 195, 487))
    with pytest.raises(BadInput, match="data.crop"):
        check_cut(compose_config(["data.crop=[200,100]"]).data, (9, 195, 487))
    with pytest.raises(BadInput, match="data.patch"):
        check_cut(compose_config(["data=pooling", "data.patch=256"]).data, (9, 512, 512))


@pytest.mark.parametrize("model", ["diff", "latent_diff"])
def test_epochs_that_are_given_hold_for_every_phase(model):
    epochs = {
        "": (30, 10),
        "training.num_epochs=2": (2, None),
        "training.num_epochs=2 model.diff_epochs=3": (2, 3),
        "model.diff_epochs=3": (30, 3),
        "experiment_type=test": (20, None),
        "experiment_type=test training.num_epochs=2": (2, None),
        "experiment_type=scratch": (4, 8),
        "experiment_type=scratch training.num_epochs=2": (2, None),
    }
    for words, expected in epochs.items():
        cfg = compose_config(["data=sim128", *words.split(), f"model={model}"])
        assert (cfg.training.num_epochs, cfg.model.diff_epochs) == expected, words
    cfg = compose_config([f"model={model}", "experiment_type=scratch", "training.lr=0.1", "training.num_epochs=7"])
    assert values(cfg.model, ("diff_lr", "diff_epochs", "diff_batch_size")) == dict(
        diff_lr=None, diff_epochs=None, diff_batch_size=16
    )


def test_yaml_round_trip(tmp_path):
    cfg = compose_config(["experiment_type=test", "size.widths=[16,32]", "run_name=yes", "training.mixed_precision=no"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert yaml.safe_load(to_yaml(cfg))["training"]["test_suffix"] == "_test"


@pytest.mark.parametrize(
    "content", ["training: {lr: fast}", "trainig: {}", "[1, 2]", "a: [", "training: {lrr: 1}", "42", "\x00"]
)
def test_a_broken_config_is_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(BadInput) as refused:
        load_config(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_words_that_are_missing_take_their_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text("training: {lr: 1.0}\n")
    assert load_config(tmp_path / "config.yaml") == replace(Config(), training=replace(Config().training, lr=1.0))


@pytest.fixture
def saved(tmp_path):
    cfg = compose_config(["data=sim128", "training.lr=2e-4", "experiment_type=test"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    return tmp_path, cfg


def test_a_run_whose_folder_is_a_number_is_resumed(saved, tmp_path, monkeypatch):
    path, cfg = saved
    (tmp_path / "208").mkdir()
    (path / "config.yaml").rename(tmp_path / "208" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert compose_config(["resume=208"]) == replace(cfg, resume="208")


def test_resume_is_the_saved_run(saved):
    path, cfg = saved
    assert compose_config([f"resume={path}"]) == replace(cfg, resume=str(path))
    again = compose_config([f"resume={path}", "data=sim128", "training.lr=2e-4", "training.num_epochs=50", "threads=1"])
    assert (again.training.num_epochs, again.threads, again.training.lr) == (50, 1, 2e-4)


def test_epochs_given_on_a_resume_hold_for_every_phase(tmp_path):
    def resumed(*words, epochs=10):
        cfg = compose_config(["model=latent_diff", "data=sim128"])
        cfg.model.diff_epochs = epochs
        (tmp_path / "config.yaml").write_text(to_yaml(cfg))
        again = compose_config([f"resume={tmp_path}", *words])
        return again.training.num_epochs, again.model.diff_epochs

    assert resumed() == resumed("training.num_epochs=30") == (30, 10)  # as it was begun
    assert resumed("training.num_epochs=40") == (40, None)
    assert resumed("training.num_epochs=40", "model.diff_epochs=20") == (40, 20)
    assert resumed("training.num_epochs=40", epochs=7) == (40, 7)  # not from a preset


@pytest.mark.parametrize(
    "word", ["training.lr=1e-3", "data=full", "run_name=other", "training.batch_size=3", "model=vae_kl_8"]
)
def test_resume_refuses_another_run(saved, word):
    path, _ = saved
    with pytest.raises(BadInput, match="contradicts resume="):
        compose_config([f"resume={path}", word])


def test_multirun():
    assert expand_multirun(["model=vae_kl", "training.lr=1e-3"]) == [["model=vae_kl", "training.lr=1e-3"]]
    runs = expand_multirun(["model=vae_kl,vae_kl_8", "training.num_epochs=range(1,4)", "data=sim128"])
    assert len(runs) == 6 and runs[0] == ["model=vae_kl", "training.num_epochs=1", "data=sim128"]
    assert runs[1][1] == "training.num_epochs=2"  # the last word varies fastest
    assert expand_multirun(["data=glob(*_422)"]) == [["data=full_422"], ["data=pooling_422"]]
    assert expand_multirun(["size.widths=[8,16],[16,32]"]) == [["size.widths=[8,16]"], ["size.widths=[16,32]"]]
    assert [compose_config(r).size.widths for r in expand_multirun(["size.widths=[8,16],[16,32]"])] == [
        [8, 16],
        [16, 32],
    ]
    assert expand_multirun(["training.seed=1,2", "training.seed=3"]) == [["training.seed=3"]]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data=glob(nothing*)", "matches no preset"),
        ("training.lr=glob(*)", "presets of a group"),
        ("training.lr=interval(0,1)", "infinitely many values"),
    ],
)
def test_multirun_refusals(word, sentence):
    with pytest.raises(BadInput, match=sentence):
        expand_multirun([word])


def test_own_presets(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [full]\nlimit: 11\n")
    cfg = compose_config([f"hydra.searchpath=[file://{tmp_path}]", "data=mine"])
    assert (cfg.data.limit, cfg.presets["data"]) == (11, "mine")
    with pytest.raises(BadInput, match="nope"):
        compose_config([f"hydra.searchpath=[file://{tmp_path}]", "data=nope"])


def test_hydra_in_use_elsewhere_is_left_alone(tmp_path):
    from hydra import compose, initialize_config_dir

    (tmp_path / "other.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose_config(["data=sim128"]).data.name == "sim128"
        assert compose("other").a == 1


def test_import_is_light():
    code = "import sys, xrddiff.config.composition; print([m for m in ('torch', 'numpy', 'hydra', 'xarray') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
