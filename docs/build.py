"""Build the documentation site from the notebooks: `python docs/build.py`, or `make docs`.

nbdev runs the notebooks' `show_doc` calls and strips what is hidden; this script turns the result into what
myst-nb reads, writes the tables of contents, and calls Sphinx with warnings as errors. The site needs no network:
KaTeX renders the formulas at build time and its fonts are copied beside the pages.
"""

from __future__ import annotations

import ast
import base64
import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import nbformat
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import faq
import generated
import replaced
import twins
from contents import ABOUT, GUIDES, MATHEMATICS, ROOMS
from links import Site, relative

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = DOCS / "_build"
SOURCE = BUILD / "source"
SITE = BUILD / "html"


def front_matter(source: str) -> str:
    """nbdev's YAML front matter, as a heading and a summary."""
    fields = yaml.safe_load(source.strip().strip("-"))
    return f"# {fields.get('title', '')}\n\n{fields.get('description', '')}"


def opening(notebook: Path) -> str:
    """What the first cell of a notebook says after its title and summary: nbdev keeps only those two."""
    lines = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()
    return "\n\n" + "\n".join(line for line in lines if not re.match(r"(# |> |>$)", line)).strip()


def definitions(notebook: Path) -> dict[str, str]:
    """The source of every function and class that a notebook exports, by name."""
    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code" and re.search(r"^# ?\| ?export", cell.source, re.M):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                    found[node.name] = "\n".join(cell.source.splitlines()[first - 1 : node.end_lineno])
    return found


def tidy(markdown: str) -> str:
    """What `show_doc` prints, as a page shows it best.

    Its rule, its link to a source host, the blank lines round the signature and types that say
    nothing are left out. Only the first line of a summary is in italics, so none is. What
    begins with the name of a parameter gets a line of its own.
    """
    markdown = re.sub(r"^---\n+", "", markdown, flags=re.M)
    markdown = re.sub(r"^\[source\]\(.*?\)\{.*?\}\n*", "", markdown, flags=re.M)
    head, fence, text = markdown.partition("\n```\n")
    head = re.sub(r"```python\n+", "```python\n", head).rstrip("\n")
    head = re.sub(r":NoneType(?==)|:Annotated(?==)", "", head)
    head = head.replace("args:VAR_POSITIONAL", "*args").replace("kwargs:VAR_KEYWORD", "**kwargs")
    text = re.sub(r"^\*(?!\*)(.+)\*$", r"\1", text, count=1, flags=re.M)
    text = re.sub(r"(?<=\S)\n(?=`?\w+`?(?:, `?\w+`?)*: |(?:Returns|Raises|Yields|Source)\b)", "  \n", text)
    return head + fence + text


