"""Build the documentation site from the notebooks: `python docs/build.py`, or `make docs`.

nbdev runs the notebooks' `show_doc` calls and strips what is hidden; this script turns the result into what
myst-nb reads, writes the tables of contents, and calls Sphinx with warnings as errors. The site needs no network:
KaTeX renders the formulas at build time and its fonts are copied beside the pages.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = DOCS / "_build"
SOURCE = BUILD / "source"
SITE = BUILD / "html"
ROOMS = {
    "tutorials": "Tutorials",
    "runs": "Runs",
    "frames": "Frames",
    "simulation": "Simulation",
    "indexing": "Indexing",
    "headers": "Headers",
    "formats": "Formats",
    "loading": "Loading",
    "models": "Models",
    "diffusion": "Diffusion",
    "training": "Training",
    "metrics": "Metrics",
    "inference": "Inference",
    "views": "Views",
    "ranks": "Ranks",
    "execution": "Execution",
    "slurm": "SLURM",
    "cli": "Command line",
    "front_door": "Front door in Python",
}
FIRST = "tutorials/python"  # the page after home
# pages that are no notebooks, in the order of the contents, and their names on the site
PAGES = {
    "docs/cluster_tour.md": "cluster_tour.md",
    "slurm/README.md": "on_slurm.md",
    "docs/architecture.md": "architecture.md",
    "docs/security.md": "security.md",
    "docs/contributing.md": "contributing.md",
    "bench/results/indexing.md": "indexing_results.md",
    "bench/results/corruptions.md": "corruptions.md",
    "bench/results/index_rates.md": "index_rates.md",
    "bench/results/lattices.md": "lattices.md",
    "bench/results/intensities.md": "intensities.md",
    "bench/results/finetune.md": "finetuning.md",
    "bench/results/tiles.md": "tiles.md",
    "bench/results/suite.md": "suite.md",
    "CHANGELOG.md": "changelog.md",
}


def keep_unresolved_types() -> None:
    """Show a signature with its annotations as written where they name a module that is imported for type checkers only."""
    import fastcore.docments

    resolved = fastcore.docments.signature

    def signature(function, **options):
        try:
            return resolved(function, **options)
        except NameError:
            return resolved(function)

    fastcore.docments.signature = signature


def run_definitions_only() -> None:
    """Run what the package exports and what is documented. nbdev would also run every example that has an import in it, training included."""
    import nbdev.processors

    wanted = nbdev.processors._do_eval

    def definitions_and_imports(cell):
        imports = (ast.Import, ast.ImportFrom)
        if cell.cell_type != "code":
            return None
        exported = cell.directives_ and cell.directives_.keys() & {"export", "exports", "exporti", "exec_doc"}
        only_imports = all(isinstance(node, imports) for node in cell.parsed_() or [])
        return wanted(cell) if exported or only_imports or "show_doc" in cell.source else None

    nbdev.processors._do_eval = definitions_and_imports


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


def site_links(markdown: str) -> str:
    """Links that hold in the repository, as links that hold on the site; what the site does not carry becomes plain text."""
    markdown = re.sub(r"\]\((?:\.\./)?slurm/README\.md\)", "](on_slurm.md)", markdown)
    for page, name in PAGES.items():
        if page.startswith("bench/"):
            markdown = re.sub(rf"\]\((?:\.\./)?((?:\.\./)*){re.escape(page)}\)", rf"](\1{name})", markdown)
    markdown = re.sub(r"\]\((?:\.\./)?(?:docs|nbs)/", "](", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(bench/[^)]*\)", r"\1", markdown)


def convert(path: Path, original: Path, target: Path) -> None:
    """One processed notebook as a page: heading, no nbdev directives, each name's source folded under its documentation."""
    nb = nbformat.read(path, as_version=4)
    sources = definitions(original)
    cells = []
    for cell in nb.cells:
        cells.append(cell)
        if cell.cell_type == "raw" and cell.source.startswith("---"):
            cell.cell_type, cell.source = "markdown", front_matter(cell.source) + opening(original)
        if cell.cell_type == "markdown":
            cell.source = site_links(cell.source)
        if cell.cell_type != "code":
            continue
        hidden = re.search(r"^#\s*\|\s*echo: *false", cell.source, re.M)
        cell.source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M)
        shown = re.fullmatch(r"show_doc\((\w+)\)", cell.source.strip())
        if shown or hidden:
            cell.metadata["tags"] = ["remove-input"]
        if shown and shown[1] in sources:
            source = nbformat.v4.new_code_cell(sources.pop(shown[1]), id=f"source-{shown[1]}"[:64])
            source.metadata["tags"] = ["hide-input"]
            cells.append(source)
        for output in cell.outputs:
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = tidy("".join(output["data"]["text/markdown"]))
    nb.cells = cells
    nb.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "python3"})
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, target)


