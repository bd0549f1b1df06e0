"""The documentation site as people meet it, and what its pages are made from.

The site is built once. It is looked at in a real browser, from a server and from disk; what needs no browser is read from its files.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import http.server
import inspect
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache, partial
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe import faults, node_module
from browser import chromium

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "docs" / "_build" / "html"
sys.path.insert(0, str(ROOT / "docs"))
# One of each kind of page.
KINDS = [
    "index",
    "tutorials",
    "tutorials/first_look",
    "learn/diffusion/schedules",
    "mathematics",
    "reference/words",
    "reference/commands",
    "reference/python",
    "questions",
    "benchmarks",
    "references",
]
# In the dark only colours differ; axe takes seconds for a long page.
DARK = ["index", "tutorials", "learn/diffusion/schedules", "questions"]
# The theme looks a moment after the page has come which of these scroll, and lets the keyboard reach them.
REACHABLE = """[...document.querySelectorAll('pre, .cell_output > .output, .pst-scrollable-table-container')].every(
    e => (e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight) || e.tabIndex === 0)"""
slow = pytest.mark.slow
in_browser = pytest.mark.xdist_group("site")


def built() -> Path:
    """The folder of the site, which is built where it is missing or older than what it is made from."""
    made = [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "docs").glob("*.*"), *(ROOT / "docs" / "_static").iterdir()]
    made += [*(ROOT / "docs" / "guides").glob("*.md"), *(ROOT / "bench" / "results").glob("*.md")]
    newest = max(path.stat().st_mtime for path in made)
    node_module("katex")
    with open(ROOT / "docs" / "build.py") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker builds
        if not (SITE / "llms.txt").exists() or (SITE / "llms.txt").stat().st_mtime < newest:
            subprocess.run([sys.executable, ROOT / "docs" / "build.py"], check=True)
    return SITE


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built site on a local server."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(built())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def page():
    """One browser for all tests of this file."""
    with chromium() as page:
        yield page


class Tags:
    """What a page shows, fetches and points to, and the names that can be pointed to."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        scripts = re.findall(r"""<script\b[^>]*\bsrc="([^"]*)\"""", text)
        text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
        found = [
            (tag, dict(pairs(rest)))
            for tag, rest in re.findall(r"<(a|img|script|link|input|[a-z]\w*)\b([^<>]*)>", text)
        ]
        self.names = {value for _, given in found for key in ("id", "name") if (value := given.get(key))}
        self.links = [given["href"] for tag, given in found if tag == "a" and "href" in given]
        self.images = [given for tag, given in found if tag == "img"]
        self.fetched = scripts + [given["src"] for _, given in found if "src" in given]
        styles = ("stylesheet", "preload", "icon")
        self.fetched += [given["href"] for tag, given in found if tag == "link" and given.get("rel") in styles]


def pairs(attributes: str) -> list[tuple[str, str]]:
    """The attributes of a tag."""
    found = re.findall(r"""([a-z-]+)=(?:"([^"]*)"|'([^']*)')""", attributes)
    return [(name, unescape(one or other)) for name, one, other in found]


@cache
def tags(path: Path) -> Tags:
    return Tags(path)


# --- the built site ---------------------------------------------------------------------------------------------------


