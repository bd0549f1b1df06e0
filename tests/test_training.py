"""The trainer with real processes: several gloo ranks, signals, and kills at random moments.

This file is run as a script, in a process that has imported PyTorch (tests/warm.py), which forks the ranks and the victims: each
is a real process with its own communication, without four seconds of imports for each.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import warm

FRAMES, BATCH = 50, 8


# The toy: a small convolutional denoiser of 8 × 8 frames that are functions of their index.


def make_objective(served=None, act=None, dropout=0.0):
    import torch
    from torch import nn

    from xrddiff.core.seeds import keyed_normal

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.GroupNorm(2, 8),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Conv2d(8, 1, 3, padding=1),
            )
            self.register_buffer("seen", torch.zeros(FRAMES))
            self.register_buffer("fresh", torch.zeros(FRAMES), persistent=False)

        def forward(self, batch, step):
            if act is not None and self.training:
                act(step, batch)
            if served is not None and self.training:
                with open(served, "a") as f:
                    f.write("".join(f"{step} {i}\n" for i in batch["index"].tolist()))
            if self.training:
                self.fresh[batch["index"]] += 1
            noise = 0.3 * keyed_normal((1, 8, 8), 42, "noise", step, index=batch["index"])
            error = (self.model(batch["x"] + noise) - batch["x"]).square().mean((1, 2, 3))
            kl = error.detach() * 0.1
            return {"loss": error + kl, "error": error, "kl": kl}

        def after_step(self, step, sum_):
            self.seen += sum_(self.fresh.clone())
            self.fresh.zero_()

    return Objective()


def make_loader(rank=0, world_size=1, batch_size=BATCH, num_frames=FRAMES, seed=42):
    import numpy as np
    import torch

    from xrddiff.core.seeds import keyed_normal, numpy_rng

    class Loader:
        def __init__(self):
            self.num_frames, self.batch_size, self.rank, self.world_size = num_frames, batch_size, rank, world_size
            self.x = keyed_normal((1, 8, 8), "frames", index=range(num_frames)).cumsum(3)

        def batches(self, epoch, start=0):
            order = numpy_rng(seed, "order", epoch).permutation(num_frames)
            for k in range(start, num_frames, batch_size):
                i = np.array_split(order[k : k + batch_size], world_size)[rank]
                yield {"x": self.x[i], "index": torch.from_numpy(i), "cond": {"i": torch.from_numpy(i)}}

    return Loader()


def train(folder, *, resume=False, served=None, act=None, dropout=0.0, loader=None, validation=True, **options):
    """Train the toy on this process's rank; the result, and the final weights beside it."""
    import torch

    from xrddiff.learn.training.trainer import Trainer

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    options = {
        "max_steps": 50,
        "num_epochs": 100,
        "global_batch_size": BATCH,
        "batch_size": BATCH,
        "lr": 1e-3,
        "lr_schedule": "cosine",
        "lr_warmup_steps": 5,
        "ema_decay": 0.9,
        "log_every": 4,
        "progress": False,
        **options,
    }
    trainer = Trainer(
        make_objective(served and f"{served}-{rank}", act, dropout),
        make_loader(rank, world, **(loader or {})),
        folder,
        validation_loader=make_loader(rank, world, 6, 11, 7) if validation else None,
        **options,
    )
    result = trainer.fit(resume)
    weights = torch.cat([p.detach().flatten() for p in trainer.parameters])
    averages = torch.cat([p.flatten() for p in trainer.averages.ema.averages.values()])
    return trainer, result, torch.cat([weights, averages, trainer.objective.seen])