def spoken(markdown: str) -> str:
    """The last sentence of a text, without its markup: what stands before a picture says what it shows."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "", markdown, flags=re.S)
    text = re.sub(r"^\|.*$|^#.*$|^[-*] ", "", text, flags=re.M)
    paragraphs = [p for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]
    if not paragraphs:
        return " ".join(re.findall(r"^#+ (.*)", markdown, re.M)[-1:])
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraphs[-1].split()))
    sentence = re.split(r"(?<=[.!?:]) (?=[A-Z`*$])", words)[-1]
    return re.sub(r"[`*$\\{}\"<>]", "", sentence).rstrip(":.")[:240]


@dataclass
class Pages:
    """The pages of the site while they are made: titles and summaries by path, names that have an anchor."""

    site: Site
    titles: dict[str, str] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    anchors: set[str] = field(default_factory=set)

    def text(self, markdown: str, source: str, page: str) -> str:
        """Markdown of the repository as a page has it."""
        return self.site.citations(self.site.links(markdown, source, page), page)

    def write(self, page: str, markdown: str) -> None:
        """A page of text."""
        self.note(page, markdown)
        path = SOURCE / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(markdown.rstrip() + "\n", encoding="utf-8")

    def copy(self, source: str, page: str, end: str = "") -> None:
        """A Markdown file of the repository as a page."""
        text = (ROOT / source).read_text(encoding="utf-8")
        self.write(page, self.text(text, source, page) + end)

    def note(self, page: str, markdown: str) -> None:
        """Keep the title and the first sentence of a page."""
        if found := re.search(r"^# (.*)", markdown, re.M):
            self.titles.setdefault(page, found[1].strip())
            rest = re.sub(r"^\s*>? ?", "", markdown[found.end() :].strip())
            line = " ".join(re.split(r"\n\s*\n", rest)[0].split())
            if not re.match(r"[#|`!<\-:(]|\$\$", line):
                line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)
                self.summaries.setdefault(page, re.split(r"(?<=[.!?]) (?=[A-Z])", line)[0])

    def notebook(self, path: Path, source: str, page: str) -> None:
        """One processed notebook as a page.

        It gets its heading, and loses nbdev's directives. What `show_doc` printed becomes text with an anchor, with the
        source folded under it. A picture is described by the sentence before it.
        """
        original = ROOT / source
        nb = nbformat.read(path, as_version=4)
        sources = definitions(original)
        # what only the code cites, such as the source of a health rule, counts too
        code = [c.source for c in nbformat.read(original, as_version=4).cells if c.cell_type == "code"]
        self.site.mentions("\n".join(code), page)
        module = "xrddiff." + source.removeprefix("nbs/").removesuffix(".ipynb").replace("/", ".")
        cells, said = [], ""
        for cell in nb.cells:
            if cell.cell_type == "raw" and cell.source.startswith("---"):
                cell.cell_type, cell.source = "markdown", front_matter(cell.source) + opening(original)
            if "WARNING: THIS FILE WAS AUTOGENERATED" in cell.source:
                continue
            if cell.cell_type == "markdown":
                self.note(page, cell.source)
                said = spoken(cell.source) or said
                cell.source = self.text(cell.source, source, page)
                cells.append(cell)
                continue
            if cell.cell_type != "code":
                continue
            described = re.search(r"^#\s*\| ?fig-alt: *(.+)$", cell.source, re.M)
            hidden = re.search(r"^#\s*\|\s*echo: *false", cell.source, re.M)
            cell.source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)
            shown = re.fullmatch(r"show_doc\((\w+)\)", cell.source.strip())
            printed = [o["data"]["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]
            if cell.source.startswith("show_doc(") and printed:
                cells.append(self.documentation(module, cell, tidy("".join(printed[0])), page))
            else:
                if hidden:
                    cell.metadata["tags"] = ["remove-input"]
                for output in cell.outputs:
                    if html := "".join(output.get("data", {}).get("text/html", "")):
                        words = escape(said)
                        output["data"]["text/html"] = re.sub(r"<img (?![^>]*\balt=)", f'<img alt="{words}" ', html)
                pictures = [o for o in cell.outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
                if pictures:
                    alt = described[1] if described else said or self.titles.get(page, page)
                    cell.metadata["mystnb"] = {"image": {"alt": alt}}
                    self.pictures.setdefault(page, pictures[0]["data"].get("image/png", ""))
                cells.append(cell)
            if shown and shown[1] in sources:
                folded = nbformat.v4.new_code_cell(sources.pop(shown[1]), id=f"source-{shown[1]}"[:64])
                folded.metadata["tags"] = ["hide-input"]
                cells.append(folded)
        nb.cells = cells
        nb.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "python3"})
        target = SOURCE / page
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)

    def documentation(
        self, module: str, cell: nbformat.NotebookNode, markdown: str, page: str
    ) -> nbformat.NotebookNode:
        """What `show_doc` printed, as text that can be linked to and searched."""
        name = re.match(r"show_doc\(([\w.]+)", cell.source)[1]
        anchor = f"{module}.{name}".lower()
        mark = "" if anchor in self.anchors else f"({anchor})=\n"
        self.anchors.add(anchor)
        markdown = re.sub(r"^(#+) ([\w.]+)$", r"\1 `\2`", markdown, count=1, flags=re.M)
        return nbformat.v4.new_markdown_cell(mark + self.site.citations(markdown, page), id=cell.id)

    def entry(self, page: str, here: str) -> str:
        """A line of a list: the page's title with a link, and its summary."""
        line = self.summaries.get(page, "")
        return f"- [{self.titles.get(page, page)}]({relative(page, here)})" + (f": {line}" if line else "")

    def chapter(self, heading: str, pages: list[str], here: str, level: str = "##") -> str:
        """A chapter of a list of contents: a heading, a line for each page, and the tree for the side bar."""
        lines = [
            f"{level} {heading}",
            "",
            *(self.entry(page, here) for page in pages),
            "",
            toctree(pages, here, heading),
        ]
        return "\n".join(lines)