def toctree(pages: list[str]) -> str:
    """A table of contents of these pages."""
    return "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(pages) + "\n```\n"


def main() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    katex = DOCS / "node_modules" / "katex" / "dist"
    if not katex.is_dir():
        sys.exit("docs/build.py: KaTeX is missing in docs/node_modules; run `npm ci` in docs (or `make docs`)")
    sys.path.insert(0, str(ROOT))
    from nbdev.serve import proc_nbs

    keep_unresolved_types()
    run_definitions_only()

    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    proc_nbs(n_workers=0)  # in this process, where the line above holds
    pages = {p.relative_to(ROOT / "_proc"): p for p in sorted((ROOT / "_proc").rglob("*.ipynb"))}
    for name, path in pages.items():
        original = ROOT / name if (ROOT / name).exists() else ROOT / "nbs" / name
        convert(path, original, SOURCE / name)
    shutil.rmtree(ROOT / "_proc")
    for page, name in PAGES.items():
        (SOURCE / name).write_text(site_links((ROOT / page).read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copytree(DOCS / "pictures", SOURCE / "pictures", ignore=shutil.ignore_patterns("index-*"))
    shutil.copy(DOCS / "conf.py", SOURCE / "conf.py")
    static = BUILD / "static"
    shutil.copytree(DOCS / "_static", static)
    shutil.copytree(katex, static / "katex", ignore=shutil.ignore_patterns("*.js", "*.mjs", "contrib", "README*"))

    names = [p.with_suffix("").as_posix() for p in pages if p.with_suffix("").as_posix() != FIRST]
    top = [n for n in names if "/" not in n and n != "index"]
    chapters = {room: [n for n in names if n.startswith(room + "/")] for room in ROOMS} | {"ground": top}
    for room, members in chapters.items():
        caption = ROOMS.get(room, "Ground: words, errors, seeds, losses, commands")
        if members:
            (SOURCE / f"{room}.md").write_text(f"# {caption}\n\n{toctree(members)}", encoding="utf-8")
    own = [Path(name).stem for name in PAGES.values()]
    contents = toctree([FIRST] + [room for room, members in chapters.items() if members] + own)
    index = nbformat.read(SOURCE / "index.ipynb", as_version=4)
    index.cells.append(nbformat.v4.new_markdown_cell(contents, id="contents"))
    nbformat.write(index, SOURCE / "index.ipynb")

    options = json.dumps([str(static)])
    conf = (SOURCE / "conf.py").read_text().replace("Path(__file__).parent\n", f"Path({str(DOCS)!r})\n", 1)
    (SOURCE / "conf.py").write_text(conf + f"\nhtml_static_path = {options}\n")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html", str(SOURCE), str(SITE)],
        check=True,
        timeout=900,
    )

    broken = [
        p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "katex-error" in p.read_text(encoding="utf-8")
    ]
    if broken:
        sys.exit(f"docs/build.py: KaTeX could not render a formula in {', '.join(broken)}")
    print(f"documentation: {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
