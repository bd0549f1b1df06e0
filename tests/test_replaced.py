"""What xrddiff replaces is here, word by word: every row of docs/replaced.yaml is tried, and the page has them all."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from test_config import parameters

from xrddiff.app.verbs.jobs import cut_command
from xrddiff.app.verbs.main import build_parser
from xrddiff.app.verbs.verb import parse_words
from xrddiff.config.active_settings import sampling_steps
from xrddiff.config.composition import compose_config
from xrddiff.config.overrides import expand_multirun, presets
from xrddiff.config.plan import resolve
from xrddiff.config.words.vocabulary import GROUPS, get_word, vocabulary
from xrddiff.core.errors import BadInput
from xrddiff.core.registry import entries
from xrddiff.judge.inference.model_from_plan import network_words
from xrddiff.run.slurm.launch import accelerate_config
from xrddiff.run.slurm.profiles import load_profile
from xrddiff.run.slurm.submission import chosen_profile, plan_submission
from xrddiff.run.studies.sweep_file import make_plan

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
from replaced import SAID, differences, documents, replaced_page, rows_of  # noqa: E402

ROWS = [row for document in documents() for row in rows_of(document)]


def same(found, wanted: str) -> bool:
    """Whether a value is what the table says; 1e-4 and 1.0e-4, 8 and "8", are the same."""

    def plain(value):
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        try:
            return value if isinstance(value, bool | None) else float(value)
        except (TypeError, ValueError):
            return value

    return plain(found) == plain(yaml.safe_load(wanted)) or str(found) == wanted


@cache
def composed(words: tuple[str, ...]):
    return compose_config(words)


def all_compose(words: tuple[str, ...]) -> None:
    for run in expand_multirun(words):
        composed(tuple(run))


def word(item: str, row) -> None:
    """`training.lr` or `training.lr=1e-4`, with the words of the section."""
    name, given, value = item.partition("=")
    wanted = value if given else row.value
    assert name in vocabulary(), f"{item} begins like none of {', '.join(SAID)}, and is no word"
    cfg = composed(row.words)
    found = sampling_steps(cfg) if name == "inference.steps" else get_word(cfg, name)
    assert same(found, wanted), f"{name} is {found}"


@cache
def the_parser():
    return build_parser()


@cache
def batch_script(name: str) -> str:
    return plan_submission(
        load_profile(name), ["model=vae_kl", "data=sim128"], shown=True, reserve=False
    ).cluster_script()


def command(words: list[str], row, folder: Path) -> None:
    """Parsed as the command line parses it, with the words in it."""
    parser, last = the_parser(), []
    if words[:2] == ["cluster", "submit"]:
        of_submit = parser.commands["cluster"].commands["submit"]
        own, last = cut_command(words[2:], of_submit, {*parser.commands, *entries("command")})
        words = ["cluster", "submit", *own]
    args = parse_words(parser, words)
    if last:
        parse_words(parser, ["cluster", *last] if last[0] == "comm-test" else last)
    overrides = [] if getattr(args, "script", None) else getattr(args, "overrides", [])
    if overrides and not any(o.startswith("resume=") for o in overrides) and words[0] in ("run", "cluster"):
        all_compose(tuple(overrides))
    if getattr(args, "profile", None):
        fields = ("nodes", "tasks_per_node", "time_limit", "account", "partition", "qos")
        chosen_profile(args.profile, **{f: getattr(args, f, None) for f in fields})


def field(profile, name: str, wanted: str) -> None:
    found = getattr(profile, name)
    assert found if isinstance(found, list) else same(found, wanted), f"{name} is {found}"


def of_profile(rest: str, row) -> None:
    (place, _, wanted) = rest.partition("=")
    name, _, name_of = place.partition(".")
    field(load_profile(name), name_of, wanted or row.value)


def of_environment(rest: str, row) -> None:
    place, _, wanted = rest.partition("=")
    name, _, variable = place.partition(".")
    assert load_profile(name).variables[variable] == (wanted or row.value).replace("$HOME", "{home}")


def of_accelerate(rest: str, row) -> None:
    place, _, key = rest.partition(".")
    name, _, nodes = place.partition("*")
    found = yaml.safe_load(accelerate_config(chosen_profile(name, nodes=nodes or None)))[key]
    assert same(found, row.value) or found == yaml.safe_load(row.value), f"{key} is {found}"


def of_option(rest: str, row) -> None:
    place, _, wanted = rest.partition("=")
    kind, name, option = place.split(".")
    assert same(entries(kind)[name].options[option].default, wanted or row.value)


def of_python(rest: str, row=None):
    module, _, name = rest.partition(":")
    return getattr(importlib.import_module(f"xrddiff.{module}"), name)


def of_default(rest: str, row) -> None:
    function, _, argument = rest.rpartition(".")
    assert same(inspect.signature(of_python(function)).parameters[argument].default, row.value)


def of_parameters(rest: str, row) -> None:
    words, _, count = rest.partition(" ~ ")
    net, _ = parameters(*words.split())
    net = net.transformer if words.startswith("model=diff") else net
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions == pytest.approx(float(count) / 1e6, rel=0.1)


def of_channels(rest: str, row) -> None:
    words, _, widths = rest.partition(" = ")
    cfg = composed(tuple(words.split()))
    model = resolve(cfg).model
    assert list(network_words(model.denoiser, model.autoencoder)["widths"]) == yaml.safe_load(widths)


def of_sweep(rest: str, row) -> None:
    make_plan(yaml.safe_load(rest))


def of_prediction(rest: str, row, capsys) -> None:
    from xrddiff.app.verbs.main import main

    (params, bandwidth), (size, time) = (part.split() for part in rest.split(" = "))
    capsys.readouterr()
    assert main(["cluster", "scaling", "--params", params, "--bandwidth", bandwidth, "--nodes", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{size} MB of gradients" in said and f"= {time} ms" in said


def of_script(rest: str, row) -> None:
    name, _, line = rest.partition(": ")
    assert re.search(rf"^{re.escape(line)}( |$)", batch_script(name), re.M)


def of_yaml(rest: str, row, folder: Path) -> None:
    (file := folder / "mine.yaml").write_text(rest + "\n")
    name, wanted = next(iter(yaml.safe_load(rest).items()))
    assert getattr(load_profile(file), name) == wanted


def try_item(item: str, row, folder: Path, capsys) -> None:
    kind, _, rest = item.partition(" ")
    if kind == "xrddiff":
        command(shlex.split(rest), row, folder)
    elif kind == "words":
        all_compose(tuple(shlex.split(rest)))
    elif kind == "preset":
        group, _, name = rest.partition("=")
        assert name in presets(group)
    elif kind == "presets":
        group, _, name = rest.partition("=")
        assert composed(()).presets[group] == name == row.value and group in GROUPS
    elif kind == "name":
        group, _, name = rest.partition(".")
        assert name in entries(group)
    elif kind == "count":
        assert str(len(entries(rest))) == row.value
    elif kind == "file":
        assert (ROOT / rest).is_file()
    elif kind == "cite":
        assert re.search(rf"^@\w+{{{rest},", (ROOT / "docs" / "references.bib").read_text(), re.M)
    elif kind == "differs":
        assert sum(line.startswith(rest) for line in differences()) == 1, [
            d for d in differences() if d.startswith(rest)
        ]
    elif kind == "yaml":
        of_yaml(rest, row, folder)
    elif kind == "predicts":
        of_prediction(rest, row, capsys)
    elif kind == "artifact":
        return  # in a test of its own, which needs a run
    elif kind in TRIED:
        TRIED[kind](rest, row)
    else:
        word(item, row)


TRIED = dict(
    profile=of_profile, env=of_environment, accelerate=of_accelerate, option=of_option, python=of_python, default=of_default,
    params=of_parameters, channels=of_channels, sweep=of_sweep, script=of_script,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:no effect in this run", "ignore:written differently today")
@pytest.mark.parametrize("document", [d["document"] for d in documents()])
def test_everything_that_is_replaced_is_here(document, tmp_path, capsys, monkeypatch):
    """Each word has the value that it has there, each command is parsed, each file is there; or the row of the differences."""
    monkeypatch.chdir(tmp_path)
    wrong = []
    for row in (r for r in ROWS if r.document == document):
        for item in row.here:
            try:
                try_item(item, row, tmp_path, capsys)
            except (
                AssertionError,
                BadInput,
                KeyError,
                AttributeError,
                ImportError,
                ValueError,
                TypeError,
                SystemExit,
            ) as error:
                wrong.append(f"{row.section}: {row.there}: {item}: {type(error).__name__}: {error}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_files_of_a_run_that_is_replaced(runs):
    """A finished run has the files, and its table of epochs the columns."""
    run = runs("ddpm")
    for row, path in ((r, item[9:]) for r in ROWS for item in r.here if item.startswith("artifact ")):
        file, _, columns = path.partition(":")
        assert (run / file).exists(), f"{row.there}: {file}"
        assert not columns or set(columns.split(",")) <= set((run / file).read_text().splitlines()[0].split(",")), (
            row.there
        )


def test_the_page_of_what_is_replaced_has_every_row():
    page = replaced_page()
    assert len(re.findall(r"^\| ", page, re.M)) == len(ROWS) + 2 * sum(len(d["sections"]) for d in documents())
    assert len({(row.document, row.section, row.there, row.value) for row in ROWS}) == len(ROWS)
    assert f"{len(ROWS)} rows" in page


def test_every_difference_is_named_by_what_it_replaces_once():
    assert len(set(differences())) == len(differences()) > 30