# Processes. What follows runs inside the script.


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fork(work):
    """Run `work` in a forked process; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import faulthandler

        import torch

        faulthandler.enable()
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def on_ranks(n, work, timeout=120):
    """Run `work(rank)` on n gloo ranks, all of which must succeed."""

    def whole(rank):
        work(rank)
        if n > 1:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()

    ended = end_codes(n, whole, timeout)
    assert ended == [0] * n, f"ranks ended with {ended}"


def end_codes(n, work, timeout=120):
    """Run `work(rank)` on n ranks, which may fail; the exit codes, negative for a signal, None for one that had to be ended."""
    port, pids = free_port(), []
    for rank in range(n):

        def start(rank=rank):
            words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
            os.environ.update({k: str(v) for k, v in words.items()}, MASTER_ADDR="127.0.0.1")
            work(rank)

        pids.append(fork(start))
    ended, deadline = {}, time.monotonic() + timeout
    while len(ended) < n and time.monotonic() < deadline:
        for pid in set(pids) - set(ended):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in set(pids) - set(ended):
        os.kill(pid, signal.SIGABRT)  # it says first where each of its threads is
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [ended.get(p) for p in pids]


def final(folder):
    """The newest checkpoint: its weights, averages and moments as one vector."""
    import torch

    from xrddiff.learn.training.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(folder)
    groups = [checkpoint.tensors(g) for g in checkpoint.groups if g != "rng"]
    return checkpoint, torch.cat([t.flatten().double() for g in groups for _, t in sorted(g.items())])


def script_ranks(folder):
    """1, 2 and 3 ranks; pieces of 2 frames; an uneven last batch (50 = 6·8 + 2: on 3 ranks one share is empty)."""
    import torch

    for n in (1, 2, 3):
        on_ranks(n, lambda r, n=n: train(folder / f"ranks-{n}", served=folder / f"served-{n}"))
    on_ranks(2, lambda r: train(folder / "ranks-pieces", served=folder / "served-pieces", batch_size=2))
    checkpoint, one = final(folder / "ranks-1")
    assert checkpoint.state["samples_seen"] == 7 * FRAMES + 8
    served = sorted((folder / "served-1-0").read_text().splitlines())
    out = {}
    for name, n in (("2", 2), ("3", 3), ("pieces", 2)):
        other, many = final(folder / f"ranks-{name}")
        assert other.state["samples_seen"] == checkpoint.state["samples_seen"]
        out[name] = float((one - many).abs().max())
        torch.testing.assert_close(one, many, rtol=0, atol=1e-5)
        lines = [(folder / f"served-{name}-{r}").read_text().splitlines() for r in range(n)]
        assert sorted(sum(lines, [])) == served  # the same frames at the same step, each once
        rows = [
            json.loads((folder / f"ranks-{k}" / "metrics" / "training_metrics.json").read_text()) for k in ("1", name)
        ]
        assert [(r["step"], r["frames"], r["split"]) for r in rows[0]] == [
            (r["step"], r["frames"], r["split"]) for r in rows[1]
        ]
        for a, b in zip(*rows, strict=True):
            assert abs(a["loss"] - b["loss"]) < 1e-5 * max(1, a["loss"])
    return out


def script_gradients(folder):
    """The gradient of the first step on 1, 2 and 3 ranks, read from AdamW's first moment, is that of the mean loss of the whole batch."""
    from xrddiff.config.train_options import TrainOptions
    from xrddiff.learn.training.checkpoints import load_checkpoint

    beta = TrainOptions().betas[0]
    out = {}
    for n in (1, 2, 3):
        options = {"max_steps": 1, "validation": False, "clip_grad_norm": None, "batch_size": 2}  # pieces of 2 frames
        on_ranks(n, lambda r, n=n, options=options: train(folder / str(n), **options))
    objective = make_objective()
    objective(next(make_loader().batches(0)), 0)["loss"].mean().backward()
    for n in (1, 2, 3):
        moments = load_checkpoint(folder / str(n)).tensors("optimizer")
        out[n] = max(
            float((moments[f"exp_avg/{name}"] / (1 - beta) - p.grad).abs().max() / p.grad.abs().max())
            for name, p in objective.model.named_parameters()
        )
    return out


def script_other_ranks(folder):
    """Stopped at 2 ranks (a signal to one of them), gone on with 1 and with 3: nothing repeated, nothing skipped."""
    import shutil

    import torch

    on_ranks(1, lambda r: train(folder / "whole", served=folder / "served-whole"))

    def stop_one(step, batch):
        if step == 24 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGUSR2)

    def first(rank):
        _, result, _ = train(folder / "part-1", served=folder / "served-part", act=stop_one)
        assert (result.state, result.step) == ("interrupted", 25)
        assert result.reason == "SIGUSR2"  # on both, though one was asked

    on_ranks(2, first)
    shutil.copytree(folder / "part-1", folder / "part-3")
    served = "".join((folder / f"served-part-{r}").read_text() for r in range(2))
    _, one = final(folder / "whole")
    out = {}
    for n in (1, 3):
        on_ranks(n, lambda r, n=n: train(folder / f"part-{n}", resume=True, served=folder / f"served-{n}"))
        _, many = final(folder / f"part-{n}")
        out[n] = float((one - many).abs().max())
        torch.testing.assert_close(one, many, rtol=0, atol=1e-5)
        rest = "".join((folder / f"served-{n}-{r}").read_text() for r in range(n))
        assert sorted((served + rest).split("\n")) == sorted((folder / "served-whole-0").read_text().split("\n"))
    return out