def toctree(pages: list[str], here: str = "index.md", caption: str = "") -> str:
    """A table of contents for the side bar; the page itself lists what it wants to."""
    names = [relative(page, here).rpartition(".")[0] for page in pages]
    return "\n".join(
        ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *names, "```", ""]
    )


def in_order(first: list[str], found: list[str]) -> list[str]:
    """Those of `first` that there are, in its order, then the others."""
    return [name for name in first if name in found] + [name for name in found if name not in first]


def guides() -> dict[str, str]:
    """The guides, path in the repository -> page, those of `GUIDES` first, as that list has them."""
    named = [name if "/" in name else f"docs/guides/{name}.md" for name in GUIDES]
    if missing := [name for name in named if not (ROOT / name).is_file()]:
        sys.exit(f"docs/build.py: GUIDES names {missing[0]}, which there is not")
    others = sorted(path.relative_to(ROOT).as_posix() for path in (DOCS / "guides").glob("*.md"))
    special = {"slurm/README.md": "on_slurm"}
    return {name: f"guides/{special.get(name, Path(name).stem)}.md" for name in in_order(named, others + named)}


def page_names(notebooks: list[str]) -> dict[str, str]:
    """Where each file of the repository stands on the site, path -> path."""
    pages = {f"nbs/{name}": name for name in notebooks}
    pages |= {"index.ipynb": "overview.ipynb", "README.md": "overview.ipynb", "nbs/index.ipynb": "overview.ipynb"}
    pages |= guides()
    pages |= {path: f"about/{Path(path).stem.lower()}.md" for path in ABOUT}
    results = sorted((ROOT / "bench" / "results").glob("*.md"))
    pages |= {p.relative_to(ROOT).as_posix(): f"benchmarks/{p.stem}.md" for p in results}
    return pages | {"bench/results": "benchmarks.md", "docs/references.bib": "references.md"}


def process() -> dict[str, Path]:
    """The notebooks as nbdev prepares them for documentation, by their path under nbs."""
    from nbdev.serve import proc_nbs

    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    proc_nbs(n_workers=0)  # as `xrddiff.core.nbdev_pages` has it, which settings.ini names
    return {p.relative_to(ROOT / "_proc").as_posix(): p for p in sorted((ROOT / "_proc").rglob("*.ipynb"))}


def mathematics(pages: Pages, notebooks: list[str]) -> list[str]:
    """Write the contents of the mathematics; returns the notebooks that are in it."""
    chapters: dict[str, list[str]] = {}
    for heading, lines in MATHEMATICS.items():
        folders = [line.partition(": ")[::2] for line in lines]
        chapters[heading] = [f"{folder}/{name}.ipynb" for folder, names in folders for name in names.split()]
    named = [name for chapter in chapters.values() for name in chapter]
    if missing := [n for n in named if n not in notebooks and not n.endswith("….ipynb")]:
        sys.exit(f"docs/build.py: MATHEMATICS names {missing[0]}, which there is not")
    placed: list[str] = []
    parts = [
        "# Mathematics",
        "",
        "Every module of the package is a notebook that says what it computes, computes it in the same symbols, and checks it. Here they are in reading order.",
        "",
    ]
    for heading, chapter in chapters.items():
        others = {name.removesuffix("/….ipynb") for name in chapter if name.endswith("….ipynb")}
        rest = [n for n in notebooks if n.rpartition("/")[0] in others and n not in named]
        chapter = [n for n in chapter if n in notebooks] + rest
        placed += chapter
        parts.append(pages.chapter(heading, chapter, "mathematics.md"))
    pages.write("mathematics.md", "\n".join(parts))
    return placed


