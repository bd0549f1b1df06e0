"""Studies of somebody who means harm, made from a good one: what opens them says one sentence and executes nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xrddiff.core.files import sealed

EVIL = "from pathlib import Path\nPath({canary!r}).write_text('executed')\n"


def _plan(**change: Any) -> Callable[[Path], None]:
    """Another plan, whose checksum fits."""

    def make(study: Path) -> None:
        plan = json.loads((study / "sweep.json").read_text())
        (study / "sweep.json").write_text(sealed(json.dumps(plan | change)))

    return make


def _raw_plan(text: str) -> Callable[[Path], None]:
    return lambda study: (study / "sweep.json").write_text(text) and None


def _line(**entry: Any) -> Callable[[Path], None]:
    """A further line of the journal, whose checksum fits."""

    def make(study: Path) -> None:
        with open(study / "journal.log", "a") as f:
            f.write(sealed(json.dumps(dict(worker_id="x") | entry)))

    return make


def _claim(content: bytes | None) -> Callable[[Path], None]:
    """A claim on the first trial, which runs; None: a pipe."""

    def make(study: Path) -> None:
        _line(op_code=6, trial_id=0, state=0, values=None, datetime_start="2026-01-01T00:00:00.000000+00:00")(study)
        file = study / "claims" / "0000-7"
        os.mkfifo(file) if content is None else file.write_bytes(content)

    return make


def _pipe(name: str) -> Callable[[Path], None]:
    def make(study: Path) -> None:
        (study / name).unlink(missing_ok=True)
        os.mkfifo(study / name)

    return make


def _link(name: str, to: str) -> Callable[[Path], None]:
    def make(study: Path) -> None:
        place = study / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.symlink_to(to)

    return make


def hostile_studies(
    folder: Path, good_study: Path, canary: Path | None = None, secret: str = "TOKEN"
) -> dict[str, Path]:
    """Hostile studies in `folder`, by name, made from the study `good_study`, which has trials that wait.

    `canary`: the file that their plug-ins would write. `secret`: the variable of the environment that they would read.
    """
    canary = folder / "executed" if canary is None else canary
    evil = EVIL.format(canary=str(canary))
    words = json.loads((good_study / "sweep.json").read_text())["words"]

    def plugin(study: Path) -> None:
        (study / "evil.py").write_text(evil)
        _plan(words=[*words, f"plugins=[{study / 'evil.py'}]"])(study)

    def kept_plugin(study: Path) -> None:
        import hashlib

        plugin(study)
        (study / "plugins").mkdir()
        (study / "plugins" / "evil.py").write_text(evil)
        sha = hashlib.sha256(evil.encode()).hexdigest()
        row = dict(name="evil.py", source=str(study / "evil.py"), sha256=sha)
        (study / "plugins" / "manifest.json").write_text(json.dumps([row]))

    def module(study: Path) -> None:
        (study / "evil_module.py").write_text(evil)
        _plan(words=[*words, "plugins=[evil_module]"])(study)

    def agent_script(study: Path) -> None:
        for name in ("agent.py", "optuna.py", "xrddiff.py", "json.py"):
            (study / name).write_text(evil)

    def shorter(study: Path) -> None:
        (study / "journal.log").write_bytes((study / "journal.log").read_bytes()[:-40])

    def heartbeat(study: Path) -> None:
        (study / "agents").mkdir(exist_ok=True)
        (study / "agents" / "far-1-aaaa.json").write_text(
            sealed(json.dumps(dict(count=1, pid=10**9, place="x", host="[/red]", ended=False, done=0)))
        )
        os.mkfifo(study / "agents" / "far-2-aaaa.json")
        _claim(sealed(json.dumps(dict(agent="../../../etc/far"))).encode())(study)

    lr = json.loads((good_study / "sweep.json").read_text())["parameters"]["training.lr"]
    value = dict(op_code=6, trial_id=0, state=1, datetime_complete="2026-01-01T00:00:00.000000+00:00")
    attr = dict(op_code=8, trial_id=0)
    made: dict[str, Callable[[Path], Any]] = {
        "plugin": plugin,
        "kept_plugin": kept_plugin,
        "module": module,
        "agent_script": agent_script,
        "resolver": _plan(words=[*words, f"data.data_path=${{oc.env:{secret}}}"]),
        "resolver_in_a_value": _plan(
            parameters={"data.data_path": lr | dict(name="data.data_path", values=[f"${{oc.env:{secret}}}"])}
        ),
        "address": _plan(words=[*words, "data.data_path=http://127.0.0.1:9/frames.h5"]),
        "presets_elsewhere": _plan(words=[*words, "hydra.searchpath=[file:///tmp]"]),
        "own_output": _plan(words=[*words, "output_dir=/"]),
        "broken_word": _plan(words=[*words, "[/red]=\x1b[31m"]),
        "unknown_method": _plan(method="os.system", method_options={"command": "true"}),
        "unknown_option": _plan(method_options={"n": 1}),
        "huge_grid": _plan(
            method="grid", parameters={f"training.lr{i}": lr | dict(name=f"training.lr{i}", values=[0.1] * 900) for i in range(9)}
        ),
        "no_range": _plan(parameters={"training.lr": lr | dict(low=2.0, high=1.0)}),
        "markup": _plan(metric="[/red]\x1b[31m<script>", goal="minimize"),
        "deep_plan": _raw_plan("[" * 200_000),
        "long_number": _raw_plan('{"seed": ' + "9" * 6000 + "}"),
        "surrogate": _raw_plan('{"\\ud800": "\\udfff", "words": ["\\ud800"]}'),
        "no_plan": _raw_plan("[1]"),
        "large_plan": _raw_plan(" " * (40 << 20) + "{}"),
        "plan_pipe": _pipe("sweep.json"),
        "plan_device": _link("sweep.json", "/dev/zero"),
        "plan_loop": _link("sweep.json", "sweep.json"),
        "journal_pipe": _pipe("journal.log"),
        "journal_device": _link("journal.log", "/dev/zero"),
        "journal_loop": _link("journal.log", "journal.log"),
        "journal_short": shorter,
        "unknown_operation": _line(op_code=99),
        "deleted_study": _line(op_code=1, study_id=0),
        "operation_of_text": _line(op_code="6", trial_id="0"),
        "unknown_state": _line(op_code=6, trial_id=0, state=17, values=None),
        "many_values": _line(**value, values=[1.0] * 1000),
        "value_of_text": _line(**value, values=["[/red]"]),
        "not_a_number": _line(**value, values=[float("nan")]),
        "long_digits": lambda study: (study / "journal.log").open("a").write('{"op_code": ' + "9" * 6000 + "}\n"),
        "deep_line": lambda study: (study / "journal.log").open("a").write("[" * 100_000 + "\n"),
        "huge_attribute": _line(**attr, user_attr={"reason": "x" * (2 << 20)}),
        "odd_reason": _line(**attr, user_attr={"reason": "[/red]\x1b]0;owned\x07 $_$ <script>"}),
        "surrogate_reason": _line(**attr, user_attr={"reason": "\ud800"}),
        "reason_of_numbers": _line(**attr, user_attr={"reason": [1, {"a": None}]}),
        "odd_ends": _line(**attr, user_attr={"ends": {"times": "many"}}),
        "odd_parameter": _line(
            op_code=5, trial_id=0, param_name="[/red]", param_value_internal=1.0, distribution='{"name": "x"}'
        ),
        "odd_distribution": _line(
            op_code=5, trial_id=0, param_name="training.lr", param_value_internal=9e9,
            distribution='{"name": "CategoricalDistribution", "attributes": {"choices": ["a"]}}',
        ),
        "claim_pipe": _claim(None),
        "large_claim": _claim(b"x" * (10 << 20)),
        "claim_of_path": _claim(b"../../../../etc/passwd"),
        "claim_of_elsewhere": _claim(b"another-host-17-abcd"),
        "claim_not_text": _claim(b"\xff\xfe\x00"),
        "heartbeats": heartbeat,
        "agents_link": _link("agents", "/tmp"),
        "runs_loop": _link("runs", "runs"),
        "logs_link": _link("logs", "/"),
    }  # fmt: skip
    found = {}
    for name, make in made.items():
        study = folder / name
        shutil.copytree(good_study, study)
        make(study)
        found[name] = study
    return found