@slow
@in_browser
def test_every_link_inside_the_site_leads_somewhere_and_every_picture_is_described(site):
    wrong = []
    for path in sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts):
        here, found = path.relative_to(SITE), tags(path)
        for link in found.links + found.fetched:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                if link in found.fetched and parts.scheme != "data":
                    wrong.append(f"{here} fetches {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir() or not target.exists():
                wrong.append(f"{here} -> {link}")
            elif parts.fragment and target.suffix == ".html" and "javascript" not in link:
                if unquote(parts.fragment) not in tags(target).names:
                    wrong.append(f"{here} -> {link}, which has no such place")
        for image in found.images:
            decoration = image.get("loading") == "lazy" and image.get("alt") == ""  # beside its own title, in a card
            alt = (image.get("alt") or "").strip()
            if not decoration and (len(alt) < 4 or alt.startswith("../") or alt.endswith(".png")):
                wrong.append(f"{here} has a picture without words: {str(image.get('src'))[:80]}, {alt!r}")
    assert wrong == []


@slow
@in_browser
def test_every_notebook_guide_result_and_picture_has_a_page(site):
    from contents import GUIDES

    notebooks = [
        p.relative_to(ROOT / "nbs") for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    ]
    wanted = [p.with_suffix(".html") for p in notebooks if p.name != "index.ipynb"]
    wanted += [Path("benchmarks") / f"{p.stem}.html" for p in (ROOT / "bench" / "results").glob("*.md")]
    wanted += [Path("guides") / f"{name}.html" for name in GUIDES if "/" not in name]
    assert [str(p) for p in wanted if not (SITE / p).exists()] == []


@slow
@in_browser
def test_python_by_task_and_the_questions_are_complete(site):
    """The build fails where a function is gone or a call is not refused in one line; here, that each has its line."""
    from faq import QUESTIONS

    page = (SITE / "reference" / "python.html").read_text(encoding="utf-8")
    assert "xd.train" in page and "run.sample" in page
    assert re.findall(r"<td>(?:<p>)?</td>", page) == []
    text = re.sub(r"<[^>]+>", "", (SITE / "questions.html").read_text(encoding="utf-8"))
    said = re.findall(r"^(?:xrddiff|BadInput): .{20,}$", text, re.M)
    assert len(said) == len(QUESTIONS) >= 20
    assert [q.heading for q in QUESTIONS if q.heading not in text] == []


@slow
@in_browser
def test_llms_txt_names_pages_that_there_are(site):
    text = (SITE / "llms.txt").read_text(encoding="utf-8")
    pages = re.findall(r"\]\(([^)]+)\)", text)
    assert text.startswith("# xrddiff\n\n> ") and len(pages) > 200
    assert [p for p in pages if not (SITE / p).exists()] == []


@slow
@in_browser
def test_formulas_are_rendered_and_nothing_comes_from_outside(site, page):
    page.requested.clear()
    page.goto(f"{site}/learn/losses.html", wait_until="networkidle")
    assert page.locator(".katex").count() > 5
    assert page.locator(".katex-error").count() == 0
    assert page.evaluate("document.fonts.check('16px KaTeX_Main')")
    for kind in KINDS:
        page.goto(f"{site}/{kind}.html", wait_until="networkidle")
    assert [u for u in page.requested if not u.startswith((site, "data:", "blob:"))] == []


@slow
@in_browser
@pytest.mark.parametrize("address", ["server", "disk"])
def test_search_finds_a_function(site, page, address):
    page.goto("about:blank")  # excerpts of the search before may still be on their way
    page.requested.clear()
    start = site if address == "server" else SITE.as_uri()
    page.goto(f"{start}/index.html")
    page.locator("button.search-button__button").first.click()
    page.keyboard.type("keyed_normal")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li", timeout=60_000)
    assert "seeds.html" in page.inner_html("#search-results")
    assert [u for u in page.requested if not u.startswith((start, "data:", "blob:"))] == []


@slow
@in_browser
def test_home_says_what_it_is_in_one_screen(site, page):
    page.set_viewport_size({"width": 1200, "height": 850})
    page.goto(f"{site}/index.html")
    boxes = [page.locator(what).first.bounding_box() for what in ("h1", ".hero pre", ".hero img")]
    assert all(box and box["y"] + box["height"] < 850 for box in boxes), boxes
    typed = re.findall(r"^make (\w+)", page.locator(".hero pre").inner_text(), re.M)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert len(typed) == 2 and set(typed) <= set(targets)
    named = [link for link in tags(SITE / "index.html").links if link.endswith(".html")]
    assert {"tutorials.html", "mathematics.html", "questions.html"} <= set(named)


@slow
@in_browser
def test_a_phone_needs_no_scrolling_to_the_side(site, page):
    page.set_viewport_size({"width": 390, "height": 844})
    wide = {}
    for kind in KINDS:
        page.goto(f"{SITE.as_uri()}/{kind}.html")
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 390:
            wide[kind] = width
    page.set_viewport_size({"width": 1200, "height": 900})
    assert wide == {}


@slow
@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible_in_both_themes(site, page, theme):
    page.goto(f"{site}/index.html")
    page.evaluate("mode => { localStorage.mode = mode; localStorage.theme = mode; }", theme)
    found = {}
    for kind in KINDS if theme == "light" else DARK:
        page.goto(f"{site}/{kind}.html", wait_until="networkidle")
        for _ in range(50):  # if it never is, axe says which of them cannot be reached
            if page.evaluate(REACHABLE):
                break
            page.wait_for_timeout(100)
        if wrong := faults(page):
            found[kind] = wrong
    light = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).reduce((a, b) => a + Number(b), 0)"
    )
    page.evaluate("localStorage.clear()")
    assert found == {}, json.dumps(found, indent=1)[:4000]
    assert (light > 600) == (theme == "light"), light