def modules(pages: Pages, notebooks: list[str]) -> None:
    """Write the list of the modules that are no mathematics, by wing and room."""
    parts = [
        "# Modules",
        "",
        "The rest of the package, wing by wing. [Architecture](../about/architecture.md) says what each room is for.",
        "",
    ]
    rooms = dict(ROOMS)
    for name in notebooks:
        rooms.setdefault(name.rpartition("/")[0], Path(name).parent.name.replace("_", " ").capitalize())
    for wing in dict.fromkeys(room.partition("/")[0] for room in rooms if room != "runs"):
        parts += [f"## {wing.capitalize()}", "", importlib.import_module(f"xrddiff.{wing}").__doc__, ""]
        for room, heading in rooms.items():
            here = room.partition("/")[0] == wing or (room, wing) == ("runs", "run")
            if here and (members := [n for n in notebooks if n.rpartition("/")[0] == room]):
                parts.append(pages.chapter(heading, members, "reference/modules.md", "###"))
    pages.write("reference/modules.md", "\n".join(parts))


def contents(pages: Pages, notebooks: list[str]) -> None:
    """Write the pages that list others, and those that are made from the package."""
    from xrddiff.app.verbs.lab import tutorial_path

    numbers = {f"tutorials/{path.name}": at for path, at in tutorial_path().items()}
    parts = [
        "# Tutorials\n\nBy what you want. Each runs on two cores; `xrddiff lab` copies them to a folder of yours and opens JupyterLab, where they have the same numbers."
    ]
    for chapter in dict.fromkeys(chapter for _, chapter in numbers.values()):
        here = {page: number for page, (number, own) in numbers.items() if own == chapter}
        cards = "\n".join(card(pages, page, "tutorials.md", number) for page, number in here.items())
        parts += [f"## {chapter}", raw(f'<div class="cards">{cards}</div>')]
    pages.write("tutorials.md", "\n\n".join([*parts, toctree(list(numbers))]))

    listed = [*guides().values(), "questions.md"]
    lines = "\n".join(pages.entry(page, "guides.md") for page in listed)
    pages.write(
        "guides.md", f"# Guides\n\nWhat to choose, and what to do when.\n\n{lines}\n\n{toctree(listed, 'guides.md')}"
    )

    rest = [n for n in notebooks if not n.startswith("tutorials/")]
    placed = mathematics(pages, rest)
    modules(pages, [n for n in rest if n not in placed and n != "index.ipynb"])

    pages.write("reference/commands.md", generated.commands_page())
    pages.write("reference/twins.md", twins.twins_page(generated.command_lines()))
    pages.write("reference/words.md", generated.words_page())
    pages.write("reference/names.md", generated.names_page(pages.site))
    pages.write("reference/python.md", generated.api_page(pages.site, pages.anchors))
    listed = [f"reference/{name}.md" for name in ("python", "commands", "twins", "words", "names", "modules")]
    lines = "\n".join(pages.entry(page, "reference.md") for page in listed)
    pages.write("reference.md", f"# Reference\n\n{lines}\n\n{toctree(listed)}")

    results = [page for page in pages.site.pages.values() if page.startswith("benchmarks/")]
    pages.write("benchmarks.md", generated.benchmarks_page(pages.site) + "\n" + toctree(results))
    pages.write("references.md", generated.references_page(pages.site, pages.titles))
    pages.write(pages.site.pages["docs/replaced.yaml"], replaced.replaced_page())
    listed = ["overview.ipynb", *(pages.site.pages[path] for path in ABOUT), "references.md"]
    lines = "\n".join(pages.entry(page, "about.md") for page in listed)
    pages.write("about.md", f"# About\n\n{lines}\n\n{toctree(listed)}")


def raw(html: str) -> str:
    """HTML within Markdown."""
    return f"```{{raw}} html\n{html}\n```"


