"""A study of somebody else: it executes nothing that this user has not named, leaks nothing, and says one sentence."""

from __future__ import annotations

import random
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from hostile_studies import hostile_studies

from xrddiff.app.verbs.main import main
from xrddiff.core import plugins
from xrddiff.core.errors import BadInput
from xrddiff.core.files import json_digest
from xrddiff.run.studies import agents, journal
from xrddiff.run.studies import study as studies
from xrddiff.run.studies.consent import allow_plan, read_plan
from xrddiff.run.studies.study import (
    Agent,
    complete_trial,
    living_agents,
    make_study,
    open_study,
    take_trial,
    trial_rows,
)
from xrddiff.run.studies.sweep_file import make_plan

SECRET = "never-in-a-file-4711"
SWEEP = {
    "method": "random",
    "metric": {"name": "distance"},
    "run_cap": 3,
    "words": ["training.seed=0"],
    "parameters": {"training.lr": {"min": 1e-5, "max": 1e-2, "distribution": "log_uniform"}},
}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A user whose state is their own, and files whose damage is not waited for."""
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "state"))
    for name in (plugins.TRUST, "XRDDIFF_ADDRESSES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(journal, "SETTLE", 0.0)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    make_study(make_plan(SWEEP), tmp_path / "good")
    shutil.rmtree(tmp_path / "state")  # it is somebody else's
    (tmp_path / "studies").mkdir()
    found = hostile_studies(tmp_path / "studies", tmp_path / "good", tmp_path / "executed", "XRDDIFF_SECRET")
    monkeypatch.setenv("XRDDIFF_SECRET", SECRET)
    monkeypatch.setattr(studies, "PATIENCE", 0.0)  # nobody of these lives
    return found


def sentences(text: str, most: int) -> None:
    assert "Traceback" not in text and SECRET not in text and "\x1b" not in text and "\x07" not in text, text
    lines = [line for line in text.splitlines() if line]
    assert len(lines) <= most and all(line.startswith("xrddiff: ") for line in lines), text


def test_commands_that_look_at_them(hostile, tmp_path, capsys):
    """`status`, `best`, `runs` and `compare`: what can be shown is shown, what cannot is one sentence."""
    refused = set()
    for name, study in hostile.items():
        for words in (["status"], ["best"]):
            code = main(["sweep", words[0], str(study), *words[1:], *(["--json"] if name < "j" else [])])
            said = capsys.readouterr()
            sentences(said.err, 3)  # a note for a damaged claim and for each damaged heartbeat
            why = [line for line in said.err.splitlines() if not line.startswith("xrddiff: note: ")]
            assert (code, len(why)) in ((0, 0), (2, 1)), (name, said.err)
            assert SECRET not in said.out and "\x1b" not in said.out and len(said.out) < 20_000
            refused |= {name} if code and words == ["status"] else set()
    for words, expected in (["runs", "list", str(study.parent)], 0), (["runs", "compare", str(study.parent)], 2):
        code = main(words)
        sentences(capsys.readouterr().err, 1)
        assert code == expected
    assert not (tmp_path / "executed").exists()
    assert {"plan_pipe", "journal_device", "deep_plan", "large_plan", "unknown_operation", "huge_attribute"} <= refused
    assert refused.isdisjoint({"plugin", "kept_plugin", "address", "resolver", "claim_pipe", "odd_reason"})


def test_agents_that_are_added_to_them(hostile, tmp_path, monkeypatch, capsys):
    """Nothing is executed, nothing of the environment is written, no file elsewhere is touched."""
    monkeypatch.setattr(agents, "TRIAL", (sys.executable, "-c", "raise SystemExit('xrddiff: no data')"))
    monkeypatch.setattr(agents, "POLL", 0.01)
    refused = {}
    for name, study in hostile.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                agents.work(study, 1, linger=False)
            except BadInput as error:
                assert "\n" not in str(error) and SECRET not in str(error) and len(str(error)) < 1000, name
                refused[name] = str(error)
    assert not (tmp_path / "executed").exists()
    texts = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 1 << 20]
    assert not any(SECRET.encode() in p.read_bytes() for p in texts)
    for name, why in {
        "plugin": "keeps no copy of it",
        "kept_plugin": "needs the plug-in evil.py",
        "module": "keeps no copy of it",
        "resolver": "asks for a value from elsewhere",
        "resolver_in_a_value": "asks for a value from elsewhere",
        "address": "you did not start",
        "presets_elsewhere": "which you have not named",
        "own_output": "output_dir is the sweep's to choose",
        "unknown_method": "os.system",
        "agents_link": "is a link",
        "logs_link": "is a link",
        "runs_loop": "is a link",
    }.items():
        assert why in refused[name], (name, refused.get(name))
    assert "agent_script" not in refused and "claim_pipe" not in refused  # they go on
    for words in (["sweep", str(hostile["kept_plugin"])], ["sweep", str(hostile["plugin"]), "--trust-plugins"]):
        assert main(words) == 2
        sentences(capsys.readouterr().err, 1)
    assert not (tmp_path / "executed").exists()


def test_plugins_of_a_study_are_those_it_was_begun_with(tmp_path, monkeypatch):
    """Its copy is executed by whoever began it, and by nobody else unless they trust it."""
    file, canary = tmp_path / "mine.py", tmp_path / "loaded"
    file.write_text(f"open({str(canary)!r}, 'a').write('x')\n")
    monkeypatch.setattr(plugins, "_executed", {})
    with plugins.plugin_scope():
        study = make_study(make_plan(SWEEP | {"words": [f"plugins=[{file}]"]}), tmp_path / "study").folder
    file.unlink()

    def fresh(state: str, **options):
        """As a new process of this user, or of another one."""
        monkeypatch.setattr(plugins, "_executed", {})
        monkeypatch.delenv(plugins.TRUST, raising=False)
        monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / state))
        before = canary.read_text()
        try:
            with plugins.plugin_scope():
                allow_plan(study, read_plan(study).plan, **options)
        finally:
            fresh.executed = canary.read_text() != before

    fresh("state")
    assert fresh.executed
    with pytest.raises(BadInput, match="needs the plug-in mine.py"):
        fresh("other")
    assert not fresh.executed
    fresh("other", trust=True)
    assert fresh.executed
    (study / "plugins" / "mine.py").write_text(canary.read_text())
    for state, options in (("state", {}), ("other", {"trust": True})):
        with pytest.raises(BadInput, match="is not the plug-in that the run was made with"):
            fresh(state, **options)
        assert not fresh.executed


def test_flipped_bits_of_a_study_are_never_silent(tmp_path):
    """500 bits of plan, journal, claims and heartbeats: refused, noted, or without effect on what is read."""
    made = make_study(make_plan(SWEEP), tmp_path / "study")
    with Agent(made.folder, "one-1-aaaa") as agent:
        complete_trial(made, take_trial(made, agent).number, 0.25)
        take_trial(made, agent)

    def state() -> str:
        study = open_study(made.folder)
        read = {name: study.watchman.read(name).count for name in study.watchman.names()}
        return json_digest([study.plan.to_json(), trial_rows(study), living_agents(study), read])

    good, chance, found = state(), random.Random(0), {"refused": 0, "noted": 0, "same": 0}
    files = [p for part in ("sweep.json", "journal.log", "claims/*", "agents/*.json") for p in made.folder.glob(part)]
    assert len(files) == 5
    for _ in range(500):
        file = chance.choice(files)
        whole = file.read_bytes()
        bit = chance.randrange(8 * len(whole))
        file.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                same = state() == good
                assert same or noted, (file.name, bit)
                found["same" if same else "noted"] += 1
            except BadInput as error:
                assert "\n" not in str(error)
                found["refused"] += 1
        file.write_bytes(whole)
    assert found["same"] < 15 and found["refused"] > 150 and found["noted"] > 150, found


def test_jobs_execute_no_file_of_the_study(tmp_path):
    """What waits in a queue is a command of this package: who can write to the folder cannot change what it does."""
    from xrddiff.run.slurm.profiles import load_profile

    study = make_study(make_plan(SWEEP), tmp_path / "study")
    plan = agents.plan_swarm(study, load_profile("small"), 2)
    assert plan.job.kind == "command" and plan.job.argv[:2] == ["agent", str(study.folder)] and plan.job.script is None
    assert not list(Path(study.folder).glob("*.py"))
