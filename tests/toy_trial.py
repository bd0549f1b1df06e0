"""A trial without a training: ten "epochs" of 0.05 s, each with a loss, a checkpoint and an orderly end on SIGTERM.

`python toy_trial.py agent FOLDER` is an agent whose trials are such ones, `python toy_trial.py crew FOLDER COUNT` the
command that starts COUNT of them; `python toy_trial.py 1 PARENT ATTEMPT` is a trial.

What the seed does: 7 is refused in epoch 3, 8 has an ill training there, 9 kills its own process in every epoch, 10 kills
it in epoch 3, always.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

EPOCHS = 10


def trial(parent: int) -> int:
    job = json.loads(os.environ["XRDDIFF_JOB"])
    run, words = Path(job["run_dirs"][0]), dict(w.split("=", 1) for w in job["overrides"][0])
    for part in ("checkpoints", "metrics", "plots", "samples"):
        (run / part).mkdir(parents=True, exist_ok=True)
    from xrddiff.core.files import write_json

    lock = open(run / ".lock", "w")  # until the process ends
    fcntl.flock(lock, fcntl.LOCK_EX)  # as a run does: whoever was told to end has ended then
    kept = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
    table = run / "metrics" / "epochs.csv"
    if not kept:
        table.write_text("epoch,loss_mean\n")
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    lr, seed = float(words["training.lr"]), int(words["training.seed"])
    for epoch in range(max(kept, default=0) + 1, EPOCHS + 1):
        time.sleep(0.05)
        if stopped or os.getppid() != parent:
            return 75
        if seed == 7 and epoch == 3:
            print("xrddiff: the frames are not there", file=sys.stderr)
            return 2
        if seed == 8 and epoch == 3:
            finding = dict(rule="not_finite", severity="error", epoch=3, step=9, seen="the loss is NaN")
            finding |= {"cause": "", "try": "", "source": "", "until": 3}
            (run / "metrics" / "health.json").write_text(json.dumps([finding]))
            while not stopped:
                time.sleep(0.01)
        if seed == 10 and epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(table, "a") as f:
            f.write(f"{epoch},{(lr - 1e-3) ** 2 + 1 / epoch!r}\n")
        write_json(run / "status.json", dict(pid=os.getpid(), phase="denoiser", step=epoch, epoch=epoch, loss=0.5))
        (run / "checkpoints" / str(epoch)).write_text(str(os.getpid()))
        if seed == 9:
            os.kill(os.getpid(), signal.SIGKILL)
    (run / "metrics" / "summary.json").write_text(json.dumps({"distance": {"toy": (lr - 1e-3) ** 2}, "nothing": None}))
    (run / "report.html").write_text("<p>")
    return 0


if __name__ == "__main__":
    if sys.argv[1] not in ("agent", "crew"):
        sys.exit(trial(int(sys.argv[2])))
    if sys.argv[1] == "agent" and "TOY_AGENTS_DIE" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    from optuna.storages.journal import _file

    from xrddiff.run.studies import agents

    _file.JournalFileOpenLock.__init__.__defaults__ = (
        3,
    )  # s until the lock of an agent that was killed is taken from it
    me = (sys.executable, __file__)
    agents.TRIAL, agents.AGENT, agents.POLL, agents.RESTART = me, (*me, "agent"), 0.05, 0.05
    if sys.argv[1] == "crew":
        agents.RESTARTS = int(os.environ.get("TOY_RESTARTS", "20"))
        sys.exit(agents.run_agents(sys.argv[2], int(sys.argv[3]), *map(int, sys.argv[4:])))
    sys.exit(agents.main(sys.argv[2:]))