def script_faults(folder):
    """What goes wrong on one rank is one sentence on all: a NaN, a full disk, memory."""
    from xrddiff.core.errors import XrddiffError
    from xrddiff.learn.telemetry.health import Diverged
    from xrddiff.learn.training.trainer import Trainer

    def poison(step, batch):
        if step == 10:
            batch["x"][batch["index"] == bad] = float("nan")

    order = next(make_loader().batches(1, start=24))["index"]  # the batch of step 10
    bad = int(order[-1])  # the last of the batch: rank 1 has it

    def diverge(rank):
        try:
            train(folder / "nan", act=poison)
        except Diverged as e:
            (folder / f"said-{rank}").write_text(str(e))

    on_ranks(2, diverge)
    said = {(folder / f"said-{r}").read_text() for r in range(2)}
    assert len(said) == 1 and "step 11" in (sentence := said.pop()) and f"for frame {bad} " in sentence, said
    assert "'loss' is NaN" in sentence and "checkpoints/step-00000007" in sentence and "one step before" in sentence

    def full(rank):
        import resource

        if rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        try:
            train(folder / "full", validation=False)
        except XrddiffError as e:
            (folder / f"full-{rank}").write_text(str(e))

    on_ranks(2, full)
    said = {(folder / f"full-{r}").read_text() for r in range(2)}
    assert len(said) == 1 and "could not be written" in (full := said.pop()) and "File too large" in full
    assert [p.name for p in (folder / "full" / "checkpoints").iterdir()] == []

    def greedy(rank):
        class Greedy(type(make_objective())):
            def forward(self, batch, step):
                if rank == 1 and len(batch["index"]) > 2:
                    raise RuntimeError("CUDA out of memory.")
                return super().forward(batch, step)

        options = {"max_steps": 9, "global_batch_size": BATCH, "batch_size": 8, "lr": 1e-3, "progress": False}
        trainer = Trainer(Greedy(), make_loader(rank, 2), folder / "greedy", find_batch_size=True, **options)
        assert trainer.fit().state == "finished" and trainer.plan.micro == 2
        assert trainer.objective.seen.sum() == FRAMES + 2 * BATCH  # the trial left no trace in the counts

    on_ranks(2, greedy)
    return sentence


def script_kills(folder, seed):
    """kill -9 at random moments until the run is through: weights, averages, moments and table equal an undisturbed run's bit for bit."""
    rng = random.Random(seed)
    options = {"dropout": 0.2, "checkpoint_every": 3, "max_steps": 60, "ema_tracks": (0.05, 0.1), "ema_snapshots": 7}

    def slow(step, batch):
        time.sleep(0.01)

    pid = fork(lambda: train(folder / "whole", **options))
    assert os.waitpid(pid, 0)[1] == 0
    checkpoint, whole = final(folder / "whole")
    kills, signals = 0, 0
    for attempt in range(200):
        pid = fork(lambda: train(folder / "killed", resume=True, act=slow, **options))
        how = (
            (signal.SIGKILL, signal.SIGKILL, signal.SIGUSR2, signal.SIGKILL, signal.SIGTERM)[attempt % 5]
            if attempt < 15
            else None
        )
        time.sleep(rng.uniform(0.02, 0.25))
        if how:
            os.kill(pid, how)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        kills += status == -signal.SIGKILL
        signals += how in (signal.SIGUSR2, signal.SIGTERM) and status == 0
        if status == 0 and list(
            (folder / "killed" / "checkpoints").glob("step-*")
        ):  # none: stopped before the first step
            ended, weights = final(folder / "killed")
            if ended.state["finished"]:
                break
    import torch

    assert ended.state["finished"] and torch.equal(weights, whole)
    one, two = ((folder / n / "metrics" / "training_metrics.csv").read_bytes() for n in ("whole", "killed"))
    assert one == two
    assert not list((folder / "killed" / "checkpoints").glob(".*"))
    averages = folder / "whole" / "averages"
    kept = sorted(p.relative_to(averages) for p in averages.rglob("*.*"))
    assert len(kept) == 7 * 5 and all(
        (folder / "killed" / "averages" / p).read_bytes() == (averages / p).read_bytes() for p in kept
    )
    return {"kills": kills, "signals": signals}


