"""Run folders as somebody with bad intentions, a broken disk or a careless script might leave them.

`hostile_runs(folder, good_run)` copies a good run once for each kind and spoils the copy. Each kind is a function that is
registered below and takes the copy and a `Trap`: what must not be executed, read or asked is told by it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARKUP = "[/red][bold]x[/bold]"
SCRIPT = "<script>alert(1)</script>"
MATH = r"$_$ \frac{1}"
ESCAPE = "\x1b[2J\x1b]0;title\x07"
DEEP = 100_000
DIGITS = "9" * 6000


@dataclass(frozen=True)
class Trap:
    """What a run must not get at.

    `variable`: an environment variable with a secret. `marker`: a file that executed code makes. `server`: host:port
    that must not be asked. `secret`: a file elsewhere on this machine that is nobody's business.
    """

    variable: str = "XRDDIFF_SECRET_OF_TESTS"
    marker: str = "/nonexistent/marker"
    server: str = "127.0.0.1:9"
    secret: str = "/etc/hostname"


Spoil = Callable[[Path, Trap], None]
KINDS: dict[str, Spoil] = {}


def kind(spoil: Spoil) -> Spoil:
    KINDS[spoil.__name__] = spoil
    return spoil


def add(name: str, spoil: Spoil) -> None:
    KINDS[name] = spoil


def clear(path: Path) -> Path:
    """`path`, with nothing there any more, in a folder that is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def text(name: str, content: str | bytes) -> Spoil:
    """The file `name` has this content."""

    def spoil(run: Path, trap: Trap) -> None:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        clear(run / name).write_bytes(data)
        if name.startswith("metrics/") and name.endswith(".csv"):  # which is read if there is no other
            clear((run / name).with_suffix(".json"))

    return spoil


def value(name: str, content: object) -> Spoil:
    return text(name, json.dumps(content))


def config(old: str | None, new: str) -> Spoil:
    """The line of config.yaml that begins with `old`, wherever it is, becomes `new`; without `old`, `new` is appended."""

    def spoil(run: Path, trap: Trap) -> None:
        told = new.format(variable=trap.variable, marker=trap.marker, server=trap.server, secret=trap.secret)
        lines = (run / "config.yaml").read_text().splitlines()
        if old is None:
            lines.append(told)
        else:
            at = next(i for i, line in enumerate(lines) if line.lstrip().startswith(old))
            lines[at] = lines[at][: len(lines[at]) - len(lines[at].lstrip())] + told
        (run / "config.yaml").write_text("\n".join(lines) + "\n")

    return spoil


# ---- things in the place of a file


def pipe(path: Path) -> None:
    os.mkfifo(clear(path))


def zeros(path: Path) -> None:
    clear(path).symlink_to("/dev/zero")


def folder(path: Path) -> None:
    clear(path).mkdir()
    (path / "x").write_text("x")


def nowhere(path: Path) -> None:
    clear(path).symlink_to("nowhere")


def itself(path: Path) -> None:
    clear(path).symlink_to(path.name)


def giant(path: Path) -> None:
    with open(clear(path), "wb") as file:
        file.truncate(3 << 30)  # no blocks on the disk


def noise(path: Path) -> None:
    clear(path).write_bytes(bytes(range(256)) * 40)


def empty(path: Path) -> None:
    clear(path).write_bytes(b"")


PLACES = {
    "config.yaml": (pipe, zeros, folder, nowhere, itself, giant, noise, empty),
    "environment.json": (pipe, zeros, folder, giant, noise, empty),
    "metrics/summary.json": (pipe, zeros, folder, giant, noise),
    "metrics/training_metrics.csv": (pipe, zeros, folder, giant, noise, empty),
    "metrics/epochs.csv": (pipe, giant, noise),
    "metrics/training_metrics.json": (pipe, zeros, folder, giant, noise, empty),
    "metrics/epochs.json": (pipe, giant, noise),
    "metrics/speed.json": (pipe, zeros, noise),
    "metrics/health.json": (pipe, zeros, noise),
    "metrics/report.json": (pipe, zeros, giant, noise),
    "status.json": (pipe, zeros, folder, giant, noise, empty),
    "use.json": (pipe, zeros, giant, noise),
    "log.txt": (pipe, zeros, giant, noise),
    ".lock": (pipe, zeros, folder),
    "stopped.json": (pipe, zeros, noise),
    "report.html": (pipe, zeros, folder),
    "ranks/failed-0000.json": (pipe, zeros, noise),
    "plots/training.png": (pipe, zeros, folder, giant, noise),
    "plugins/manifest.json": (pipe, zeros, noise),
    "checkpoints": (pipe, noise, nowhere, itself),
    "samples": (pipe, noise, itself),
    "claims/00000000": (pipe, zeros),
}
for place, things in PLACES.items():
    for thing in things:
        add(f"{place.replace('/', ' ')} {thing.__name__}", lambda run, trap, p=place, t=thing: t(run / p))