@slow
@in_browser
def test_axe_finds_a_button_without_a_name_where_it_is(page):
    html = "<!doctype html><html lang=en><title>x</title><main><h1>x</h1><div id=a>{}</div><div id=b><button>ok</button></div></main>"
    page.goto("about:blank")
    page.set_content(html.format("<button></button>"))
    assert ["button-name" in fault for fault in faults(page)] == [True]
    assert faults(page, "#b") == []
    page.set_content(html.format("<button aria-label=play></button>"))
    assert faults(page) == []


# --- what the pages are made from -------------------------------------------------------------------------------------


def texts(code: bool = True) -> Iterator[tuple[Path, str]]:
    """Each notebook's text, with or without its code, and each Markdown file of the repository."""
    for path in [*(ROOT / "nbs").rglob("*.ipynb"), ROOT / "index.ipynb"]:
        if ".ipynb_checkpoints" not in path.parts and not path.is_symlink():
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            yield (
                path,
                "\n\n".join("".join(cell["source"]) for cell in cells if code or cell["cell_type"] == "markdown"),
            )
    for pattern in ("*.md", "docs/*.md", "docs/guides/*.md", "slurm/*.md", "bench/results/*.md"):
        for path in ROOT.glob(pattern):
            yield path, path.read_text(encoding="utf-8")


def test_links_between_files_of_the_repository_lead_to_files():
    made = {"docs/home.md"}  # its links are those of the site
    wrong = []
    for path, text in texts(code=False):
        if path.relative_to(ROOT).as_posix() in made:
            continue
        for target in re.findall(
            r"(?<![\w\])])!?\[[^\]\n]*\]\(([^)#\s]+\.(?:md|ipynb|png|svg|py|cff))(?:#[^)]*)?\)", text
        ):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                wrong.append(f"{path.relative_to(ROOT)} -> {target}")
    assert wrong == []


def test_what_is_cited_is_in_the_bibliography_and_what_is_there_is_cited():
    from links import Site, bibliography, unknown_citations

    site, unknown = Site({}), []
    for path, text in texts():
        unknown += [f"{path.relative_to(ROOT)}: {name}" for name in unknown_citations(text)]
        site.mentions(text, str(path))
    assert unknown == []
    assert [entry.key for entry in bibliography() if entry.key not in site.cited] == []
    assert all(entry.get("title") and entry.get("author") and entry.get("year") for entry in bibliography())
    assert len({entry.key for entry in bibliography()}) == len(bibliography()) > 50