def script_kill_points(folder, first, stride):
    """kill -9 before the n-th file operation, n = first, first + stride, …: in the middle of a checkpoint, of a rename, of the table, of a removal."""
    import torch

    options = {"checkpoint_every": 2, "max_steps": 4, "keep_checkpoints": 1, "log_every": 2, "validation": False}
    pid = fork(lambda: train(folder / "whole", **options))
    assert os.waitpid(pid, 0)[1] == 0
    _, whole = final(folder / "whole")

    def dying(where, n):
        def work():
            left = [n]

            def hook(event, args):
                if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(where) in str(args[:2]):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            train(where, resume=True, **options)

        return work

    points = 0
    for n in range(first, 500, stride):
        where = folder / f"point-{n}"
        pid = fork(dying(where, n))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            break  # the run has no n-th operation
        assert status == -signal.SIGKILL
        points += 1
        pid = fork(lambda where=where: train(where, resume=True, **options))
        assert os.waitpid(pid, 0)[1] == 0
        _, weights = final(where)
        assert torch.equal(weights, whole), n
        one, two = ((folder / d / "metrics" / "training_metrics.csv").read_bytes() for d in ("whole", where.name))
        assert one == two, n
    return {"points": points}


def make_watcher(log, die_at=None):
    """A callback that does all that is allowed, on every rank, and writes down when it was called."""
    import numpy as np
    import torch

    from xrddiff.learn.training.callbacks import Callback

    class Watcher(Callback):
        ranks = "all"

        def note(self, training, *what):
            assert training.ranks.gather(list(what)) == [list(what)] * training.ranks.size  # all ranks are here
            random.random(), np.random.rand(), torch.rand(3)
            with training.evaluating(average=training.step % 2 == 0) as model:
                assert not model.training and model(torch.randn(1, 1, 8, 8)).isfinite().all()
            with open(f"{log}-{training.ranks.rank}", "a") as f:
                f.write(" ".join(map(str, what)) + "\n")

        def on_step(self, training, record):
            self.note(training, "step", record.step)
            if training.step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_row(self, training, row):
            self.note(training, "row", row["split"], row["step"], row["loss"])

        def on_epoch(self, training, epoch):
            self.note(training, "epoch", epoch)

        def on_checkpoint(self, training, path):
            assert (path / "manifest.json").is_file()
            self.note(training, "checkpoint", path.name)

    return Watcher()


def clockless(state):
    """The state of a checkpoint without the seconds that the training took."""
    epoch = {k: v for k, v in state["history"]["epoch"].items() if not k.endswith("seconds") and k != "waited"}
    return state | {"history": state["history"] | {"epoch": epoch}}