# ---- config.yaml

add(
    "config aliases",
    text(
        "config.yaml",
        "a: &a [x, x]\n"
        + "".join(
            f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
        ),
    ),
)
add("config brackets", text("config.yaml", "a: " + "[" * DEEP))
add("config nested blocks", text("config.yaml", "".join(" " * i + "a:\n" for i in range(600))))
add("config of dashes", text("config.yaml", "a: \n" + "- " * 20_000))
add("config python tag", config("run_name:", "run_name: !!python/object/apply:os.system ['touch {marker}']"))
add("config own tag", config("run_name:", "run_name: !x y"))
add("config binary", config("run_name:", "run_name: !!binary aGVsbG8="))
add("config digits", config("num_epochs:", f"num_epochs: {DIGITS}"))
add("config hexadecimal digits", config("num_epochs:", f"num_epochs: 0x{'f' * 6000}"))
add("config huge", config("num_epochs:", f"num_epochs: 1{'0' * 290}"))
add("config negative", config("num_epochs:", "num_epochs: -5"))
add("config nan", config("num_epochs:", "num_epochs: .nan"))
add("config infinite", config("train_ratio:", "train_ratio: .inf"))
add("config of many keys", text("config.yaml", "".join(f"k{i}: {i}\n" for i in range(100_000))))
add("config a list", text("config.yaml", "[1, 2]"))
add("config a number", text("config.yaml", "42"))
add("config a null byte", text("config.yaml", "\0"))
add("config latin-1", text("config.yaml", "run_name: caf\xe9".encode("latin-1")))
add("config utf-16", text("config.yaml", "run_name: x".encode("utf-16")))
add("config unknown word", config(None, "there_is_no_such_word: 1"))
add("config word of no text", config(None, "? [1, 2]\n: 3"))
add("config sections of other kinds", text("config.yaml", "model: [1]\ntraining: text\ndata: 5\npresets: null\n"))
add("config values of other kinds", config("presets:", "presets: [1, 2]\nunused:"))
add("config mandatory", config("run_name:", "run_name: ???"))
add("config dates", config("run_name:", "run_name: 2024-13-45"))
add("config unknown model", config("model_name:", "model_name: zzz"))
add("config unknown parts", config("denoiser:", "denoiser: nope"))
add("config unknown transform", config("transform:", "transform: nope"))
for place in ("run_name", "data_path", "output_dir", "test_suffix", "geometry"):
    add(f"environment in {place}", config(f"{place}:", f"{place}: 'x${{{{oc.env:{{variable}}}}}}'"))
add("environment in a preset", config("model: ", "model: '${{oc.env:{variable}}}'"))
add("environment in an option", config("transform_options:", "transform_options: {{a: ['${{oc.env:{variable}}}']}}"))
add("environment decoded", config("run_name:", "run_name: '${{oc.decode:${{oc.env:{variable}}}}}'"))
add("environment in an address", config("data_path:", "data_path: 'http://{server}/${{oc.env:{variable}}}'"))
add("address", config("data_path:", "data_path: http://{server}/a.zarr"))
add("address of a bucket", config("data_path:", "data_path: s3://bucket-of-nobody/a.zarr"))
add("address of a tracker", config("tracker_options:", "tracker_options: {{mlflow: {{uri: 'http://{server}'}}}}"))
add("data of another place", config("data_path:", "data_path: '{secret}'"))
add("data a device", config("data_path:", "data_path: /dev/zero"))
add("mask a device", config("mask:", "mask: /dev/zero"))
add("starts with a device", config("init:", "init: /dev/zero"))
add("plug-in a module", config("plugins:", "plugins: [antigravity]\nunused:"))
for name, odd in (("markup", MARKUP), ("script", SCRIPT), ("mathematics", MATH), ("escape codes", ESCAPE)):
    add(f"preset of {name}", config("model: ", f"model: {json.dumps(odd)}".replace("{", "{{").replace("}", "}}")))
    add(f"summary of {name}", value("metrics/summary.json", {odd: {odd: 1.0}, "peak F1": odd}))
    add(
        f"environment of {name}", value("environment.json", {"started": odd, "host": odd, "packages": {"xrddiff": odd}})
    )
    add(f"stopped by {name}", value("stopped.json", {"reason": odd, "time": 0}))
    add(f"log of {name}", text("log.txt", f"{odd}\n" * 50))


@kind
def pipe_as_data(run: Path, trap: Trap) -> None:
    pipe(run / "frames.zarr")
    config("data_path:", f"data_path: {run / 'frames.zarr'}")(run, trap)


