"""Classes are whole: jedi, which completes names in JupyterLab, knows every public method of a run and of the widgets."""

from __future__ import annotations

import inspect
from importlib import import_module

import jedi
import pytest

CLASSES = {
    "app.front_door.trained_run": "TrainedRun",
    "app.widgets.canvas": "FrameView",
    "app.widgets.codebook_browser": "CodebookBrowser",
    "app.widgets.compare": "Compare",
    "app.widgets.config_builder": "ConfigBuilder",
    "app.widgets.explorer": "FrameExplorer",
    "app.widgets.job_monitor": "JobMonitor",
    "app.widgets.latent_explorer": "LatentExplorer",
    "app.widgets.sampler": "SamplerPanel",
    "app.widgets.training_monitor": "TrainingMonitor",
}


@pytest.mark.parametrize(("module", "name"), CLASSES.items(), ids=CLASSES.values())
def test_every_public_method_is_completed(module, name):
    kind = getattr(import_module(f"xrddiff.{module}"), name)
    own = [
        (method, value)
        for base in kind.__mro__
        if base.__module__.startswith("xrddiff.")
        for method, value in vars(base).items()
        if inspect.isfunction(value) and not method.startswith("_")
    ]
    source = f"from xrddiff.{module} import {name}\n{name}."
    known = {completion.name for completion in jedi.Script(source).complete(2, len(name) + 1)}
    assert own and {method for method, _ in own} <= known
    assert all(value.__qualname__.endswith(f".{method}") for method, value in own)
