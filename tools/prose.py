"""Count sentences that break the rules of how we write: `python tools/prose.py`, as `make lint` does.

Rules: no clause as a noun ("what is asked", "whose spots are known", "of which"), "is not a" and not "is no", numbers with their
zero (0.95). Read are README, docs, the Markdown of notebooks, docstrings, the help of words and options, and templates; code is left out.
`--show RULE` prints the sentences that break one, `--files` how many each file has. The check fails above `MOST` of 1,000.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RULES = {
    "clauses as nouns": re.compile(r"\b(what|whatever|whose|of which)\b", re.I),
    "is no": re.compile(r"(?<!there )\b(is|are|was|were|be) no\b(?! (longer|more|fewer|less)\b)", re.I),
    "numbers without a zero": re.compile(r"(?<![\w.])\.\d"),
}
MOST = {"clauses as nouns": 12, "is no": 1, "numbers without a zero": 1}  # of 1,000 sentences; may only fall


class Sentence(NamedTuple):
    """A sentence, and the file that it stands in."""

    file: str
    text: str

    @property
    def question(self) -> bool:
        """Whether it asks something, which "what" may begin."""
        return self.text.rstrip("*_ ").endswith("?")


def _without_code(text: str) -> str:
    """Markdown without code, links' targets, formulas and directives."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "", text, flags=re.M | re.S)
    text = re.sub(r"^    .*$", "", text, flags=re.M)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "N", text, flags=re.S)
    text = re.sub(r"``.+?``|`[^`\n]+`", "N", text)
    text = re.sub(r"<[^>\n]+>", " ", text)
    return re.sub(r"\]\([^)\s]*\)|[*_#>\[]", " ", text)


def _sentences(file: str, text: str) -> Iterator[Sentence]:
    """The sentences of a text: those of paragraphs, items of lists, cells of tables."""
    for block in re.split(r"\n\s*\n|\n\s*[-*] |\n\s*\d+\. |\n#+ |\|", text):
        for one in re.split(r"(?<=[.!?;])\s+(?=[A-Z\"'(])", " ".join(block.split())):
            if len(one.split()) > 2:
                yield Sentence(file, one)


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from filter(None, [ast.get_docstring(node)])
        elif isinstance(node, ast.keyword) and node.arg in ("help", "about") and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def sentences(root: Path = ROOT) -> Iterator[Sentence]:
    """All sentences that a reader of the package, its site or its help may meet."""
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted((root / "slurm").glob("*.md"))]
    for path in pages:
        yield from _sentences(str(path.relative_to(root)), _without_code(path.read_text(encoding="utf-8")))
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
            yield from _sentences(str(path.relative_to(root)), _without_code(text))
    for path in sorted((root / "xrddiff").rglob("*.py")):
        if path.name != "_modidx.py":
            for text in _docstrings(ast.parse(path.read_text(encoding="utf-8"))):
                yield from _sentences(str(path.relative_to(root)), _without_code(text))
    for path in sorted((root / "xrddiff").rglob("*.j2")):
        text = re.sub(r"\{[%{#].*?[%}#]\}", "N", path.read_text(encoding="utf-8"), flags=re.S)
        yield from _sentences(
            str(path.relative_to(root)), _without_code(re.sub(r"<(style|script).*?</\1>", "", text, flags=re.S))
        )


def broken(found: list[Sentence]) -> dict[str, list[Sentence]]:
    """The sentences that break each rule."""
    return {name: [s for s in found if rule.search(s.text) and not s.question] for name, rule in RULES.items()}


def main() -> int:
    """Print how many of 1,000 sentences break each rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", metavar="RULE", help="the sentences that break a rule")
    parser.add_argument("--files", action="store_true", help="how many each file has")
    args = parser.parse_args()
    found, risen = list(sentences()), False
    for name, wrong in broken(found).items():
        share = 1000 * len(wrong) / len(found)
        risen |= share > MOST[name]
        print(f"{name}: {len(wrong)} of {len(found)} sentences, {share:.1f} of 1,000 (at most {MOST[name]})")
        if args.files:
            for file, n in Counter(s.file for s in wrong).most_common(60):
                print(f"    {n:4} {file}")
        if args.show and args.show in name:
            print(*(f"    {s.file}: {s.text}" for s in wrong), sep="\n")
    return int(risen)


if __name__ == "__main__":
    raise SystemExit(main())
