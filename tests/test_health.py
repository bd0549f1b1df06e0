"""Each rule of health speaks in a real training that has what it is about, and the table of epochs says what happened.

The trainings are those of toys, a few milliseconds a step. The rules on results are provoked where such runs are at hand, in
tests/test_generate.py.
"""

import inspect
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import warm

from xrddiff.core.errors import BadInput
from xrddiff.core.registry import get
from xrddiff.learn.telemetry.history import read_epochs, read_history
from xrddiff.learn.telemetry.rules import RULES, Monitor, Unhealthy, read_findings

N = 32


def make_loader(wait=0.0, frames=N, rank=0, world_size=1, targets="mean"):
    import torch

    from xrddiff.core.seeds import keyed_normal

    class Loader:
        def __init__(self):
            self.num_frames, self.batch_size, self.rank, self.world_size = frames, 8, rank, world_size
            self.x = keyed_normal((64,), "health", frames, index=range(frames))
            self.y = self.x.mean(1) if targets == "mean" else keyed_normal((), targets, index=range(frames))

        def batches(self, epoch, start=0):
            for k in range(start, frames, 8):
                time.sleep(wait)
                i = np.array_split(np.arange(k, min(k + 8, frames)), world_size)[rank]
                yield {"x": self.x[i], "y": self.y[i], "index": torch.from_numpy(i), "cond": {}}

    return Loader()


def make_objective(scale=1.0, wide=16, act=None, offset=0.0):
    import torch
    from torch import nn

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(64, wide), nn.SiLU(), nn.Linear(wide, 1))

        def forward(self, batch, step):
            if act is not None and self.training:
                act(step)
            return {"loss": scale * ((self.model(batch["x"])[:, 0] - batch["y"]).square() + offset)}

    return Objective()