@kind
def plugin_as_a_preset(run: Path, trap: Trap) -> None:
    """Code that would be executed if what `presets` says were taken for words."""
    text("evil.py", f"open({trap.marker!r}, 'w')\n")(run, trap)
    config("experiment_type: ", f"plugins: '[{run / 'evil.py'}]'")(run, trap)


@kind
def presets_of_the_run(run: Path, trap: Trap) -> None:
    """A search path within the run, with a preset that asks the environment."""
    text("model/evil.yaml", f"run_name: ${{oc.env:{trap.variable}}}\n")(run, trap)
    config("experiment_type: ", f"hydra.searchpath: '[file://{run}]'")(run, trap)
    config("model: ", "model: evil")(run, trap)


@kind
def kept_plugin(run: Path, trap: Trap) -> None:
    """Code in the run that makes a marker, with a manifest that fits."""
    import hashlib

    code = f"open({trap.marker!r}, 'w')\n".encode()
    text("plugins/own.py", code)(run, trap)
    row = {"name": "own.py", "source": "own.py", "sha256": hashlib.sha256(code).hexdigest()}
    value("plugins/manifest.json", [row])(run, trap)


# ---- JSON of other kinds

JSON = {
    "list": "[1]",
    "number": "1",
    "null": "null",
    "digits": f'{{"started": {DIGITS}, "peak F1": {DIGITS}, "reason": {DIGITS}, "rank": {DIGITS}}}',
    "long number": '{"peak F1": 1' + "0" * 400 + "}",
    "deep": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"a":' * DEEP,
    "surrogate": '{"started": "\\ud800", "reason": "\\udfff", "\\ud800": 1.0}',
    "infinite": '{"peak F1": Infinity, "loss": NaN, "started": -Infinity}',
    "torn": '{"started": "2024',
    "wide": "[" + "[]," * 2_000_000 + "[]]",
}
FILES = {
    "environment.json": tuple(JSON),
    "metrics/summary.json": tuple(JSON),
    "stopped.json": ("list", "digits", "surrogate", "deep"),
    "metrics/health.json": ("list", "number", "deep", "wide"),
    "metrics/report.json": ("list", "null", "deep", "torn", "wide"),
    "ranks/failed-0000.json": ("list", "digits", "deep"),
    "metrics/speed.json": ("list", "deep", "wide"),
    "plugins/manifest.json": ("list", "number", "deep"),
}
for place, names in FILES.items():
    for name in names:
        add(f"{place.replace('/', ' ')} {name}", text(place, JSON[name]))
add("speed of text", value("metrics/speed.json", [{"seconds": "x", "frames": None}, 3]))
add("speed without end", text("metrics/speed.json", '[{"seconds": 1e999, "frames": 1, "ranks": 1, "nodes": 1}]'))
add("health of another kind", value("metrics/health.json", [{"rule": 1, "severity": "worst", "step": "x"}]))
add(
    "summary of texts",
    value("metrics/summary.json", {"peak F1": {"model": "high"}, "radial profile": [1], "loss": None}),
)
add(
    "versions of other kinds",
    value("environment.json", {"packages": [1], "git": 7, "ranks": {}, "started": [1], "host": {}}),
)
add("failure of other kinds", value("ranks/failed-0000.json", {"rank": "x", "time": None, "follows": [], "error": {}}))


@kind
def many_failures(run: Path, trap: Trap) -> None:
    for i in range(3000):
        value(f"ranks/failed-{i:05d}.json", {"rank": i, "time": i, "follows": False, "error": "x"})(run, trap)


@kind
def report_that_leads_out(run: Path, trap: Trap) -> None:
    """The record of a report with a picture elsewhere."""
    section = dict(
        title="../../x", text="x", part="pictures", picture=True, lines=[], table=None, folded={}, remade=False
    )
    value("metrics/report.json", dict(title="x", lead="", sections=[section]))(run, trap)


@kind
def picture_that_leads_out(run: Path, trap: Trap) -> None:
    clear(run / "plots" / "leak.png").symlink_to(trap.secret)


# ---- tables

