"""Words that have an effect in a run are read by it; all others may say what they like."""

import sys
import typing

import numpy as np
import pytest

from xrddiff import words
from xrddiff.config import compose_config
from xrddiff.errors import BadInput
from xrddiff.execution.phases import execute_run
from xrddiff.formats.store import read_store
from xrddiff.training.checkpoints import load_checkpoint
from xrddiff.used_words import unused_words, used_settings
from xrddiff.words import vocabulary

SMALL = [
    "experiment_type=test", "data=sim128", "data.limit=10", "data.crop=[32,32]", "training.max_steps=2", "threads=1",
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
    words.Model: "model.", words.DiffusionKwargs: "model.diffusion_kwargs.", words.Size: "size.", words.Data: "data.",
    words.Training: "training.", words.DDP: "training.ddp.", words.Inference: "inference.",
}  # fmt: skip


def another(word):
    """A value of this word other than its default, as it is typed; None where that takes knowledge."""
    kind, m = word.type, word.metadata
    kinds = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    if m["choices"] and kinds[0] is str:
        return next(c for c in m["choices"] if c != word.default)
    if kinds[0] is bool:
        return str(not word.default).lower()
    if kinds[0] is int and not m["choices"]:
        return (m["low"] or 1) + 2 if word.default is None else word.default + 1
    if kinds[0] is float:
        return {None: (m["high"] or 4.0) / 4, 0.0: 0.25, 1.0: 0.75}.get(word.default, (word.default or 1) * 0.9)
    return {"model.fsq_levels": "[5,5]", "size.widths": "[8,16]", "model.diffusion_kwargs.sigma_data": "0.7"}.get(
        word.name
    )


def accepted(overrides):
    try:
        compose_config(overrides)
    except BadInput:
        return False
    return True


FOR_CHECKS = {
    "training.train_vae_from_scratch",
    "training.train_diff_from_scratch",
}  # they say what is meant, and are checked

# functions of the modules below whose reading counts, since a run acts on what they return
ASKED = {"data_name", "check_frames", "model_parts", "noise_name", "chosen_options"}
PASSED = {"dataclasses", "copy", "xrddiff.config", "xrddiff.words", "xrddiff.used_words", "omegaconf._utils"}


def counts(frame):
    """Is this frame, or what it works for, the code of a run, rather than one that composes, checks or saves every word?"""
    while frame is not None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if function == "asdict" and type(frame.f_locals["obj"]) is words.Config:
            return False
        if function in ASKED or module not in PASSED:
            return function in ASKED or function not in ("_same_run", "_keep_followers")
        if module in ("xrddiff.config", "xrddiff.used_words") and not function.startswith("<"):
            return False
        frame = frame.f_back
    return False


@pytest.fixture
def read(monkeypatch):
    """The words that the code of a run reads."""
    found = set()

    def spy(self, name):
        if name in type(self).__dataclass_fields__ and counts(sys._getframe(1)):
            found.add(SECTIONS[type(self)] + name)
        return object.__getattribute__(self, name)

    for section in SECTIONS:
        monkeypatch.setattr(section, "__getattribute__", spy)
    return found


def result(path):
    """What a run came to: its weights, and its samples or reconstructions."""
    found = {
        f"{p.parent}: {k}": v.numpy()
        for p in path.glob("**/checkpoints")
        for k, v in load_checkpoint(p.parent).model.items()
    }
    for store in path.glob("**/samples/*.zarr"):
        found[store.name] = read_store(store)["intensity"].values
    return {k.replace(str(path), ""): v for k, v in found.items()}


@pytest.mark.parametrize("model", MODELS)
def test_words_of_a_model(model, tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    given = [*SMALL, *MODELS[model]]
    cfg = compose_config(given)
    unused, known = unused_words(cfg), vocabulary()
    one = execute_run([*given, "run_name=one"], terminal=False)
    used = {w for w in used_settings(cfg) if "." in w}
    assert used - read <= FOR_CHECKS
    typed = {w: another(known[w]) for w in unused if w not in {g.partition("=")[0] for g in given}}
    typed = {w: f"{w}={v}" for w, v in typed.items() if v is not None and accepted([*given, f"{w}={v}"])}
    assert len(typed) > 10, typed
    with pytest.warns(UserWarning, match="no effect in this run: "):
        two = execute_run([*given, "run_name=two", *typed.values()], terminal=False)
    one, two = result(one), result(two)
    assert one.keys() == two.keys() and len(one) > 10
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