def card(pages: Pages, page: str, here: str, number: str = "") -> str:
    """A picture, a number, a title and a line that lead to a page."""
    target = relative(page, here).rpartition(".")[0] + ".html"
    title, line = (plain_html(text) for text in (pages.titles.get(page, page), pages.summaries.get(page, "")))
    image = ""
    if data := pages.pictures.get(page):
        (BUILD / "static" / "cards").mkdir(parents=True, exist_ok=True)
        (BUILD / "static" / "cards" / f"{Path(page).stem}.png").write_bytes(base64.b64decode("".join(data)))
        image = f'<img src="_static/cards/{Path(page).stem}.png" alt="" loading="lazy">'
    return (
        f'<a class="card" href="{target}">{image}<strong>{f"{number} {title}".strip()}</strong><span>{line}</span></a>'
    )


def plain_html(markdown: str) -> str:
    """A line of Markdown as HTML: code and nothing else."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False)).replace("*", "")


def main() -> None:
    katex = DOCS / "node_modules" / "katex" / "dist"
    if not katex.is_dir():
        sys.exit("docs/build.py: KaTeX is missing in docs/node_modules; run `npm ci` in docs (or `make docs`)")
    shutil.rmtree(BUILD, ignore_errors=True)
    sys.path.insert(0, str(ROOT))
    SOURCE.mkdir(parents=True)
    processed = process()
    notebooks = list(processed)
    pages = Pages(Site(page_names(notebooks)))
    for name, path in processed.items():
        source = name if (ROOT / name).exists() else f"nbs/{name}"
        pages.notebook(path, source, pages.site.pages[f"nbs/{name}"])
    shutil.rmtree(ROOT / "_proc")
    for source, page in pages.site.pages.items():
        if source.endswith(".md") and page.endswith(".md"):
            pages.copy(source, page)
    pages.write("questions.md", faq.questions_page())
    contents(pages, notebooks)
    home = (DOCS / "home.md").read_text(encoding="utf-8")  # its links are those of the site
    pages.write("index.md", home)
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", home):
        pages.site.pictures[f"docs/{picture}"] = picture
    for source, page in pages.site.pictures.items():
        if not (SOURCE / page).exists():
            (SOURCE / page).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, SOURCE / page)
    render(katex)
    (SITE / "llms.txt").write_text(llms(pages), encoding="utf-8")
    print(f"documentation: {SITE / 'index.html'}")


def llms(pages: Pages) -> str:
    """llms.txt of the site, from the titles and summaries of its pages."""
    groups = {"Tutorials": "tutorials/", "Guides": "guides/", "Reference": "reference/", "Mathematics and modules": "", "Benchmarks": "benchmarks/", "About": "about/"}  # fmt: skip
    sections: dict[str, list[tuple[str, str, str]]] = {heading: [] for heading in groups}
    for page, title in pages.titles.items():
        heading = next((h for h, start in groups.items() if start and page.startswith(start)), "")
        if not heading:
            heading = "Mathematics and modules" if page.endswith(".ipynb") else "About"
        sections[heading].append((title, page.rpartition(".")[0] + ".html", pages.summaries.get(page, "")))
    return generated.llms_text(sections, pages.summaries["overview.ipynb"])


def render(katex: Path) -> None:
    """Call Sphinx, with warnings as errors, and look whether every formula was rendered."""
    static = BUILD / "static"
    shutil.copytree(DOCS / "_static", static, dirs_exist_ok=True)
    shutil.copytree(katex, static / "katex", ignore=shutil.ignore_patterns("*.js", "*.mjs", "contrib", "README*"))
    conf = (DOCS / "conf.py").read_text(encoding="utf-8")
    conf = conf.replace("Path(__file__).parent\n", f"Path({str(DOCS)!r})\n", 1)
    (SOURCE / "conf.py").write_text(conf + f"\nhtml_static_path = {json.dumps([str(static)])}\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html", str(SOURCE), str(SITE)],
        check=True,
        timeout=3600,
    )
    broken = []
    for path in SITE.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        if "katex-error" in html:
            broken.append(path.relative_to(SITE).as_posix())
        # what a button says aloud is what it shows: "Source"
        if (said := ' aria-label="Toggle hidden content"') in html:
            path.write_text(html.replace(said, ""), encoding="utf-8")
    if broken:
        sys.exit(f"docs/build.py: KaTeX could not render a formula in {', '.join(broken)}")


if __name__ == "__main__":
    main()
