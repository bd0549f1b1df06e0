"""Each command of `xrddiff` beside what does the same in Python, for a page of the site; `tests/test_docs.py` reads both."""

from __future__ import annotations

# Command -> (as it is typed, the same in Python). Where there is nothing in Python: (as it is typed, None, the reason).
TWINS: dict[str, tuple] = {
    "run": (
        "xrddiff run model=vae_kl data=sim128 training.num_epochs=2",
        "run = xd.train(model='vae_kl', data='sim128', num_epochs=2)",
    ),
    "sample": (
        "xrddiff sample RUN -n 32 inference=ddim50 --name night",
        "run.sample(32, inference='ddim50', name='night')",
    ),
    "posterior inpaint": (
        "xrddiff posterior inpaint RUN --frames run_17.h5 --mask bad.npy --draws 8",
        "run.inpaint('run_17.h5', 'bad.npy', draws=8)",
    ),
    "posterior interpolate": (
        "xrddiff posterior interpolate RUN run_17.h5:0 run_17.h5:12 -n 9",
        "run.interpolate('run_17.h5:0', 'run_17.h5:12', n=9)",
    ),
    "evaluate": (
        "xrddiff evaluate made.cxi --reference real.cxi --cell lysozyme.pdb",
        "xd.evaluate('made.cxi', 'real.cxi', 'lysozyme.pdb')  # of a run: run.evaluate()",
    ),
    "twin": (
        "xrddiff twin run_17.h5 --cell 79,79,38,90,90,90 -n 200",
        "xd.twin('run_17.h5', '79,79,38,90,90,90').frames(200)",
    ),
    "recover": (
        "xrddiff recover run_17.h5 --cell lysozyme.pdb --program classical",
        "xd.recover(xd.twin('run_17.h5', 'lysozyme.pdb'), ['classical'])",
    ),
    "merge": (
        "xrddiff merge run_17.h5 --cell lysozyme.pdb -o merged",
        "xd.merge('run_17.h5', 'lysozyme.pdb', output='merged')",
    ),
    "posterior pixels": (
        "xrddiff posterior pixels RUN --frames run_17.h5 --mask valid.npy --hold-out 0.1",
        "run.posterior('run_17.h5', 'valid.npy', hold_out=0.1)",
    ),
    "posterior crystal": (
        "xrddiff posterior crystal still.cxi --cell lysozyme.pdb --frame 3",
        "xd.crystal_posterior('still.cxi', 3, 'lysozyme.pdb')",
    ),
    "stream": (
        "xrddiff stream tcp://detector:9999 --run RUN --idle 60",
        "xd.stream('tcp://detector:9999', run=run, idle=60)",
    ),
    "data replay": (
        "xrddiff data replay run_17.h5 tcp://127.0.0.1:9999 --rate 100",
        "xd.replay('run_17.h5', 'tcp://127.0.0.1:9999', rate=100)",
    ),
    "runs report": ("xrddiff runs report RUN", "run.rewrite_report()  # the one that is there: run.report"),
    "export": ("xrddiff export RUN --format onnx -o model", "run.export('onnx', 'model')"),
    "data list": ("xrddiff data list", "xd.list_data()"),
    "data fetch": ("xrddiff data fetch sim-422", "xd.fetch('sim-422')"),
    "data simulate": (
        "xrddiff data simulate my.pdb --detector frame.cbf -n 100 -o shots.h5 --mosaicity 0.1",
        "xd.simulate('my.pdb', 100, 'shots.h5', detector='frame.cbf', mosaicity=0.1)",
    ),
    "data inspect": ("xrddiff data inspect run_17.h5 wavelength=1.3", "xd.inspect('run_17.h5', wavelength=1.3)"),
    "data mask": ("xrddiff data mask run_17.h5 -o mask.npy", "xd.mask('run_17.h5').save('mask.npy')"),
    "data index": (
        "xrddiff data index run_17.h5 --cell lysozyme.pdb",
        "xd.index(xd.open_frames('run_17.h5'), 'lysozyme.pdb')",
    ),
    "data convert": ("xrddiff data convert run_17.cbf run_17.cxi", "xd.convert('run_17.cbf', 'run_17.cxi')"),
    "config check": ("xrddiff config check mine.py", "xd.check('mine.py')"),
    "config show": (
        "xrddiff config show model=ddpm size=small",
        "xd.settings(model='ddpm', size='small')  # of a run: xd.settings(run)",
    ),
    "config diff": ("xrddiff config diff RUN_A RUN_B", "xd.settings_diff(one, other)"),
    "config list": ("xrddiff config list sampler", "xd.names('sampler')  # of presets: xd.presets('size')"),
    "config completion": (
        "xrddiff config completion bash",
        None,
        "it is for a shell; a notebook completes Python by itself",
    ),
    "runs watch": ("xrddiff runs watch RUN", "xd.monitor('RUN')"),
    "cluster submit": (
        "xrddiff cluster submit --profile medium model=latent_diff",
        "xd.submit(model='latent_diff', profile='medium')",
    ),
    "cluster status": ("xrddiff cluster status", "xd.status()  # as a widget: xd.jobs()"),
    "cluster logs": ("xrddiff cluster logs 4711 --lines 100", "xd.logs(4711, 100)"),
    "cluster cancel": ("xrddiff cluster cancel 4711", "xd.cancel(4711)"),
    "cluster resume": (
        "xrddiff cluster resume 4711 training.max_steps=20000",
        "xd.resume(4711, max_steps=20000)  # in this process: run.resume()",
    ),
    "cluster profiles": ("xrddiff cluster profiles", "xd.profiles()"),
    "cluster comm-test": (
        "xrddiff cluster comm-test",
        None,
        "it measures messages between the ranks of a job, and a notebook is one process",
    ),
    "cluster scaling": (
        "xrddiff cluster scaling --params 50M --bandwidth 25",
        None,
        "a calculation: the functions of `core.ranks.scaling`, as in the tutorial on clusters",
    ),
    "cluster accelerate-config": (
        "xrddiff cluster accelerate-config medium",
        None,
        "it writes a file for `accelerate launch`, which is a command",
    ),
    "runs list": ("xrddiff runs list output", "xd.runs('output')"),
    "runs compare": ("xrddiff runs compare output", "xd.compare_runs('output')"),
    "sweep": (
        "xrddiff sweep search.yaml --agents 2",
        "xd.sweep('search.yaml', agents=2)  # its progress: xd.open_sweep(FOLDER)",
    ),
    "lab": ("xrddiff lab", None, "it starts JupyterLab, where Python is already"),
}


def twins_page(about: dict[str, str]) -> str:
    """The page. `about`: what each command does, in one line."""
    from generated import code, table

    rows = []
    for command, (typed, python, *reason) in TWINS.items():
        call, _, more = (python or "").partition("  # ")
        words = f"{about[command]}{'<br>' if more else ''}{_more(more)}" if python else about[command]
        rows.append((code(typed), code(call) if python else f"none: {reason[0]}", words))
    lines = [
        "# Commands in Python",
        "",
        "Whatever a command does, a notebook does in a line: `import xrddiff as xd`, and `run = xd.open_run(FOLDER)` for a run. The words are the "
        "same, as keywords; the last part of a word is enough where it is clear. What a command prints is what is returned: frames, a table, a run, "
        "the path of a page. A bar shows what takes long, unless `progress=False`. A mistake is `xd.BadInput`, with the sentence of the command. "
        "In a shell, `python -m xrddiff` is `xrddiff`.",
        "",
        table(["command", "in Python", "what it does"], rows),
        "",
    ]
    return "\n".join(lines)


def _more(text: str) -> str:
    """A note after a call: words, then a call as code."""
    words, _, call = text.rpartition(": ")
    return f"{words}: `{call}`" if words else ""