def script_hooks(folder):
    """Every hook on one rank and on two, killed and resumed: weights, averages, moments and table equal those of a training without callbacks."""
    import torch

    from xrddiff.learn.training.callbacks import Callback

    options = {"dropout": 0.2, "max_steps": 20, "checkpoint_every": 6, "ema_tracks": (0.05, 0.1), "ema_snapshots": 1}
    out = {}
    for n in (1, 2):
        plain, watched, log = (folder / f"{name}-{n}" for name in ("plain", "watched", "log"))
        on_ranks(n, lambda r, plain=plain: train(plain, **options))

        def attempt(r, die_at, watched=watched, log=log):
            train(watched, resume=True, callbacks=[make_watcher(log, die_at)], **options)

        assert end_codes(n, lambda r: attempt(r, 15)) == [-signal.SIGKILL] * n  # noqa: B023
        on_ranks(n, lambda r: attempt(r, None))  # noqa: B023
        (one, a), (two, b) = final(plain), final(watched)
        assert torch.equal(a, b) and clockless(one.state) == clockless(two.state)
        assert one.tensors("rng").keys() == two.tensors("rng").keys()
        assert all(torch.equal(t, two.tensors("rng")[k]) for k, t in one.tensors("rng").items())
        tables = [(f / "metrics" / "training_metrics.json").read_text() for f in (plain, watched)]
        assert tables[0] == tables[1]
        called = Path(f"{log}-0").read_text().splitlines()
        assert all(Path(f"{log}-{r}").read_text().splitlines() == called for r in range(n))
        rows = [f"row {row['split']} {row['step']} {row['loss']}" for row in json.loads(tables[0])]
        steps = [f"step {k}" for k in range(1, 21)]
        expected = {*steps, *rows, "epoch 1", "epoch 2", *(f"checkpoint step-{k:08d}" for k in (6, 12, 18, 20))}
        assert set(called) == expected
        again = [line for line in steps if called.count(line) > 1]
        assert again == ["step 13", "step 14", "step 15"]  # since the last checkpoint before the kill
        out[n] = len(called)

    class Defect(Callback):  # on one rank of two
        ranks = "all"

        def on_row(self, training, row):
            if training.ranks.rank == 1:
                raise ZeroDivisionError("a defect")

        def on_epoch(self, training, epoch):
            raise AssertionError("it was switched off")

    class Meddler(Callback):  # on rank 0 alone, as callbacks are
        def on_epoch(self, training, epoch):
            training.objective.model[0].weight.mul_(0.5)

    import warnings

    def with_defect(r):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(folder / "defect", callbacks=[Defect()], **options)
        said = [str(w.message) for w in said if "switched off" in str(w.message)]
        assert len(said) == 1 and ("ZeroDivisionError: a defect" in said[0]) == (r == 1), said

    on_ranks(2, with_defect)
    assert torch.equal(final(folder / "defect")[1], final(folder / "plain-2")[1])

    def meddled(r):
        from xrddiff.core.errors import BadInput

        try:
            train(folder / "meddled", callbacks=[Meddler()], **options)
        except BadInput as e:
            (folder / "said").write_text(str(e))
            raise

    assert end_codes(2, meddled) == [1, 1]
    assert (
        "Meddler.on_epoch changed the training at step 7: model.0.weight was changed" in (folder / "said").read_text()
    )
    return out


def make_altering(adds=0.0, die_at=None):
    """A callback with every hook that alters a step, which remembers something; `adds`: to the weights of rank 1."""
    import torch

    from xrddiff.core.seeds import keyed_normal
    from xrddiff.learn.training.callbacks import Callback

    class Altering(Callback):
        def __init__(self):
            self.norms, self.steps = torch.zeros(2), 0

        def alter_batch(self, training, batch):
            noise = keyed_normal((1, 8, 8), 1, "jitter", training.step, index=batch["index"])
            return {**batch, "x": batch["x"] + 0.1 * noise}

        def alter_losses(self, training, batch, losses):
            return {**losses, "loss": losses["loss"] * (1 + (batch["index"] < 9).to(losses["loss"]))}

        def alter_gradients(self, training, record):
            if training.step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            for p in training.parameters:
                p.grad += 1e-3 * torch.randn_like(p) / (1 + self.norms.mean())
            self.norms[self.steps % 2] = record.norm
            self.steps += 1

        def alter_weights(self, training, record):
            training.parameters[0].clamp_(-0.2, 0.2).add_(adds * training.ranks.rank)

        def state_dict(self):
            return {"norms": self.norms, "steps": self.steps}

        def load_state_dict(self, state):
            self.norms, self.steps = state["norms"], state["steps"]

    return Altering()