COLUMNS = "step,epoch,frames,split,lr,loss"
add("table of texts", text("metrics/training_metrics.csv", f"{COLUMNS}\n" + "x,y,z,train,a,b\n" * 9))
add("table ragged", text("metrics/training_metrics.csv", f"{COLUMNS}\n1,2\n1,2,3,train,5,6,7,8,9\n"))
add("table of nulls", text("metrics/training_metrics.csv", b"\0" * 5000))
add("table wide", text("metrics/training_metrics.csv", ",".join(f"c{i}" for i in range(200_000)) + "\n1\n"))
add("table of a quotation", text("metrics/training_metrics.csv", f'{COLUMNS}\n1,1,1,"' + "x" * 300_000))
add(
    "table of infinities",
    text("metrics/training_metrics.csv", f"{COLUMNS}\n1,inf,1,train,nan,inf\n1e400,1,1,train,1,1\n"),
)
add("table of digits", text("metrics/training_metrics.csv", f"{COLUMNS}\n{DIGITS},1,1,train,1,{DIGITS}\n"))
add("table without end", text("metrics/training_metrics.csv", COLUMNS + "x" * 3_000_000))
add("table of two names", text("metrics/training_metrics.csv", f"{COLUMNS},loss,loss\n1,1,1,train,1,1,1,1\n"))
add(
    "epochs of odd numbers",
    text("metrics/epochs.csv", f"epoch,step,loss_mean\n-1,{DIGITS},inf\n0,0,x\n1e300,1e300,1\n"),
)
add("epochs without numbers", text("metrics/epochs.csv", "epoch,step,loss_mean\nx,y,z\n"))
add(
    "bars in the log",
    text("log.txt", "train 50%|x| 1.2.3/9 [00:01<00:01, 1..2step/s]\r" * 50 + f"{DIGITS}/{DIGITS} [1<2, 3step/s]\n"),
)
add("log of names", text("log.txt", b"\xff\xfe\x00" * 1000))

# ---- folders


@kind
def many_checkpoints(run: Path, trap: Trap) -> None:
    for i in range(20_000):
        (run / "checkpoints" / f"step-{i:08d}").mkdir(parents=True, exist_ok=True)


@kind
def checkpoint_of_a_huge_step(run: Path, trap: Trap) -> None:
    (run / "checkpoints" / f"step-{'9' * 200}").mkdir(parents=True, exist_ok=True)


@kind
def folders_that_lead_in_circles(run: Path, trap: Trap) -> None:
    for name in ("checkpoints", "samples", "plots", "autoencoder"):
        (run / name).mkdir(exist_ok=True)
        (run / name / "again").symlink_to(run.parent, target_is_directory=True)


def _checkpoint(run: Path) -> Path:
    return next(iter(sorted((run / "checkpoints").glob("step-*"))))


def _of_checkpoint(name: str, spoil: Callable[[Path], None]) -> None:
    add(f"checkpoint {name}", lambda run, trap: spoil(_checkpoint(run)))


for thing in (pipe, zeros, noise, folder, giant):
    _of_checkpoint(f"manifest {thing.__name__}", lambda path, t=thing: t(path / "manifest.json"))
    _of_checkpoint(f"weights {thing.__name__}", lambda path, t=thing: t(path / "model.safetensors"))
for name in ("list", "deep", "digits", "infinite"):
    _of_checkpoint(f"manifest {name}", lambda path, n=name: clear(path / "manifest.json").write_text(JSON[n]))


def _forge(path: Path, file: str, data: bytes) -> None:
    """Another content for a file of a checkpoint, with a manifest that says so."""
    import hashlib

    manifest = json.loads((path / "manifest.json").read_text())
    clear(path / file).write_bytes(data)
    manifest["files"][file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop("digest", None)
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


_of_checkpoint("forged weights", lambda path: _forge(path, "ema.safetensors", b"\xff" * 64))
_of_checkpoint("forged header", lambda path: _forge(path, "ema.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"))
_of_checkpoint("forged state", lambda path: _forge(path, "state.json", b"[1]"))
_of_checkpoint("forged deep state", lambda path: _forge(path, "state.json", b"[" * DEEP))
_of_checkpoint("forged empty state", lambda path: _forge(path, "state.json", b"{}"))


@kind
def samples_of_pipes(run: Path, trap: Trap) -> None:
    pipe(run / "samples" / "samples.zarr" / "zarr.json")


@kind
def samples_of_brackets(run: Path, trap: Trap) -> None:
    text("samples/samples.zarr/zarr.json", JSON["deep"])(run, trap)


@kind
def samples_of_another_kind(run: Path, trap: Trap) -> None:
    value("samples/samples.zarr/zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {"schema": [1]}})(
        run, trap
    )


# ---- names

NAMES = {
    "name of bytes": os.fsdecode(b"caf\xe9-\xff"),
    "name of markup": "[red]x [bold]y",
    "name of lines": "a\nb\tc",
    "name of escape codes": "\x1b[31mred",
    "name of a script": "<img src=x onerror=alert(1)>",
    "name of mathematics": "run$_$1",
    "name of quotation": "a'b\"c;d|e",
    "name long": "n" * 240,
}


def hostile_runs(folder: Path, good_run: Path, trap: Trap | None = None) -> dict[str, Path]:
    """A run folder of each kind in `folder`, made of the good one: what it is → where it is."""
    trap, found = trap or Trap(), {}
    for i, (name, spoil) in enumerate(KINDS.items()):
        run = found[name] = folder / f"{i:03d}"
        shutil.copytree(good_run, run, symlinks=True)
        spoil(run, trap)
    for name, called in NAMES.items():
        run = found[name] = folder / called
        shutil.copytree(good_run, run, symlinks=True)
    return found