def test_a_citation_becomes_a_link_once():
    from links import Site

    site = Site({})
    text = "after Karras et al. (2022, eq. 5) and Ho et al. 2020 (arXiv 2006.11239); not `Ho et al. 2020`, nor Who et al. 2020"
    assert site.citations(text, "a.md") == (
        "after [Karras et al. (2022](#ref-karras2022), eq. 5) and Ho et al. 2020 ([arXiv 2006.11239](#ref-ho2020)); "
        "not `Ho et al. 2020`, nor Who et al. 2020"
    )
    assert site.cited == {"karras2022": {"a.md"}, "ho2020": {"a.md"}}


def test_every_command_word_and_name_is_on_its_page():
    import generated
    from links import Site

    from xrddiff.app.verbs.main import build_parser
    from xrddiff.config.words.vocabulary import vocabulary
    from xrddiff.core.registry import KINDS as kinds
    from xrddiff.core.registry import entries

    commands, words, names = generated.commands_page(), generated.words_page(), generated.names_page(Site({}))
    for parser, _ in generated._commands(build_parser()):
        section = commands.split(f" {parser.prog}\n", 1)[1].split("\n(command-", 1)[0]
        shown = [a for a in parser.declared if a.help != argparse.SUPPRESS]
        options = [o for action in shown for o in action.option_strings if o not in ("-h", "--help")]
        assert [o for o in options if o not in section] == [], parser.prog
    assert [w for w in vocabulary() if f"| `{w}` |" not in words] == []
    assert [n for kind in kinds for n in entries(kind) if f"| `{n}` |" not in names] == []


def test_every_command_has_its_line_of_python_or_a_reason():
    """The commands are those of the parser, what is typed can be parsed, and what is called exists with these arguments."""
    import generated
    from twins import TWINS, twins_page

    import xrddiff as xd
    from xrddiff.app.verbs.main import parse

    about = generated.command_lines()
    assert set(TWINS) == set(about)
    page = twins_page(about)
    owners = {"xd": xd, "run": xd.TrainedRun}
    for command, (typed, python, *reason) in TWINS.items():
        words = shlex.split(typed)
        assert words[0] == "xrddiff" and parse(words[1:]).parser.prog == f"xrddiff {command}" and f"`{typed}`" in page
        if python is None:
            assert reason[0], command
            continue
        calls = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
        calls = [c for c in calls if isinstance(c.func, ast.Attribute) and getattr(c.func.value, "id", "") in owners]
        assert calls, python
        for call in calls:
            owner = owners[call.func.value.id]
            assert owner is not xd or call.func.attr in xd.__all__, python
            given = [None] * (len(call.args) + (owner is not xd))
            inspect.signature(getattr(owner, call.func.attr)).bind(*given, **{k.arg: None for k in call.keywords})


def test_every_benchmark_says_its_command():
    import generated

    results = sorted((ROOT / "bench" / "results").glob("*.md"))
    without = [p.name for p in results if not generated.benchmark_command(p)]
    assert without == [] or without == ["gpu.md"], without
    for path in results:
        for script in re.findall(r"bench/\w+\.py", generated.benchmark_command(path)):
            assert (ROOT / script).exists(), (path, script)


def test_outputs_hold_no_warnings_and_no_folders_of_a_machine(tmp_path):
    """What readers see on the pages was looked at before it was kept (docs/execute.py)."""
    import execute

    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        assert execute.not_for_pages(path) is None, path
    cell = dict(outputs=[dict(output_type="stream", name="stderr", text=["<cell>:1: UserWarning: slow\n"])])
    bad = tmp_path / "bad.ipynb"
    bad.write_text(json.dumps(dict(cells=[cell])))
    assert "UserWarning: slow" in execute.not_for_pages(bad)
    cell["outputs"] = [dict(output_type="execute_result", data={"text/plain": [str(ROOT / "output")]})]
    bad.write_text(json.dumps(dict(cells=[cell])))
    assert "folder of this machine" in execute.not_for_pages(bad)
