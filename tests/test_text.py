"""Names of anybody in every medium: they come out as the text that they are, in terminals, figures, pages, Markdown, tables, notebooks and commands."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import subprocess
import types
from html.parser import HTMLParser

import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from xrddiff.app.verbs.main import main
from xrddiff.config.composition import compose_config
from xrddiff.config.plan import resolve
from xrddiff.config.saved_config import to_yaml
from xrddiff.core import text as mediums
from xrddiff.core.files import package_folder, take_checksum, write_json, write_text
from xrddiff.core.templates import render
from xrddiff.core.text import for_terminal, plain_text
from xrddiff.data.frames.frames import make_frames
from xrddiff.judge.views.plots import png
from xrddiff.judge.views.report import Report, Section, shown_section

ODD = {
    "formula": "run$_$1",
    "no formula": r"$\frac$",
    "markup": "[/red]x",
    "link of a terminal": "[link=javascript:alert(1)]x",
    "escape codes": "\x1b[31mred\x1b]0;title\x07",
    "C1 control": "a\x9b2Jb",
    "surrogate": "a\ud800b",
    "not UTF-8": "run\udcff",
    "element": "<script>alert(1)</script>",
    "attribute": "\"'><img src=x onerror=alert(1)>",
    "entity": "&lt;script&gt; &#106;",
    "cell": "a|b\\|c",
    "lines": "a\n# b\n\n- c\r",
    "fence": "`x` ```",
    "link": "[x](javascript:alert(1)) ![y](z) <javascript:a> http://x.y",
    "bidi": "\u202egpj.exe\u2066",
    "hidden": "_hidden_",
    "cell formula": "=cmd|' /C calc'!A0",
    "template": "{{ 7*7 }}{% x %}",
    "emphasis": "~~a~~ *b* __c__ 1. d",
    "heading": "# d",
    "emoji code": ":warning: 日本 🔬",
    "quotes": 'it\'s "x" $(y) \\',
}
names = pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
FILES = {about: odd for about, odd in ODD.items() if "/" not in odd and about != "surrogate"}
DRAWN = ["formula", "no formula", "surrogate", "hidden"]  # what matters to figures, which take a while


def some(*about: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("odd", [ODD[a] for a in about], ids=about)


def harmless(text: str) -> bool:
    """Whether a terminal shows every character of it."""
    return all(plain_text(line) == line for line in text.split("\n"))


# Terminal


@names
def test_a_terminal_shows_what_a_name_is(odd):
    from rich.table import Table

    table = Table(odd, title=odd)
    table.add_column(for_terminal(odd))
    table.add_row(odd, for_terminal(odd, style="red"))
    out = io.StringIO()
    mediums.console(width=200, file=out).print(table, odd, for_terminal(odd))
    mediums.say(odd, file=out)
    mediums.complain(odd, file=out)
    assert harmless(out.getvalue())
    assert out.getvalue().count(plain_text(odd)) >= 3  # as a cell of its own it keeps to one line


def test_colours_of_our_own_still_reach_a_terminal():
    out = io.StringIO()
    screen = mediums.console(width=80, file=out, force_terminal=True, color_system="standard")
    screen.print(for_terminal("\x1b[32mx", style="red"))
    assert out.getvalue() == "\x1b[31m\\x1b[32mx\x1b[0m\n"


def test_a_log_keeps_its_colours_and_nothing_else(tmp_path, capsys, monkeypatch):
    from xrddiff.run.slurm import logs

    (tmp_path / "log.txt").write_text("\x1b[31mred\x1b[0m\x1b]52;c;eA==\x07\x1b[2J\n")
    run = types.SimpleNamespace(submission=None, task=None, run_dir=tmp_path, id="run", slurm_id=None)
    logs.show_logs(run)
    assert capsys.readouterr().out == "red\\x1b]52;c;eA==\\x07\\x1b[2J\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    logs.show_logs(run)
    assert capsys.readouterr().out == "\x1b[31mred\x1b[0m\\x1b]52;c;eA==\\x07\\x1b[2J\n"


@some("formula", "no formula", "C1 control", "not UTF-8", "lines")
def test_the_tables_of_files(odd, tmp_path, capsys, monkeypatch):
    """`data inspect` and `data mask` of a file of that name, which draw pictures too."""
    monkeypatch.chdir(tmp_path)
    name = os.fsencode(f"{odd}.npy") if "\udcff" in odd else f"{odd}.npy"
    with open(name, "wb") as file:
        np.save(file, np.random.default_rng(0).poisson(5, (2, 24, 32)))
    words = ["wavelength=1.3", "distance=0.1", "pixel_size=1e-4", "beam_center=[16,12]"]
    for command in (["inspect"], ["mask"]):
        code = main(["data", *command, f"./{os.fsdecode(name)}", *words])
        out, err = capsys.readouterr()
        assert harmless(out) and harmless(err) and "Traceback" not in err
        assert code == 0, err
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_arrays_and_labels_of_a_file(tmp_path, capsys):
    """Names, values and units inside of an HDF5 file."""
    file = tmp_path / "odd.h5"
    with h5py.File(file, "w") as f:
        f["entry/data"] = np.random.default_rng(0).poisson(5, (2, 24, 32)).astype(np.uint16)
        for i, odd in enumerate(ODD.values()):
            text = odd.encode("utf-8", "surrogateescape" if "\udcff" in odd else "surrogatepass")
            f[f"other/{i}"] = np.bytes_(text)
            f[f"other/{i}"].attrs["units"] = np.bytes_(text)
            if "/" not in odd and odd.isascii():
                f.create_dataset(f"other/{odd}", data=[i, i])
    main(["data", "inspect", str(file), "--no-png", "dataset=/entry/data"])
    out, err = capsys.readouterr()
    assert harmless(out) and harmless(err) and "[/red]x" in out and "= [link=javascript:alert" in out


@names
def test_an_error_shows_what_a_name_is(odd, capsys):
    code = main(["data", "inspect", f"./nothing/{odd}.npy"])
    out, err = capsys.readouterr()
    assert code == 2 and harmless(out) and harmless(err) and all(x.startswith("xrddiff: ") for x in err.splitlines())


def test_a_name_that_is_not_utf8_in_a_process(tmp_path):
    """Standard output is strict in a process of its own."""
    import sys

    np.save(tmp_path / os.fsdecode(b"run\xff.npy"), np.ones((1, 8, 8), np.uint16))
    code = "import sys, warnings; from xrddiff.app.verbs.main import command_line; sys.argv[1:] = ['data', 'inspect', sys.argv[1]]; command_line()"
    words = [sys.executable, "-c", code, b"run\xff.npy"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr and rb"run\xff.npy" in done.stdout


# Commands and data


@names
def test_a_shell_reads_the_words_that_were_meant(odd):
    line = mediums.for_shell([odd, "b c"])
    assert harmless(line) and "\n" not in line
    if "\ud800" in odd:  # no file and no argument can have it
        return
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(odd) + b"\0b c\0"


@names
def test_json_keeps_what_a_name_is(odd, tmp_path):
    """Only halves of surrogate pairs, which the gate refuses, become text."""
    kept = plain_text(odd) if re.search("[\ud800-\udfff]", odd) else odd
    for text in (mediums.for_json({odd: [odd, 1.5]}), write_json(tmp_path / "x.json", {odd: [odd, 1.5]}).read_text()):
        value = json.loads(text)
        assert take_checksum(value) in (None, True) and value == {kept: [kept, 1.5]} and harmless(text.rstrip())
    assert write_text(tmp_path / "x.txt", odd).read_bytes()  # no UnicodeEncodeError, whatever it is


def test_no_cell_of_a_table_is_a_formula():
    from xrddiff.run.studies.listing import RunRow, runs_csv

    rows = [RunRow(odd, odd, odd, odd, value=-1.0, note=odd) for odd in (*ODD.values(), "+1", "-1", "@x", "\t=1")]
    text = runs_csv(rows)
    cells = list(csv.reader(io.StringIO(text)))
    at = cells[0].index("value")
    assert len(cells) == 1 + len(rows) and all(row[at] == "-1.0" for row in cells[1:])
    assert not any(c[:1] in "=+@-\t\r" for row in cells for i, c in enumerate(row) if c and i != at)


# Figures


def dataset(**attrs) -> object:
    return make_frames(np.random.default_rng(0).poisson(5.0, (3, 24, 32)).astype(np.float32), **attrs)


def frames_of(odd: str) -> object:
    ds = dataset(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(16.0, 12.0))
    ds["intensity"].attrs["units"] = odd
    return ds


def _set_summary():
    from xrddiff.judge.metrics.set_summaries import LEVELS

    class Set(types.SimpleNamespace):
        def __len__(self) -> int:
            return 4

    histogram = np.ones((4, len(LEVELS) - 1))
    return Set(
        within=[np.ones(3)], peaks=np.arange(4), radii=np.arange(5.0), profile=np.ones((4, 5)), histogram=histogram
    )


def figures(odd: str):
    """A figure of each function that draws a name, with the axes that have it."""
    from xrddiff.app.widgets import widget_base as shown
    from xrddiff.app.widgets.canvas import CanvasImage, draw_pictures
    from xrddiff.core.ranks.scaling import plot_scaling
    from xrddiff.judge.views import charts, latent_map, masks, plots, samples
    from xrddiff.judge.views import twins as comparison
    from xrddiff.run.studies import comparison as runs

    ds, several = frames_of(odd), {odd: 1, "b": 2}
    peaks = pd.DataFrame({"fs": [3.0], "ss": [4.0]})
    yield plots.show_frame(ds, 0, title=odd).figure
    yield plots.show_peaks(ds, 0, {odd: peaks}).figure
    yield plots.compare_frames(ds, ds, 1, names=(odd, odd))
    yield charts.plot_history(pd.DataFrame({"step": [1, 2], "split": [odd, odd], odd: [1.0, 2.0]}), [odd])
    yield charts.plot_profiles({odd: ([1, 2], [3, 4])}, unit=odd).figure
    yield charts.plot_peak_scores({odd: {"f1": 0.5, "centroid_px": 1.0}}).figure
    yield latent_map.plot_latent_map(np.eye(2), np.arange(2), [odd, "b"], label=odd, axes=(odd, odd)).figure
    yield latent_map.plot_latent_map(np.eye(2), np.arange(2.0), label=odd).figure
    yield latent_map.show_codes(np.ones((2, 4, 4)), np.ones(2), unit=odd)
    yield samples.show_samples(ds, ds, 1, names=(odd, odd))
    yield samples.plot_distribution(dict.fromkeys(several, _set_summary()), unit=odd)
    yield samples.plot_ratios(pd.DataFrame({odd: [1.0]}, index=[odd]), [odd]).figure
    yield masks.show_mask(ds, np.ones((24, 32), np.uint8), title=odd)
    yield comparison.show_sets({odd: ds}, 2)
    yield comparison.plot_lattice_shares({odd: pd.DataFrame({"on_lattice": [0.5, 0.6]})})
    history = pd.DataFrame({"step": [1, 2], "split": "train", "loss": [1.0, 2.0]})
    yield runs.plot_curves({odd: history, "b": history}, {odd: odd, "b": odd})
    yield runs.show_shared(runs.SharedFrames(odd, odd, [0, 1], {odd: ds}))
    table = pd.DataFrame({odd: [odd, "b"]}, index=[odd, "b"])
    yield runs.plot_parallel(table, pd.DataFrame({f"{odd}2": [1.0, 2.0]}, index=table.index))
    yield plot_scaling({odd: pd.DataFrame({"nodes": [1, 2], "efficiency": [1.0, 0.9]})}).figure
    yield shown.draw_lines([odd], odd)
    yield draw_pictures([CanvasImage(odd, np.ones((8, 8)))], limits=(0, 2))


@some(*DRAWN)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_draw_what_a_name_is(odd):
    """Nothing is taken for a formula, and no name is left out of a legend."""
    from matplotlib.text import Text

    count = 0
    for figure in figures(odd):
        count += 1
        assert png(figure).startswith(b"\x89PNG")
        own = [t for t in figure.findobj(Text) if re.sub(r"\W", "", plain_text(odd)) in re.sub(r"\W", "", t.get_text())]
        assert own, (count, figure)
        for text in own:
            shown, formula = text._preprocess_math(text.get_text())
            assert not formula and harmless(shown)
    assert count == 21


# HTML


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.scripts, self.found, self.links, self.text = 0, [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.found += [name for name, _ in attrs if name.startswith("on")]
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "action", "formaction")]
        self.found += [tag] if tag in ("iframe", "object", "embed", "base", "form", "svg") else []

    def handle_data(self, data):
        self.text += data


def check_page(page: str, scripts: int, *shown: str) -> None:
    page.encode()
    assert harmless(page)
    found = Page(page)
    assert found.scripts == scripts and not found.found
    assert all(re.match(r"#[a-z0-9-]*$|data:image/(png|webp);base64,", link) for link in found.links)
    for text in shown:
        assert plain_text(text, breaks=True) in found.text


def odd_report(odd: str) -> Report:
    table = pd.DataFrame({odd: [odd, 1.5], "b": ["x", 2]}, index=pd.Index([odd, "y"], name=odd))
    report = Report(odd, odd)
    report.add(odd, odd, table=table, lines=[("warning", odd), ("", odd)], folded={odd: table})
    report.add("Do it again", commands={odd: mediums.for_shell(["xrddiff", "run", odd])})
    return report


@names
def test_a_page_shows_what_a_name_is(odd):
    check_page(odd_report(odd).html(), 1, odd)
    check_page(Report(odd, odd).html(again=5), 1, odd)


@names
def test_frames_and_folders_in_a_notebook(odd):
    from xrddiff.data.frames.display import as_html, as_text

    ds = frames_of(odd)
    ds.attrs |= {"detector": odd, "sample": odd}
    check_page(as_html(ds), 0, odd.replace("\n", "\\n").replace("\r", "\\r"))
    assert harmless(as_text(ds))


# Markdown


COMMONMARK = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HARMLESS = {"text", "text_special", "softbreak", "code_inline", "strong_open", "strong_close"}


def check_markdown(text: str) -> list:
    """That it has no raw HTML, no link, and tables of their number of columns; its tokens."""
    assert harmless(text)
    tokens = COMMONMARK.parse(text)
    inner = [t for token in tokens if token.type == "inline" for t in token.children]
    images = [t for t in inner if t.type == "image"]
    assert not {"html_block", "hr", "code_block", "blockquote_open"} & {t.type for t in tokens}
    assert all(re.fullmatch(r"plots/[\w/-]+\.png", t.attrs["src"]) for t in images)
    assert {t.type for t in inner} <= HARMLESS | {"image"}
    return tokens


def cells(tokens: list) -> list[list[str]]:
    rows: list[list[str]] = []
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            rows[-1].append("".join(t.content for t in token.children))
    return rows


@names
def test_markdown_shows_what_a_name_is(odd):
    said = plain_text(odd).strip()
    table = pd.DataFrame({odd: [odd, 1.5], "b": ["x", 2]}, index=pd.Index([odd, "y"], name=odd))
    page = render("judge/views/report.md.j2", title="t", lead="", sections=[shown_section(Section("s", table=table))])
    assert cells(check_markdown(page)) == [[said, said, "b"], [said, said, "x"], ["y", "1.5", "2"]]
    (_, paragraph, _) = check_markdown(mediums.for_markdown(odd))
    assert "".join(t.content for t in paragraph.children) == said
    (_, span, _) = check_markdown(f"a {mediums.for_code(odd)} b")
    assert [t.content for t in span.children if t.type == "code_inline"] == [plain_text(odd).rstrip(" ")]
    (block,) = COMMONMARK.parse(mediums.for_code(odd, "bash"))
    assert block.type == "fence" and block.content == plain_text(odd, breaks=True) + "\n"


@names
def test_reports_are_written_and_read_back(odd, tmp_path):
    from xrddiff.judge.views.report import read_report

    (tmp_path / "metrics").mkdir()
    page = odd_report(odd).write(tmp_path)
    check_page(page.read_text(), 1, odd)
    tokens = check_markdown((tmp_path / "report.md").read_text())
    assert [t.tag for t in tokens if t.type == "heading_open"] == ["h1", "h2", "h3", "h2"]
    assert (
        plain_text(read_report(tmp_path).title) == plain_text(odd)
        and read_report(tmp_path).write(tmp_path).read_text() == page.read_text()
    )


def test_sections_whose_titles_differ_in_other_letters(tmp_path):
    report = Report("labels")
    for title in ("Asked for: 日", "Asked for: 本", "Asked for: a$", "Asked for: a|", "日", "本"):
        report.add(title)
    with pytest.raises(ValueError, match="titles must differ"):
        report.add("日")
    check_page(report.write(tmp_path).read_text(), 1)


# Runs


@pytest.fixture
def odd_runs(tmp_path):
    """A folder with a run of each name, which also names its presets, data and metrics by it."""
    (tmp_path / "runs").mkdir()
    for number, about in enumerate(("markup", "escape codes", "not UTF-8", "element", "cell", "lines", "cell formula")):
        odd = ODD[about]
        name = odd if odd in FILES.values() else f"run {number}"
        run = tmp_path / "runs" / name
        for part in ("checkpoints", "samples", "metrics", "plots"):
            (run / part).mkdir(parents=True)
        cfg = compose_config(["model=vae_kl", "data=sim128"])
        cfg.presets["model"], cfg.presets["size"] = odd, odd
        cfg.data.data_path, cfg.presets["data"] = odd, "none"
        cfg.run_name, cfg.training.seed = odd, number
        write_text(run / "config.yaml", to_yaml(cfg))
        write_json(run / "metrics" / "summary.json", {odd: {odd: 0.1 * number}, "peak F1": {odd: 0.01 * number}})
        rows = "step,epoch,split,loss\n1,1,train,2.0\n2,2,train,1.0\n"
        write_text(run / "metrics" / "training_metrics.csv", rows)
    return tmp_path / "runs"


def test_runs_of_odd_names_are_listed_and_compared(odd_runs, tmp_path, capsys):
    from xrddiff.run.studies.comparison import open_comparison, write_comparison

    for form, read in (
        (["--json"], json.loads),
        (["--csv"], lambda text: list(csv.reader(io.StringIO(text)))),
        ([], str),
    ):
        assert main(["runs", "list", str(odd_runs), *form]) == 0
        out, err = capsys.readouterr()
        assert harmless(out) and harmless(err)
        assert len(read(out)) >= 7
    (tmp_path / "page").mkdir()
    page = write_comparison(open_comparison([odd_runs]), tmp_path / "page")
    check_page(page.read_text(), 1)
    check_markdown((tmp_path / "page" / "compare.md").read_text())
    table = list(csv.reader(open(tmp_path / "page" / "compare.csv", newline="")))
    assert len(table) == 7 and not any(c.startswith(("=", "@")) for row in table for c in row)


def test_the_page_and_the_card_of_a_run_of_an_odd_name(odd_runs, capsys):
    for run in sorted(odd_runs.iterdir())[:2]:
        assert main(["runs", "report", str(run)]) == 0
        out, err = capsys.readouterr()
        assert harmless(out) and harmless(err)
        for page in run.glob("report*.html"):
            check_page(page.read_text(), 1)
        (text,) = [f.read_text() for f in run.glob("report-so-far.md")]
        check_markdown(text)


@names
def test_the_card_of_a_run(odd, tmp_path):
    from xrddiff.judge.views.run_reports import model_card

    cfg = compose_config(["model=vae_kl", "data=sim128"])
    cfg.presets["model"], cfg.presets["data"] = odd, odd
    text = model_card(odd_report(odd), resolve(cfg), {odd: {odd: 0.5}})
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.S).groups()
    about = yaml.safe_load(head)
    assert about["model-index"][0]["name"] == plain_text(odd) and harmless(head) and set(about) == {
        "library_name", "license", "pipeline_tag", "tags", "model-index"
    }  # fmt: skip
    check_markdown(body)


# Notebooks


@names
def test_the_parameters_of_a_notebook_are_values(odd, tmp_path):
    """What a run is told is code in its notebook: a name cannot end the literal that it is in."""
    from papermill.parameterize import parameterize_notebook

    from xrddiff.run.execution.notebooks import notebook_parameters

    cell = nbformat.v4.new_code_cell("path = ''\nmore = {}\nevery = []", metadata=dict(tags=["parameters"]))
    given = {"path": odd, "more": {odd: odd}, "every": [odd]}
    nb = parameterize_notebook(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3"), papermill={})), given)  # fmt: skip
    write_text(tmp_path / "x.ipynb", nbformat.writes(nb))
    again = nbformat.reads((tmp_path / "x.ipynb").read_text(), 4)
    (made,) = [c for c in again.cells if "injected-parameters" in c.metadata.tags]
    assert all(isinstance(node, ast.Assign) for node in ast.parse(made.source).body)
    made.metadata.tags = ["parameters"]
    assert notebook_parameters(again) == given


def test_widgets_say_what_a_name_is():
    """What a widget says is escaped in its HTML; the scripts of the widgets make no HTML of text."""
    from xrddiff.app.widgets.widget_base import Panel

    for odd in ODD.values():
        panel = Panel()
        panel.sentence = odd
        found = Page(panel.alert.value)
        assert not found.scripts and not found.found and not found.links and plain_text(odd) in found.text
        sent = panel.get_state()["sentence"].encode()  # a lone surrogate would end the message to the browser
        assert sent == odd.encode("utf-8", "backslashreplace")
    folder = package_folder() / "app" / "widgets"
    scripts = [f.read_text() for f in folder.glob("*.js")]
    assert scripts and not any(re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", s) for s in scripts)


def test_nothing_but_text_makes_a_console_or_prints():
    """Six copies of a console were six places to forget the escaping (ruff's T20 forbids `print`)."""
    package, found = package_folder(), []
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text())
        calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
        called = {f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else "" for f in calls}
        found += [file.name] if "Console" in called else []
        if re.search(r"\bhtml\.escape\(|rich\.markup", file.read_text()):
            found.append(file.name)
    assert set(found) <= {"text.py", "run_numbers.py"}  # the latter puts a whole page into the attribute of a frame
