"""What a plug-in adds belongs to the run that names it; what is wrong with it is said before a run folder exists, or costs its own row of a report."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from xrddiff.app.verbs.main import main
from xrddiff.config.plan import compose_plan
from xrddiff.core import plugins
from xrddiff.core.errors import BadInput
from xrddiff.core.plugin_probes import LIMIT, check_plugins, probe, probe_plugin
from xrddiff.core.plugins import (
    failure_of,
    keep_plugins,
    kept_plugins,
    load_plugin,
    load_plugins,
    need_plugins,
    plugin_scope,
)
from xrddiff.core.registry import GROUND, KINDS, entries, find, get, registered_by
from xrddiff.data.frames.selftest import probe_frames
from xrddiff.data.transforms.pipelines import make_transform, transform_from_state
from xrddiff.judge.metrics.distribution import compare_sets
from xrddiff.judge.metrics.reconstruction import missing_scores, score_frames
from xrddiff.learn.telemetry.rules import Evidence, Monitor
from xrddiff.run.execution.checks import check_runs

HEAD = "from xrddiff.core.registry import register\n\n"
SAMPLER = (
    HEAD
    + """@register("sampler")
def ours(denoise, x, sigmas, *, cond=None, noise=None, callback=None):
    '''Version NUMBER.'''
    for a, b in zip(sigmas[:-1], sigmas[1:]):
        d = denoise(x, a, cond)
        x = d + (b / a) * (x - d)
    return x
"""
)
METRIC = (
    HEAD
    + """@register("metric", of="frames", title="broken number")
def broken(frames):
    '''Fails.'''
    raise ZeroDivisionError("no frames")