def script_altered(folder):
    """Steps that are altered: alike on one rank and two, and in a run that was killed; ranks that drift apart write no checkpoint."""
    import torch

    from xrddiff.core.errors import BadInput

    options = {"dropout": 0.0, "max_steps": 20, "checkpoint_every": 6, "clip_grad_norm": 0.5}
    for n in (1, 2):
        on_ranks(n, lambda r, n=n: train(folder / f"whole-{n}", callbacks=[make_altering()], **options))
    (one, a), (_, b) = final(folder / "whole-1"), final(folder / "whole-2")
    assert "callbacks" in one.groups and one.state["callbacks"] == {"Altering/steps": 20}
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    def attempt(r, die_at):
        train(folder / "killed", resume=True, callbacks=[make_altering(die_at=die_at)], **options)

    assert end_codes(2, lambda r: attempt(r, 15)) == [-signal.SIGKILL] * 2
    on_ranks(2, lambda r: attempt(r, None))
    assert torch.equal(final(folder / "killed")[1], b)

    def apart(r):
        try:
            train(folder / "apart", callbacks=[make_altering(adds=1e-6)], **options)
        except BadInput as e:
            (folder / f"said-{r}").write_text(str(e))

    on_ranks(2, apart)
    said = {(folder / f"said-{r}").read_text() for r in range(2)}
    assert len(said) == 1 and "expected Altering to do the same on all ranks" in said.pop()
    assert not (folder / "apart" / "checkpoints").exists()
    return float((a - b).abs().max())


