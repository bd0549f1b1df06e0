"""Words that have an effect in a run are read by it; all others may say what they like."""

import re
import shutil
import sys
import typing

import numpy as np
import pytest

from xrddiff.config.active_settings import model_parts, trained_parts, unused_words, used_settings
from xrddiff.config.composition import compose_config, note_unused
from xrddiff.config.words import data, inference, model, training
from xrddiff.config.words.vocabulary import Config, vocabulary
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import read_store
from xrddiff.judge.inference.building import build_generative, open_space
from xrddiff.judge.inference.evaluation import CodecEvaluation
from xrddiff.judge.inference.fit_counts_net import train_counts
from xrddiff.learn.loading.datasets import prepare_words
from xrddiff.learn.recipes.autoencoders import (
    autoencoder_objective,
    build_autoencoder,
    frames_of_autoencoder,
    measure_run,
)
from xrddiff.learn.recipes.setup import run_accelerator, run_loaders, run_trainer
from xrddiff.learn.training.checkpoints import load_checkpoint
from xrddiff.run.execution.run_folder import open_run
from xrddiff.run.execution.sharing import few_samples, make_samples_together

SMALL = [
    "data=sim128", "data.limit=10", "data.crop=[32,32]", "training.max_steps=2", "threads=1",
    "training.batch_size=4", "inference.num_samples=2", "inference.steps=2", "inference.batch_size=2", "inference.limit=2",
]  # fmt: skip
MODELS = {
    "vae_kl": ["model=vae_kl"],
    "fsq": ["model=vq", "model.quantizer=fsq", "training.recons_loss=mse"],
    "ddpm": ["model=ddpm", "model.condition=[hit_class]"],
    "diff": ["model=diff", "inference.steps=null", "model.diffusion_kwargs.num_sample_steps=2"],
    "latent_diff": ["model=latent_diff", "model.autoencoder=vq", "model.parameterisation=v", "inference.schedule=vp"],
}
SECTIONS = {
    model.Model: "model.", model.DiffusionKwargs: "model.diffusion_kwargs.", model.Size: "size.", data.Data: "data.",
    training.Training: "training.", training.DDP: "training.ddp.", inference.Inference: "inference.",
}  # fmt: skip


def another(word):
    """A value of this word other than its default, as it is typed; None where that takes knowledge."""
    kind, m = word.type, word.metadata
    kinds = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    if m["choices"] and kinds[0] is str:
        return next((c for c in m["choices"] if c != word.default), None)
    if kinds[0] is bool:
        return str(not word.default).lower()
    if kinds[0] is int and not m["choices"]:
        return (m["low"] or 1) + 2 if word.default is None else word.default + 1
    if kinds[0] is float:
        return {None: (m["high"] or 4.0) / 4, 0.0: 0.25, 1.0: 0.75}.get(word.default, (word.default or 1) * 0.9)
    return {"size.widths": "[8,16]", "model.diffusion_kwargs.sigma_data": "0.7"}.get(word.name)


def accepted(given, typed):
    """Those of the words `typed` that may be given together: the others are refused in this run, or contradict each other."""
    typed = dict(typed)
    while True:
        try:
            compose_config([*given, *typed.values()])
            return typed
        except BadInput as error:
            named = [w for w in typed if re.search(rf"\b{re.escape(w)}\b", str(error))]
            assert named, error
            for w in named:
                del typed[w]


# words that say where a training starts are checked and not read; the others are for the folder's name and the report
OF_PROCESSES = {
    "training.pretrained_vae_path",
    "training.pretrained_diff_path", "training.test_suffix", "training.test_pipeline", "inference.judge_conditions",
}  # fmt: skip
# those of how samples are judged, and of samples that take several tiles: both are left out here
OF_SAMPLES = {"inference.cell", "inference.index_frames", "inference.limit", "inference.overlap"}
# functions of the modules below whose reading counts, since a run acts on what they return
ASKED = {"data_name", "check_frames", "model_parts", "used_maps", "noise_name", "sampling_steps", "chosen_options"}
CHECKS = {
    f"xrddiff.config.{name}" for name in ("composition", "contradictions", "overrides", "saved_config", "used_words")
}
PASSED = CHECKS | {"dataclasses", "copy", "xrddiff.config.words.vocabulary"}
COMPOSERS = ("omegaconf", "hydra")  # packages that read every word


def counts(frame):
    """Is this frame, or what it works for, the code of a run, rather than one that composes, checks or saves every word?"""
    while frame is not None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if function == "asdict" and type(frame.f_locals["obj"]) is Config:
            return False
        if module.partition(".")[0] in COMPOSERS:
            return False
        if function in ASKED or module not in PASSED:
            return function in ASKED or function not in ("_same_run", "_keep_followers")
        if module in CHECKS and not function.startswith("<"):
            return False
        frame = frame.f_back
    return False