"""
)
RUN = ["model=ddpm", "data=sim128", "data.limit=12", "data.crop=[32,32]", "experiment_type=test", "threads=1"]


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    """A state folder of its own, and no consent from an earlier test."""
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "state"))
    monkeypatch.setenv(plugins.TRUST, "")
    monkeypatch.setattr(plugins, "_executed", {})
    monkeypatch.chdir(tmp_path)


def write(path: Path, code: str) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(code)
    return str(path)


def test_a_run_leaves_nothing_behind(tmp_path, capsys):
    mine = write(tmp_path / "mine.py", SAMPLER)
    assert main(["run", *RUN, f"plugins=[{mine}]", "inference.sampler=ours", "--dry-run"]) == 0
    assert "ours" not in entries("sampler") and "mine.py" not in GROUND.plugins
    assert main(["run", *RUN, "inference.sampler=ours", "--dry-run"]) == 2
    assert "found 'ours'" in capsys.readouterr().err


def test_the_second_run_has_its_own_plug_in_of_the_same_name(tmp_path):
    first = write(tmp_path / "a" / "mine.py", SAMPLER.replace("NUMBER", "1"))
    second = write(tmp_path / "b" / "mine.py", SAMPLER.replace("NUMBER", "2"))
    with plugin_scope([first]):
        one = get("sampler", "ours")
        assert find("sampler", "ours").help == "Version 1."
        with plugin_scope([second]):
            assert find("sampler", "ours").help == "Version 2." and get("sampler", "ours") is not one
        assert get("sampler", "ours") is one
    with plugin_scope([first]):
        assert get("sampler", "ours") is one  # executed once
    with plugin_scope(), pytest.raises(BadInput, match="have the same name"):
        load_plugins([first, second])


def test_a_plug_in_that_was_edited(tmp_path):
    """The next run has the new content; a run that goes on keeps to the old one, and says so."""
    path = write(tmp_path / "mine.py", SAMPLER.replace("NUMBER", "1"))
    with plugin_scope([path]):
        write(tmp_path / "mine.py", SAMPLER.replace("NUMBER", "2"))
        with pytest.warns(UserWarning, match="has changed since it was loaded"):
            load_plugin(path)
        assert find("sampler", "ours").help == "Version 1."
    with plugin_scope([path]):
        assert find("sampler", "ours").help == "Version 2."


def test_transforms_of_two_runs(tmp_path):
    """The transform of a run is restored by its own class, though another run had one of the same name since."""
    code = HEAD + (
        "from xrddiff.data.transforms.values import ValueTransform\n\n@register('transform')\nclass power(ValueTransform):\n"
        "    '''A power.'''\n    name = 'power'\n    def curve(self, u):\n        return u ** NUMBER\n"
    )
    paths = [write(tmp_path / n / "mine.py", code.replace("NUMBER", n)) for n in ("1", "2")]
    for path, expected in ((paths[0], 3.0), (paths[1], 9.0), (paths[0], 3.0)):
        with plugin_scope([path]):
            made = make_transform("power", standardise=False)
            again = transform_from_state({**made.state(), "fitted": {}})
            assert float(again.forward(np.full((1, 1), 3.0, np.float32))[0, 0]) == expected


def test_a_kept_plug_in_is_there_when_its_run_is_used_and_not_after(tmp_path):
    mine, run = write(tmp_path / "mine.py", SAMPLER), tmp_path / "run"
    run.mkdir()
    with plugin_scope([mine]):
        keep_plugins(run, load_plugins([mine]))
    assert [row["name"] for row in kept_plugins(run)] == ["mine.py"]
    with plugin_scope(run=run):
        assert "ours" in entries("sampler")
        need_plugins(run)
    assert "ours" not in entries("sampler")
    plugins._executed.clear()
    plugins.os.environ[plugins.TRUST] = ""
    with plugin_scope(run=run):  # another process: nobody has allowed it
        assert "ours" not in entries("sampler")
        with pytest.raises(BadInput, match="needs the plug-in mine.py"):
            need_plugins(run)


def test_what_a_module_that_is_imported_registers_stays(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "shared_by_two.py", SAMPLER.replace("ours", "shared"))
    paths = [write(tmp_path / f"{n}.py", "import shared_by_two\n") for n in "ab"]
    try:
        for path in paths:
            with plugin_scope([path]):
                assert "shared" in entries("sampler")
    finally:
        from xrddiff.core.registry import forget

        forget("shared_by_two")


# --- probes -------------------------------------------------------------------------------------------------------------

WRONG = {
    "frames together": ('from xrddiff.learn.training.callbacks import Callback\n@register("callback")\nclass c(Callback):\n    "C."\n    def alter_batch(self, training, batch):\n        return {**batch, "x": batch["x"] / batch["x"].std()}\n', "does not alter each frame by itself"),
    "forgets": ('from xrddiff.learn.training.callbacks import Callback\n@register("callback")\nclass c(Callback):\n    "C."\n    n = 0.5\n    def alter_gradients(self, training, record):\n        self.n /= 2\n        [p.grad.mul_(self.n) for p in training.parameters]\n', "after it was restored"),
    "no cond": ('@register("sampler")\ndef s(denoise, x, sigmas, callback=None):\n    "S."\n    return x\n', "line 3: the sampler 's' cannot be called as f(denoise"),
    "float32": (SAMPLER.removeprefix(HEAD).replace("return x\n", "return x.float()\n"), "returned float32"),
    "raises": ('@register("metric", of="frames")\ndef m(frames):\n    "M."\n    return frames["nothing"]\n', "line 6: the metric 'm' raised KeyError"),
    "hot pixel": ('@register("metric", of="frames")\ndef m(frames):\n    "M."\n    return frames["intensity"].values.max((1, 2))\n', "under the mask"),
    "no mask": ('@register("loss")\ndef bad(prediction, target):\n    "L."\n    return (prediction - target).square().flatten(1).mean(1)\n', "cannot be called as f(prediction, target, mask)"),
    "mask ignored": ('@register("loss")\ndef bad(prediction, target, mask=None):\n    "L."\n    return (prediction - target).square().flatten(1).mean(1)\n', "the loss 'bad'"),
    "one number": ('@register("loss")\ndef bad(prediction, target, mask=None):\n    "L."\n    return (prediction - target).square().mean()\n', "returned the shape () for 3 frames"),
    "inverse": ("from xrddiff.data.transforms.values import ValueTransform\nimport numpy as np\n@register('transform')\nclass t(ValueTransform):\n    'T.'\n    name = 't'\n    def curve(self, u):\n        return np.sqrt(u) if isinstance(u, np.ndarray) else u.sqrt()\n", "brings counts of mean"),
    "attribute": ("from xrddiff.data.transforms.values import ValueTransform\n@register('transform')\nclass t(ValueTransform):\n    'T.'\n    name = 't'\n    def __init__(self, strength: float = 1.0):\n        super().__init__()\n", "has no attribute strength"),
    "levels": ("import torch\n@register('sigma_schedule')\ndef up(n):\n    'Up.'\n    return torch.arange(n + 1, dtype=torch.float64)\n", "the sigma schedule 'up' ends at 1 instead of 0"),
    "rule": ("@register('health_rule', severity='note', when='epoch', cause='', remedy='', source='')\ndef r(e):\n    'R.'\n    return e.epochs[-1]['loss'] > 1 and None\n", "the health rule 'r' raised IndexError"),
    "default": ("from typing import Annotated\nfrom xrddiff.core.registry import Range\n@register('annealing')\ndef a(x, power: Annotated[float, Range(0, 1)] = 2.0):\n    'A.'\n    return x\n", "power: found 2.0, expected at least 0 and at most 1"),
    "exit": ("@register('annealing')\ndef a(x):\n    'A.'\n    raise SystemExit(0)\n", "the annealing 'a' raised SystemExit"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_its_line(tmp_path, what, capsys):
    code, says = WRONG[what]
    mine = write(tmp_path / "mine.py", HEAD + code)
    assert main(["config", "check", mine]) == 2
    told = capsys.readouterr()
    assert says in told.err and f"{mine}, line " in told.err and "refused" in told.out
    assert len(told.err.splitlines()) == 1 and "Traceback" not in told.err


def test_a_run_refuses_a_wrong_plug_in_before_its_folder_exists(tmp_path, capsys):
    mine = write(tmp_path / "mine.py", HEAD + WRONG["hot pixel"][0])
    words = [*RUN, f"plugins=[{mine}]", f"output_dir={tmp_path / 'output'}"]
    for command in (["run", *words, "--dry-run"], ["run", *words]):
        assert main(command) == 2
        assert "the metric 'm' changes from" in capsys.readouterr().err
    with plugin_scope():
        plan = compose_plan(words)
    with pytest.raises(BadInput, match="under the mask"):  # as a submission does
        check_runs([plan])
    assert not (tmp_path / "output").exists()


def test_a_plug_in_that_loops(tmp_path):
    mine = write(
        tmp_path / "mine.py", HEAD + "@register('annealing')\ndef a(x):\n    'A.'\n    while True:\n        pass\n"
    )
    with plugin_scope([mine]):
        ((entry, thing),) = registered_by("mine.py")
        assert "did not return within 0.2 s" in probe(entry, thing, limit=0.2).problem


def test_a_file_that_registers_nothing(tmp_path, capsys):
    assert main(["config", "check", write(tmp_path / "mine.py", "x = 1\n")]) == 2
    assert "registers nothing; expected @register" in capsys.readouterr().err


def test_the_tutorial_passes(capsys):
    tutorial = Path(__file__).parent.parent / "nbs" / "tutorials" / "extending.ipynb"
    assert main(["config", "check", str(tutorial)]) == 0
    out = capsys.readouterr().out
    assert all(passed in out for passed in ("damped", "order", "round trip", "steps, resumed"))


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_the_package_passes_its_probes(kind):
    """The readers of the package have a call of their own, for many files and addresses."""
    state = np.random.get_state()[1].copy()
    rows = [probe(entry, get(kind, name)) for name, entry in entries(kind).items() if kind != "reader"]
    assert [row.problem for row in rows if row.problem] == []
    if kind in entries("probe") and kind not in ("reader", "metric"):
        assert any(len(row.passed) > 1 for row in rows), kind
    assert (np.random.get_state()[1] == state).all() and LIMIT <= 60


def test_probes_are_tried_once_in_a_process(tmp_path):
    mine = write(tmp_path / "mine.py", SAMPLER + "# once\n")
    with plugin_scope([mine]) as scope:
        check_plugins()
        assert probe_plugin(scope.plugins["mine.py"]) is probe_plugin(scope.plugins["mine.py"])
        assert [p for p in probe_plugin(scope.plugins["mine.py"])[0].passed if p.startswith("order")] == ["order 1.0"]


# --- what raises later --------------------------------------------------------------------------------------------------


def test_a_metric_that_raises_is_a_row_that_says_why(tmp_path):
    mine = write(tmp_path / "mine.py", METRIC)
    frames, other = probe_frames(8), probe_frames(8, seed=1)
    with plugin_scope([mine]):
        with pytest.warns(
            UserWarning, match="the metric broken could not be computed: .*line 6 raised ZeroDivisionError"
        ):
            row = score_frames(frames, other)
        assert np.isnan(row["broken"]) and np.isfinite(row["mse"])
        (told,) = [line for line in missing_scores(frames, row) if "Broken number" in line]
        assert "could not be computed: " in told and f"{mine}, line 6" in told
        sets = compare_sets(frames, other, splits=2)
        assert np.isnan(sets["broken"]) and np.isfinite(sets["profile"]) and np.isfinite(sets["histogram"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "broken" not in score_frames(frames, other)  # run B
    assert failure_of("metric", "broken") is None


def test_a_distance_and_a_rule_that_raise(tmp_path):
    code = METRIC.replace('"metric", of="frames", title="broken number"', '"distance"').replace("(frames)", "(a, b)")
    code += "\n@register('health_rule', severity='error', when='epoch', cause='', remedy='', source='')\ndef bad_rule(e):\n    'R.'\n    return 1 / 0\n"
    mine = write(tmp_path / "mine.py", code)
    with plugin_scope([mine]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare_sets(probe_frames(8), probe_frames(8, seed=1), splits=2)
        assert np.isnan(found["broken"]) and np.isfinite(found["profile"])
        monitor = Monitor(["bad_rule", "plateau"], stops=["bad_rule"])
        new = monitor.look(Evidence(epochs=[dict(epoch=1, step=5, loss_mean=1.0, lr=1e-4)]), "epoch")
        assert [f.rule for f in new] == ["bad_rule (failed)"] and "could not be computed: " in new[0].seen
        assert new[0].severity == "note" and monitor.stopping(new) is None


def test_an_own_metric_that_raises_is_an_error(monkeypatch):
    """A mistake of the package is not hidden."""
    with pytest.raises(ZeroDivisionError):
        plugins.attempt("metric", "mse", lambda: 1 / 0)