def run_script(name, *args):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = warm.run(__file__, name, *args, env=env, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# The tests.


@pytest.mark.slow
def test_one_rank_and_many_agree(tmp_path):
    assert max(run_script("ranks", tmp_path).values()) <= 1e-5


@pytest.mark.slow
def test_the_gradient_of_ranks_is_that_of_the_whole_batch(tmp_path):
    assert max(run_script("gradients", tmp_path).values()) < 1e-5


@pytest.mark.slow
def test_resume_on_another_number_of_ranks(tmp_path):
    assert max(run_script("other_ranks", tmp_path).values()) <= 1e-5


@pytest.mark.slow
def test_a_fault_on_one_rank_is_one_sentence_on_all(tmp_path):
    assert "training stopped" in run_script("faults", tmp_path)


@pytest.mark.slow
def test_hooks_change_nothing(tmp_path):
    assert min(run_script("hooks", tmp_path).values()) > 40


@pytest.mark.slow
def test_altered_steps_are_alike_on_ranks_and_resumed(tmp_path):
    assert run_script("altered", tmp_path) <= 1e-5


def test_a_plug_in_clips_gradients_as_the_trainer_does(tmp_path, one_thread):
    import torch

    from xrddiff.config.plan import compose_plan
    from xrddiff.learn.training.callbacks import make_callbacks

    (tmp_path / "mine.py").write_text(
        "from xrddiff.core.registry import register\nfrom xrddiff.learn.telemetry.health import clip_gradients\n"
        "from xrddiff.learn.training.callbacks import Callback\n\n\n"
        '@register("callback")\nclass clip(Callback):\n    """Gradients of a larger norm are scaled down to it."""\n\n'
        "    def __init__(self, norm: float = 1.0):\n        self.norm = norm\n\n"
        "    def alter_gradients(self, training, record):\n"
        "        clip_gradients(training.parameters, self.norm, record.norm)\n"
    )
    words = [f"plugins=[{tmp_path / 'mine.py'}]", "training.callbacks=[clip]", "training.clip_grad_norm=null"]
    own = compose_plan([*words, "training.callback_options={clip: {norm: 0.1}}"]).training.callbacks
    made = make_callbacks(list(own), own)
    _, _, built_in = train(tmp_path / "built-in", max_steps=9, clip_grad_norm=0.1, validation=False)
    _, _, ours = train(tmp_path / "ours", max_steps=9, clip_grad_norm=None, callbacks=made, validation=False)
    _, _, plain = train(tmp_path / "plain", max_steps=9, clip_grad_norm=None, validation=False)
    assert torch.equal(ours, built_in) and not torch.equal(plain, built_in)


def test_a_plug_in_brings_a_callback(tmp_path, one_thread):
    import torch

    from xrddiff.config.composition import compose_config
    from xrddiff.config.plan import compose_plan
    from xrddiff.core.errors import BadInput
    from xrddiff.learn.training.callbacks import make_callbacks

    (tmp_path / "mine.py").write_text(
        "from xrddiff.core.registry import register\nfrom xrddiff.learn.training.callbacks import Callback\n\n\n"
        '@register("callback")\nclass epoch_list(Callback):\n    """A file that lists the epochs."""\n\n'
        '    def __init__(self, name: str = "epochs"):\n        self.name = name\n\n'
        "    def on_epoch(self, training, epoch):\n"
        '        with open(training.folder / self.name, "a") as f:\n            f.write(f"{epoch}\\n")\n'
    )
    words = [f"plugins=[{tmp_path / 'mine.py'}]", "training.callbacks=[epoch_list,steps]"]
    own = compose_plan([*words, "training.callback_options={epoch_list: {name: list}}"]).training.callbacks
    _, _, plain = train(tmp_path / "plain", max_steps=15)
    callbacks = make_callbacks(list(own), own)
    _, _, watched = train(tmp_path / "run", max_steps=15, callbacks=callbacks)
    assert torch.equal(plain, watched) and (tmp_path / "run" / "list").read_text() == "1\n2\n"
    assert len((tmp_path / "run" / "metrics" / "steps.csv").read_text().splitlines()) == 16
    for wrong, says in (
        ("training.callbacks=[epoch_lists]", "did you mean 'epoch_list'"),
        ("training.callback_options={epoch_list: {names: x}}", "has no option 'names'; did you mean 'name'"),
        ("training.callback_options={steps: {every: 0}}", "steps.every: found 0, expected at least 1"),
        ("training.callback_options={other: {}}", "other is not in training.callbacks"),
        ("training.callback_options={steps: 3}", "found 3, expected its options"),
    ):
        with pytest.raises(BadInput, match=says):
            compose_config([*words, wrong])


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    done = run_script("kills", tmp_path, random.randrange(10**6))
    assert done["kills"] >= 2


@pytest.mark.slow
def test_killed_at_file_operations(tmp_path):
    # A third of the 66, another third at another time.
    assert run_script("kill_points", tmp_path, random.randint(1, 3), 3)["points"] > 15


def test_bf16_trains_float32_weights_and_resumes_exactly(tmp_path, one_thread):
    import torch

    options = {"max_steps": 12, "mixed_precision": "bf16", "validation": False}
    trainer, result, whole = train(tmp_path / "a", **options)
    assert result.state == "finished" and trainer.parameters[0].dtype == torch.float32
    train(tmp_path / "b", checkpoint_every=5, keep_checkpoints=5, **options)
    for step in (12, 10):
        os.rename(tmp_path / "b" / "checkpoints" / f"step-{step:08d}", tmp_path / f"moved-{step}")
    _, _, again = train(tmp_path / "b", resume=True, **options)
    assert torch.equal(whole, again)
    _, _, full = train(tmp_path / "c", max_steps=12, validation=False)
    assert 0 < (whole - full).abs().max() < 0.05


def test_only_steps_do_without_subnormal_numbers(tmp_path, one_thread):
    """Where the objective asks for it. What runs between them has them: SciPy's k-d trees crash without."""
    import torch
    from scipy.spatial import cKDTree

    from xrddiff.learn.training.trainer import Trainer

    tiny, seen = torch.tensor(1e-310, dtype=torch.float64), []
    for subnormals in (False, True):
        objective = make_objective(act=lambda step, batch: seen.append((2 * tiny).item() > 0))
        objective.subnormals = subnormals
        words = dict(global_batch_size=BATCH, batch_size=BATCH, lr=1e-3, max_steps=2, progress=False)
        Trainer(objective, make_loader(), tmp_path / str(subnormals), **words).fit()
        assert (2 * tiny).item() > 0
        cKDTree([[0.0]] * 30 + [[1.0]] * 10)
    assert seen == [False, False, True, True]


def test_checkpoints_by_the_clock(tmp_path, one_thread):
    options = {"max_steps": 20, "checkpoint_seconds": 0.05, "keep_checkpoints": None, "validation": False}
    began = time.monotonic()
    train(tmp_path, act=lambda step, batch: time.sleep(0.02), **options)
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").iterdir())
    most = (time.monotonic() - began) / 0.05 + 2  # how many there may be is a matter of how long the steps took
    assert 3 <= len(steps) <= most and steps[-1] == 20


def test_going_on_from_an_earlier_checkpoint_sets_later_ones_aside(tmp_path, one_thread):
    import torch

    options = {"checkpoint_every": 5, "keep_checkpoints": 10, "validation": False}
    _, _, whole = train(tmp_path, max_steps=20, **options)
    _, _, again = train(tmp_path, resume=tmp_path / "checkpoints" / "step-00000005", max_steps=20, **options)
    assert torch.equal(whole, again)
    names = sorted(
        p.name for p in (tmp_path / "checkpoints").iterdir()
    )  # 10 was written anew before 15 and 20 were in the way
    assert names == [
        f"{kind}-{s:08d}" for kind, steps in (("abandoned-step", (15, 20)), ("step", (5, 10, 15, 20))) for s in steps
    ]


def test_a_stop_during_validation_is_made_up_for(tmp_path, one_thread):
    import torch

    from xrddiff.core.ranks.agreement import StopRequest
    from xrddiff.learn.training.trainer import Trainer

    def trainer(name):
        words = {"num_epochs": 2, "batch_size": BATCH, "lr": 1e-3, "log_every": 4, "progress": False}
        return Trainer(
            make_objective(), make_loader(), tmp_path / name, validation_loader=make_loader(0, 1, 6, 11, 7), **words
        )

    whole = trainer("whole")
    assert whole.fit().state == "finished"
    for name, epoch in (("first", 1), ("last", 2)):
        stop = StopRequest()
        cut = trainer(name)
        inner = cut.objective.forward

        def forward(batch, step, cut=cut, stop=stop, inner=inner, epoch=epoch):
            if not cut.objective.training and cut.place.epoch == epoch:
                stop.request("a test")
            return inner(batch, step)

        cut.objective.forward = forward
        result = cut.fit(stop=stop)
        assert (result.state, result.step, result.reason) == ("interrupted", 7 * epoch, "a test")
        rest = trainer(name)
        assert rest.fit(resume=True).state == "finished"
        tables = [(tmp_path / n / "metrics" / "training_metrics.csv").read_text() for n in ("whole", name)]
        assert tables[0] == tables[1]
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters, rest.parameters, strict=True))
        # A finished run is left as it is.
        assert trainer(name).fit(resume=True).state == "finished"