@pytest.fixture
def read(monkeypatch):
    """The words that the code of a run reads."""
    found = set()

    def spy(self, name):
        if type(self) in SECTIONS and name in type(self).__dataclass_fields__ and counts(sys._getframe(1)):
            found.add(SECTIONS[type(self)] + name)
        return object.__getattribute__(self, name)

    for section in SECTIONS:
        monkeypatch.setattr(section, "__getattribute__", spy)
    return found


def train(cfg, path):
    """What the run notebooks do, without pictures and reports: the weights of all networks, what they make, and scores."""
    accelerator, parts, found = run_accelerator(cfg.training), trained_parts(cfg), {}
    if parts.autoencoder:
        run = open_run(cfg, path)
        run = run.phase("autoencoder") if parts.latent else run
        prepared, net = prepare_words(cfg), build_autoencoder(cfg)
        loaders = run_loaders(prepared, cfg, accelerator, net.downsampling)
        objective = autoencoder_objective(net, prepared, cfg, steps_per_epoch=len(loaders[0]))
        run_trainer(objective, loaders, run.path, cfg, accelerator, prepared.state() | {"model": net.config}).fit()
        evaluation = CodecEvaluation(run.path, cfg, accelerator.device, prepared)
        measured, reconstruction, _ = evaluation.reconstruct()
        found |= {f"autoencoder {k}": v.numpy() for k, v in load_checkpoint(run.path).weights().items()}
        found |= {"scores": np.array(list(evaluation.row(measured, reconstruction).values()), float)}
        if parts.latent:
            measure_run(run.path, frames_of_autoencoder(cfg, load_checkpoint(run.path)), cfg, accelerator)
    if parts.denoiser:
        run = open_run(cfg, path)
        space, transform = open_space(cfg, run.path)
        building = build_generative(cfg, prepare_words(cfg, transform), accelerator, space)
        building.trainer(run.path).fit()
        building.train_guide(run.path)
        train_counts(run.path, cfg, building.prepared, building.ranks)
        make_samples_together(
            run.path, few_samples(cfg), run.samples, building.ranks, accelerator.device, run.end_early
        )
        found |= {k: v.numpy() for k, v in load_checkpoint(run.path).weights().items()}
        found["samples"] = read_store(run.samples / "samples.zarr")["intensity"].values
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_words_of_a_model(model, tmp_path, read):
    given = [*SMALL, *MODELS[model]]
    cfg = compose_config(given)
    unused, known = unused_words(cfg), vocabulary()
    one = train(cfg, tmp_path / "one")
    not_read = {w for w in used_settings(cfg) if "." in w} - read
    allowed = OF_PROCESSES | (OF_SAMPLES if model_parts(cfg).denoiser else set())
    assert not_read <= allowed, not_read - allowed
    typed = {w: another(known[w]) for w in unused if w not in {g.partition("=")[0] for g in given}}
    typed = accepted(given, {w: f"{w}={v}" for w, v in typed.items() if v is not None})
    assert len(typed) > 15, typed
    other = compose_config([*given, *typed.values()])
    with pytest.warns(UserWarning, match="no effect in this run: ") as noted:
        note_unused(other, typed.values())
    assert set(re.findall(r"([\w.]+) \(", str(noted[0].message))) == typed.keys()  # and none that was not given
    two = train(other, tmp_path / "two")
    assert one.keys() == two.keys() and len(one) > 10
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (["model=ddpm", "inference.match_radius=3"], "inference.match_radius (no autoencoder is trained)"),
        (["model=ddpm", "inference=ddim50", "inference.sampler_options={eta: 0.5}"], None),
        (["model=ddpm", "inference=ddim50"], None),
        (["model=diff", "network=dit"], "model.network (the denoiser is autoregressive)"),
        (["model=ddpm", "network=dit"], None),
    ],
)
def test_only_given_words_are_named(given, note, recwarn):
    note_unused(compose_config(given), given)
    assert [str(w.message) for w in recwarn] == ([] if note is None else [f"no effect in this run: {note}"])


@pytest.mark.slow
def test_commands_name_words_without_effect_once(runs, tmp_path):
    """In the terminal, and not again in a cell of the notebook that is executed."""
    from test_run import xrddiff

    run, radius = shutil.copytree(runs("ddpm"), tmp_path / "run"), "inference.match_radius=3"
    commands = [
        ["sample", str(run), "-n", "2", "inference.steps=2", "inference.limit=2", radius],
        ["evaluate", str(run), "inference.limit=2", radius],
        ["run", f"resume={run}", "--dry-run", "model.patch_size=16"],  # a resumed run may repeat its words
    ]
    for command in commands:
        done = xrddiff(*command, folder=tmp_path)
        why = "the denoiser is unet" if command[0] == "run" else "no autoencoder is trained"
        noted = [line for line in (done.stdout + done.stderr).splitlines() if "no effect" in line]
        word = command[-1].partition("=")[0]
        assert noted == [f"xrddiff: note: no effect in this run: {word} ({why})"], command