def train(folder, names, objective, loader, *, held_out=None, stops=(), options=None, **words):
    from xrddiff.learn.training.trainer import Trainer

    words = {"num_epochs": 6, "lr": 1e-3, "ema_decay": None, "log_every": 2, "progress": False, **words}
    words = {"batch_size": 8 // loader.world_size, **words}
    monitor = Monitor(names, options, stops, Path(folder) / "metrics" / "health.json")
    return Trainer(objective, loader, folder, validation_loader=held_out, health=monitor, **words).fit()


def autoencoder(kind, **words):
    """A real autoencoder on simulated frames: its objective and loader."""
    import torch

    from xrddiff.learn.losses import VAEObjective, VQObjective
    from xrddiff.learn.models.autoencoder import make_autoencoder

    x = torch.from_numpy(np.random.default_rng(0).poisson(1.0, (16, 1, 16, 16)).astype(np.float32))

    class Frames:
        num_frames, batch_size, rank, world_size = 16, 8, 0, 1

        def batches(self, epoch, start=0):
            for k in range(start, 16, 8):
                yield {"x": x[k : k + 8], "index": torch.arange(k, k + 8), "cond": {}}

    own = dict(codes=512, dead_threshold=0, decay=0.5) if kind == "vq" else {}
    net = make_autoencoder(
        "tiny", kind=kind, latent_channels=2, widths=[8, 16], layers_per_block=1, mid_attention=False, **own
    )
    return (VQObjective if kind == "vq" else VAEObjective)(net, recons_loss="mse", **words), Frames()


CASES = {
    "exploding_gradients": lambda: dict(objective=make_objective(scale=1e5)),
    "vanishing_gradients": lambda: dict(objective=make_objective(scale=1e-9)),
    "learning_rate_too_low": lambda: dict(lr=1e-9),
    "loss_stays_high": lambda: dict(objective=make_objective(offset=50.0)),
    "plateau": lambda: dict(num_epochs=24, lr=1e-2, objective=make_objective(offset=1.0)),
    "fluctuation": lambda: dict(num_epochs=12, lr=0.7),
    "overfit_gap": lambda: dict(
        num_epochs=60, lr=1e-2, loader=make_loader(frames=8, targets="noise"), objective=make_objective(wide=128),
        held_out=make_loader(frames=16, targets="other"),
    ),
    "loader_bound": lambda: dict(loader=make_loader(wait=0.02), num_epochs=2),
    "slow_average": lambda: dict(ema_decay=0.9999, num_epochs=1, options={"slow_average": {"share": 1e-9}}),
    "posterior_collapse": lambda: dict(
        zip(("objective", "loader"), autoencoder("kl", kl_weight=1e3, annealing_shape=None), strict=True), num_epochs=40, lr=1e-2
    ),
    "dead_codebook": lambda: dict(zip(("objective", "loader"), autoencoder("vq"), strict=True), num_epochs=12),
}  # fmt: skip


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_speaks_in_a_training_that_provokes_it(tmp_path, rule):
    case = dict(objective=make_objective(), loader=make_loader(), options={}) | CASES[rule]()
    if "least_steps" in inspect.signature(get("health_rule", rule)).parameters:  # these trainings are short
        case["options"] = {rule: {"least_steps": 0}} | case["options"]
    train(tmp_path / "ill", [rule], **case)
    (found,) = read_findings(tmp_path / "ill")
    assert found.rule == rule and found.seen and found.cause and found.remedy and found.source
    assert json.loads((tmp_path / "ill" / "metrics" / "health.json").read_text())[0]["try"] == found.remedy


def test_nothing_is_said_of_a_training_of_a_few_steps(tmp_path):
    """An epoch of sixteen frames may be one step: five of them say nothing about the learning rate."""
    train(tmp_path, list(CASES), make_objective(offset=50.0), make_loader(frames=8), num_epochs=8, lr=1e-9)
    assert {f.rule for f in read_findings(tmp_path)} <= {"loader_bound", "slow_average"} and len(
        read_epochs(tmp_path)
    ) == 8


def test_a_healthy_training_has_no_findings(tmp_path):
    rules = [rule for rule in RULES if rule != "loader_bound"]  # a step of a toy takes no longer than reading
    train(tmp_path, rules, make_objective(), make_loader(), ema_decay=0.9, lr=3e-3)
    assert read_findings(tmp_path) == [] and len(RULES) >= 18
    assert len(read_epochs(tmp_path)) == 6


def test_a_finding_that_ends_a_training(tmp_path):
    with pytest.raises(Unhealthy) as ended:
        train(tmp_path, ["diverging"], make_objective(), make_loader(), stops=["diverging"], lr=30.0, num_epochs=40)
    text = str(ended.value)
    assert (
        "by the rule diverging" in text
        and "The learning rate is too high." in text
        and "at a learning rate of 30" in text
    )
    assert read_findings(tmp_path)[0].rule == "diverging" and len(read_history(tmp_path)) < 80


def test_numbers_that_are_not_finite_are_a_finding_too(tmp_path):
    from xrddiff.learn.telemetry.health import Diverged

    def overflow(step):
        objective.model[0].weight.data *= 1e38 if step == 5 else 1

    objective = make_objective(act=overflow)
    with pytest.raises(Diverged, match="a step of it moves weights of"):
        train(tmp_path, None, objective, make_loader(), lr=1000.0)
    (found,) = (f for f in read_findings(tmp_path) if f.rule == "not_finite")
    assert found.severity == "error" and found.cause.startswith("The learning rate is too high")


def test_unknown_rules_and_options(tmp_path):
    with pytest.raises(BadInput, match="did you mean 'slow_node'"):
        Monitor(options={"slow_nodes": {}})
    with pytest.raises(BadInput, match=r"slow_node: the health rule slow_node has no option 'tims'"):
        Monitor(options={"slow_node": {"tims": 2}})


def test_the_table_of_epochs(tmp_path):
    """Its losses are those of the table of steps, and its times add up."""
    start = time.monotonic()
    train(
        tmp_path,
        [],
        make_objective(),
        make_loader(wait=0.01),
        held_out=make_loader(frames=8),
        ema_decay=0.9,
        log_every=1,
    )
    taken = time.monotonic() - start
    epochs, steps = read_epochs(tmp_path), read_history(tmp_path)
    own = steps[steps.split == "train"].groupby("epoch").loss
    for column in ("mean", "min", "max", "median"):
        np.testing.assert_allclose(epochs[f"loss_{column}"], getattr(own, column)(), rtol=1e-6)
    np.testing.assert_allclose(epochs.loss_std, own.std(ddof=0), rtol=1e-5)
    norms = steps[steps.split == "train"].groupby("epoch").grad_norm
    np.testing.assert_allclose(epochs.grad_norm_max, norms.max(), rtol=1e-6)
    np.testing.assert_allclose(epochs.validation_loss, steps[steps.split == "validation"].loss, rtol=1e-12)
    np.testing.assert_allclose(epochs.seconds.cumsum(), epochs.total_seconds, rtol=1e-9)
    assert 6 * 4 * 0.01 < epochs.total_seconds.iloc[-1] < taken and (epochs.ema_divergence > 0).all()
    np.testing.assert_allclose(epochs.samples_per_second * epochs.seconds, N, rtol=1e-9)
    assert json.loads((tmp_path / "metrics" / "epochs.json").read_text())["epochs"][2]["epoch"] == 3


def draw_while_training(folder, target, lr, epochs=8):
    """Train the toy towards one number, whatever it is given, and draw from it after each epoch."""
    from types import SimpleNamespace

    import torch

    from xrddiff.judge.inference.training_previews import SamplesDuring
    from xrddiff.learn.training.trainer import Trainer
    from xrddiff.physics.simulation.simulate import simulate

    frames, objective, loader = simulate("sim128", range(4)).load(), make_objective(wide=64), make_loader()
    loader.y = torch.full((N,), float(target))

    def sample(numbers, settings):
        drawn = objective.model(loader.x[list(numbers)])[:, :, None, None]
        return frames.assign(sample=("frame", list(numbers))), 3 * drawn

    generator = SimpleNamespace(sample=sample, space="a latent", expected=False)
    during = SamplesDuring(generator, SimpleNamespace(seed=0), 1, 4, scale=1.0)
    rules = ["mode_collapse", "low_diversity", "samples_out_of_range"]
    words = dict(num_epochs=epochs, batch_size=8, lr=lr, ema_decay=None, log_every=2, progress=False)
    options = {
        "low_diversity": {"mse": 0.3, "least_steps": 0},
        "mode_collapse": {"least_steps": 0},
    }  # it passes 0.3 on its way
    health = Monitor(rules, options, path=folder / "metrics" / "health.json")
    Trainer(objective, loader, folder, callbacks=[during], health=health, **words).fit()
    return {f.rule: f for f in read_findings(folder)}


def test_samples_that_collapse(tmp_path):
    """A network that learns one number draws it: first its samples are alike, then the same."""
    found = draw_while_training(tmp_path / "alike", 0.0, 2e-3, epochs=24)
    assert found["low_diversity"].epoch < found["mode_collapse"].epoch
    assert found["mode_collapse"].severity == "error" and "samples_out_of_range" in found


def test_samples_far_out(tmp_path):
    found = draw_while_training(tmp_path, 30.0, 0.1, epochs=20)
    assert "drawn values reach" in found["samples_out_of_range"].seen


def test_the_rules_read_what_the_report_reads():
    """A model that follows its conditions in a few of its samples, and draws beyond the data, is found; a good one is not."""
    from xrddiff.data.transforms.values import range_words
    from xrddiff.judge.metrics.conditions import class_answer, judged_facts
    from xrddiff.judge.metrics.judgement import Judgement
    from xrddiff.judge.metrics.verdict import verdict_of
    from xrddiff.learn.telemetry.rules import Evidence, look

    names, held_out = list("0123456789"), 34 * np.eye(10, dtype=int) + np.roll(np.eye(10, dtype=int), 1, 1)
    used = {"condition_use": {"difference": 0.02, "error": 0.001, "frames": 256, "loss": 0.2}}
    drawn = dict(
        frames=100, beyond=60, share_low=0.5, pixels=0.187, lowest=-3.0, highest=12474.0, lower=-3.2, upper=19.2
    )

    def found(right, **words):
        """Findings by rule, and the report's sentences, where `right` of 10 samples of a class are what was asked for."""
        confusion = right * np.eye(10, dtype=int) + (10 - right) * np.roll(np.eye(10, dtype=int), 3, 1)
        answer = class_answer(names, confusion, held_out)
        judgement = Judgement({}, {}, None, 1.0, {"distances": "few"}, answers={"digit": answer}, **words)
        evidence = Evidence(facts=used | judged_facts(judgement))
        rules = look(evidence, "result", ["samples_out_of_range", "condition_ignored"])
        return {f.rule: f.seen for f in rules}, [words for _, words in verdict_of(judgement).lines]

    seen, report = found(3, drawn=drawn)
    assert seen["samples_out_of_range"] == range_words(drawn) and "1.247e+04" in range_words(drawn)
    assert "30% of 100 samples (10% by chance)" in seen["condition_ignored"]
    first, *others = report
    assert all(
        f"{sentence}." in others or f"{sentence[:1].lower()}{sentence[1:]}." in first for sentence in seen.values()
    )
    good = drawn | dict(beyond=2, share_low=0.0055, pixels=2e-5, highest=19.5)
    seen, report = found(8, drawn=good)
    assert seen == {} and f"{range_words(good)}." in report  # said, and no symptom
    assert found(8)[0] == {} and "condition_ignored" in found(1)[0]


def test_a_guessing_classifier_accuses_no_model():
    from xrddiff.judge.metrics.conditions import class_answer, judged_facts
    from xrddiff.judge.metrics.judgement import Judgement
    from xrddiff.learn.telemetry.rules import Evidence, look

    answer = class_answer(["a", "b"], np.array([[10, 10], [10, 10]]), np.array([[6, 5], [5, 6]]))
    facts = judged_facts(Judgement({}, {}, None, 1.0, answers={"kind": answer}))
    assert facts["answers"] and look(Evidence(facts=facts), "result", ["condition_ignored"]) == []


def script_two_ranks(folder):
    """One rank that is slow, and gradients that are large beside the work."""
    from test_training import on_ranks

    def slow(rank):
        def act(step):
            time.sleep(0.03 * rank)

        loader = make_loader(rank=rank, world_size=2)
        train(folder / "slow", ["slow_node", "small_batch"], make_objective(act=act), loader, num_epochs=4)

    def wide(rank):
        loader = make_loader(rank=rank, world_size=2)
        train(folder / "wide", ["communication_bound"], make_objective(wide=20000), loader, num_epochs=2)

    on_ranks(2, slow)
    on_ranks(2, wide)


def test_rules_over_ranks(tmp_path):
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    said = warm.run(__file__, "two_ranks", tmp_path, env=env)
    assert said.returncode == 0, said.stderr
    by_rule = {f.rule: f for f in read_findings(tmp_path / "slow")}
    assert set(by_rule) == {"slow_node"} and "rank 1 on" in by_rule["slow_node"].seen
    assert [f.rule for f in read_findings(tmp_path / "wide")] == ["communication_bound"]
    epochs = read_epochs(tmp_path / "slow")
    assert (epochs.slowest_rank == 1).all() and (epochs.step_seconds_max > 0.03).all()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    globals()[f"script_{sys.argv[1]}"](*map(Path, sys.argv[2:]))