def test_batch_size_may_change_on_resuming(tmp_path, one_thread):
    served = tmp_path / "served"
    train(tmp_path / "run", max_steps=10, served=served)
    _, result, _ = train(
        tmp_path / "run",
        resume=True,
        max_steps=None,
        num_epochs=2,
        served=served,
        global_batch_size=5,
        loader={"batch_size": 5},
    )
    seen = [int(line.split()[1]) for line in Path(f"{served}-0").read_text().splitlines()]
    assert result.samples_seen == 2 * FRAMES and sorted(seen) == sorted([*range(FRAMES)] * 2)


def test_objectives_and_loaders_that_break_their_word(tmp_path, one_thread):
    from xrddiff.core.errors import BadInput
    from xrddiff.learn.training.trainer import Trainer

    def fails(says, objective=None, loader=None, **options):
        words = {"max_steps": 2, "batch_size": BATCH, "progress": False, **options}
        with pytest.raises(BadInput, match=says):
            Trainer(objective or make_objective(), loader or make_loader(), tmp_path, **words).fit()

    scalar, silent, loose = make_objective(), make_objective(), make_objective()
    scalar.forward = lambda batch, step: {"loss": scalar.model(batch["x"]).mean()}
    fails(r"'loss' has shape \(\) for 8 frames", scalar)
    silent.forward = lambda batch, step: {}
    fails("gave no 'loss'", silent)
    loose.head = type(loose.model[0])(1, 1, 1)
    fails("head.weight is trainable but not in objective.model", loose)
    short = make_loader()
    full = short.batches
    short.batches = lambda epoch, start=0: ({**b, "index": b["index"][:-1]} for b in full(epoch, start))
    fails("served 7 frames to rank 0 at step 0; expected 8 of 8", loader=short)
    fails("the loader has no frames", loader=make_loader(num_frames=0))
    fails("fp16, which needs a GPU", mixed_precision="fp16")


if __name__ == "__main__":
    script, where, *rest = sys.argv[1:]
    import torch

    torch.set_num_threads(1)
    # Before the forks, so that none of them has to: the optimiser imports dynamo at its first step.
    import torch._dynamo

    import xrddiff.learn.training.trainer  # noqa: F401

    print(json.dumps(globals()[f"script_{script}"](Path(where), *map(int, rest))))
