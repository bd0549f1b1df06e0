"""Words that have an effect in a run are read by it; all others may say what they like."""

import re
import shutil
import sys
import typing
from dataclasses import fields

import numpy as np
import pytest

from xrddiff.config.active_settings import model_parts, unused_words, used_settings
from xrddiff.config.composition import compose_config, note_unused
from xrddiff.config.plan import (
    AutoencoderPlan,
    CutPlan,
    DataPlan,
    DenoiserPlan,
    EvaluationPlan,
    ModelPlan,
    ReadingPlan,
    RunPlan,
    SamplingPlan,
    SourcePlan,
    SplitPlan,
    TokenPlan,
    TrainingPlan,
    compose_plan,
    resolve,
)
from xrddiff.config.train_options import TrainOptions
from xrddiff.config.words.vocabulary import get_word, vocabulary
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import read_store
from xrddiff.judge.inference.evaluation import CodecEvaluation
from xrddiff.judge.inference.model_from_plan import build_generative, open_space
from xrddiff.learn.loading.datasets import prepare_planned
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
PLANS = (
    RunPlan, SourcePlan, CutPlan, SplitPlan, ReadingPlan, DataPlan, AutoencoderPlan, TokenPlan, DenoiserPlan, ModelPlan,
    TrainOptions, TrainingPlan, SamplingPlan, EvaluationPlan,
)  # fmt: skip


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
PASSED = {"dataclasses", "copy", "reprlib", "xrddiff.config.plan"}  # what makes, copies and saves a plan reads it whole


def places(plan):
    """(class, field) -> value of all parts of a plan; a `Choice` is one value."""
    found = {}
    for f in fields(plan):
        value = getattr(plan, f.name)
        found |= places(value) if type(value) in PLANS else {(type(plan), f.name): value} if f.name != "config" else {}
    return found


def changed(given, word):
    """The places of a plan that other values of this word change; None if it cannot have one here."""
    found, plan = None, compose_plan(given)
    others = word.metadata["choices"] or (
        ("true", "false") if bool in (word.type, *typing.get_args(word.type)) else [another(word)]
    )
    for typed in others:
        try:
            other = compose_plan([*given, f"{word.name}={typed}"])
        except BadInput:
            continue
        if typed is not None and get_word(plan.config, word.name) != get_word(other.config, word.name):
            one, two = places(plan), places(other)
            found = (found or set()) | {k for k in one.keys() | two.keys() if one.get(k) != two.get(k)}
    return found


@pytest.fixture
def read(monkeypatch):
    """The places of a plan that the code of a run reads."""
    found = set()

    def spy(self, name):
        if type(self) in PLANS and sys._getframe(1).f_globals.get("__name__") not in PASSED:
            own = type(self).__dataclass_fields__
            found.update((type(self), f) for f in (own if name == "__dict__" else [name] if name in own else []))
        return object.__getattribute__(self, name)

    for kind in PLANS:
        monkeypatch.setattr(kind, "__getattribute__", spy)
    return found


def train(plan, path):
    """What the run notebooks do, without pictures and reports: the weights of all networks, what they make, and scores."""
    accelerator, model, found = run_accelerator(plan.training), plan.model, {}
    if own := model.autoencoder:
        run = open_run(plan, path)
        run = run.phase("autoencoder") if model.latent else run
        prepared, net = prepare_planned(plan), build_autoencoder(own)
        loaders = run_loaders(prepared, plan, accelerator, net.downsampling)
        objective = autoencoder_objective(net, prepared, own, steps_per_epoch=len(loaders[0]))
        run_trainer(objective, loaders, run.path, plan, accelerator, prepared.state() | {"model": net.config}).fit()
        evaluation = CodecEvaluation(run.path, plan, accelerator.device, prepared)
        measured, reconstruction, _ = evaluation.reconstruct()
        found |= {f"autoencoder {k}": v.numpy() for k, v in load_checkpoint(run.path).weights().items()}
        found |= {"scores": np.array(list(evaluation.row(measured, reconstruction).values()), float)}
        if model.latent:
            frames = frames_of_autoencoder(plan, load_checkpoint(run.path))
            measure_run(run.path, frames, plan.sampling.batch_size, accelerator)
    if model.denoiser:
        run = open_run(plan, path)
        space, transform = open_space(model, run.path)
        building = build_generative(plan, prepare_planned(plan, transform), accelerator, space)
        building.trainer(run.path).fit()
        building.train_guide(run.path)
        make_samples_together(
            run.path, few_samples(plan), run.samples, building.ranks, accelerator.device, run.end_early
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
    one = train(resolve(cfg), tmp_path / "one")
    places_of = {w: changed(given, known[w]) for w in used_settings(cfg) if "." in w}
    not_read = {w for w, found in places_of.items() if found is not None and not found & read}
    assert sum(found is not None for found in places_of.values()) > 0.6 * len(places_of)
    allowed = OF_PROCESSES | (OF_SAMPLES if model_parts(cfg).denoiser else set())
    assert not_read <= allowed, not_read - allowed
    typed = {w: another(known[w]) for w in unused if w not in {g.partition("=")[0] for g in given}}
    typed = accepted(given, {w: f"{w}={v}" for w, v in typed.items() if v is not None})
    assert len(typed) > 15, typed
    other = compose_config([*given, *typed.values()])
    with pytest.warns(UserWarning, match="no effect in this run: ") as noted:
        note_unused(other, typed.values())
    assert set(re.findall(r"([\w.]+) \(", str(noted[0].message))) == typed.keys()  # and none that was not given
    two = train(resolve(other), tmp_path / "two")
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
