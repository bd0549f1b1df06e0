"""A trial without a training: ten "epochs" of 0.05 s, each with a loss, a checkpoint and an orderly end on SIGTERM.

`python toy_trial.py agent FOLDER` is an agent whose trials are such ones; `python toy_trial.py 1 PARENT` is a trial.
"""

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
        with open(table, "a") as f:
            f.write(f"{epoch},{(lr - 1e-3) ** 2 + 1 / epoch!r}\n")
        (run / "checkpoints" / str(epoch)).write_text(str(os.getpid()))
    (run / "metrics" / "summary.json").write_text(json.dumps({"distance": {"toy": (lr - 1e-3) ** 2}, "nothing": None}))
    (run / "report.html").write_text("<p>")
    return 0


if __name__ == "__main__":
    if sys.argv[1] != "agent":
        sys.exit(trial(int(sys.argv[2])))
    from xrddiff.studies import agents

    agents.TRIAL, agents.POLL = (sys.executable, __file__), 0.05
    sys.exit(agents.main(sys.argv[2:]))
