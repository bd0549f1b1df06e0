"""Numbers of the source that may only fall: `python tools/ratchet.py`, as `make lint` does.

The numbers of today stand in `ratchet.json` beside this file. One that has risen fails the check, and the places behind it are
named. One that has fallen is to be written down, so that it cannot rise again: `python tools/ratchet.py --lower`. Who has a good
reason to raise one edits the file by hand, where a reader of the commit sees it. `--show NAME` lists the places behind a number.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Private names that say nothing about what they stand for.
VAGUE = set(
    "_told _there _here _asked _kept _said _held _heard _given _done _got _look _some _at _of _go _put _left _lives _may _hand "
    "_thing _things _stuff _it _misc _util _utils _helper _do _process _handle _data2 _tmp _temp _foo _inner2 _own _all _each _many".split()
)


@dataclass(frozen=True)
class Cell:
    """A code cell of the notebook of a module."""

    module: str
    text: str

    @property
    def exported(self) -> bool:
        return re.match(r"#\|\s*export", self.text) is not None


def _statements_below(node: ast.AST) -> Iterator[ast.AST]:
    """What a statement holds that are no expressions: other statements, branches of `try` and `match`."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        yield from value if isinstance(value := getattr(node, name, []), list) else []


def _all_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a module."""
    for node in _statements_below(tree):
        yield node
        yield from _all_statements(node)


class Source:
    """The notebooks and modules below a folder."""

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def cells(self) -> dict[str, list[Cell]]:
        """The code cells of each notebook that makes a module."""
        found = {}
        for path in sorted((self.root / "nbs").rglob("*.ipynb")):
            if ".ipynb_checkpoints" in path.parts:
                continue
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
            if name := next((m[1] for t in texts if (m := re.search(r"#\|\s*default_exp\s+(\S+)", t))), None):
                found[name] = [Cell(name, text) for text in texts]
        return found

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """The modules of the package, parsed, by name; "" is the package itself."""
        package = self.root / "xrddiff"
        paths = (p for p in sorted(package.rglob("*.py")) if p.name != "_modidx.py")
        names = {p: ".".join(p.relative_to(package).with_suffix("").parts) for p in paths}
        return {
            re.sub(r"\.?__init__$", "", name): ast.parse(p.read_text(encoding="utf-8")) for p, name in names.items()
        }

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules that each module imports, those imported within a function too, but not for type checkers alone."""
        out: dict[str, set[str]] = {}
        packages = {name.rpartition(".")[0] for name in self.trees}
        for name, tree in self.trees.items():
            package = name if name in packages else name.rpartition(".")[0]
            out[name] = set(self._targets(tree, package)) - {name}
        return out

    def _targets(self, tree: ast.AST, package: str) -> Iterator[str]:
        for node in _statements_below(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.ImportFrom):
                above = package.split(".") if package else []
                base = [*above[: len(above) - node.level + 1], *(node.module or "").split(".")] if node.level else None
                whole = ".".join(filter(None, base)) if base is not None else node.module or ""
                if base is None and whole.partition(".")[0] != "xrddiff":
                    continue
                whole = whole.removeprefix("xrddiff").lstrip(".") if base is None else whole
                inner = [f"{whole}.{a.name}".lstrip(".") for a in node.names]
                yield from (one if one in self.trees else whole for one in inner)
            elif isinstance(node, ast.Import):
                ours = [
                    a.name.removeprefix("xrddiff").lstrip(".") for a in node.names if a.name.split(".")[0] == "xrddiff"
                ]
                yield from (one for one in ours if one in self.trees)
            yield from self._targets(node, package)


def tests_of(cells: list[Cell]) -> list[str]:
    """What a notebook shows and tests: its cells that are neither exported nor only imports, each as text."""
    texts = [c.text for c in cells if not c.exported and "#| default_exp" not in c.text]
    imports = re.compile(r"^(from \S+ import (\([^)]*\)|.*)|import .*|#.*|\s*)$", re.MULTILINE)
    return [t for t in texts if imports.sub("", t).strip()]


def _lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def _longer(source: Source, kinds: type | tuple, most: int) -> list[str]:
    places = [
        (_lines(node), f"{module}.{node.name} ({_lines(node)} lines)")
        for module, tree in source.trees.items()
        for node in _all_statements(tree)
        if isinstance(node, kinds) and _lines(node) > most
    ]
    return [place for _, place in sorted(places, reverse=True)]


def long_functions(source: Source) -> list[str]:
    """Functions and methods above 60 lines, the longest first."""
    return _longer(source, ast.FunctionDef | ast.AsyncFunctionDef, 60)


def long_classes(source: Source) -> list[str]:
    """Classes above 300 lines, the longest first."""
    return _longer(source, ast.ClassDef, 300)


def hung_methods(source: Source) -> list[str]:
    """Methods that are put into a class from outside: `Class.method = function`, `setattr(Class, …)`."""
    places = []
    for module, tree in source.trees.items():
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Attribute | ast.Tuple) for t in node.targets):
                hung = any(isinstance(t, ast.Attribute) for target in node.targets for t in ast.walk(target))
                values = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)} & functions
                places += [f"{module}: {ast.unparse(node)[:80]}"] if hung and values else []
            elif isinstance(node, ast.For | ast.Expr) and "setattr(" in ast.unparse(node):
                places.append(f"{module}: {ast.unparse(node)[:80]}")
    return places


def without_assert(source: Source) -> list[str]:
    """Modules whose notebook asserts nothing."""
    asserts = re.compile(r"^\s*assert (?!True\b)|^\s*(\w+\.)*(test|assert)_\w+\(|^\s*with .*\braises\(", re.MULTILINE)
    return [name for name, cells in source.cells.items() if not any(map(asserts.search, tests_of(cells)))]


def _may_pass(node: ast.AST) -> bool:
    """Whether this is a `try` whose error is expected, and that also succeeds without it."""
    if not isinstance(node, ast.Try) or node.orelse or node.finalbody or node.handlers[0].type is None:
        return False
    inner = [n for statement in (*node.body, *node.handlers[0].body) for n in ast.walk(statement)]
    asserts = any(isinstance(n, ast.Assert) for statement in node.body for n in ast.walk(statement))
    return not (asserts or any(isinstance(n, ast.Raise | ast.Return) for n in inner))


def errors_not_required(source: Source) -> list[str]:
    """Examples of errors that pass when there is no error: `try … except: print` without `else: raise AssertionError`."""
    places = []
    for name, cells in source.cells.items():
        for text in tests_of(cells):
            try:
                tree = ast.parse(text)
            except SyntaxError:  # a magic of IPython
                continue
            places += [f"{name}: {text.splitlines()[n.lineno][:80].strip()}" for n in ast.walk(tree) if _may_pass(n)]
    return places


def without_example(source: Source) -> list[str]:
    """Modules that others import and whose notebook has neither `show_doc` nor an example."""
    used = set().union(*source.imports.values())
    shown = {name for name, cells in source.cells.items() if any("#| hide" not in t for t in tests_of(cells))}
    return [name for name in source.cells if name in used and name not in shown]


def _definitions(source: Source) -> Iterator[tuple[str, str]]:
    """(name, module) of every function and class at the top of a module."""
    for module, tree in source.trees.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name, module


def defined_twice(source: Source) -> list[str]:
    """Public functions and classes whose name another module defines too; a verb is named as users call it."""
    places = defaultdict(list)
    for name, module in _definitions(source):
        if not name.startswith("_") and not module.startswith("app.verbs."):
            places[name].append(module)
    return [f"{name}: {', '.join(modules)}" for name, modules in sorted(places.items()) if len(modules) > 1]


def vague_names(source: Source) -> list[str]:
    """Private functions and classes, methods too, whose name says nothing."""
    return [
        f"{module}.{node.name}"
        for module, tree in source.trees.items()
        for node in _all_statements(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name.lower() in VAGUE
    ]


def ignored_imports(source: Source) -> list[str]:
    """Imports that `.importlinter` lets pass."""
    found = configparser.ConfigParser()
    found.read(source.root / ".importlinter", encoding="utf-8")
    return [
        line.strip()
        for section in found.values()
        for line in section.get("ignore_imports", "").splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


def circles(source: Source) -> list[str]:
    """Sets of modules that import each other in a circle, within functions or not."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(name: str) -> None:  # Tarjan's strongly connected components
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(source.imports.get(name, ())):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            if len(circle := stack[at:]) > 1:
                found.append(" ↔ ".join(circle))
            del stack[at:]

    for name in source.imports:
        if name not in order:
            visit(name)
    return found


# Names that look private, and are documented for all.
_DOCUMENTED = {"os._exit", "torch._inductor"}


def private_names(source: Source) -> list[str]:
    """Private names of other packages: `from package._inner import x`, `package._name`."""
    places = []
    for module, tree in source.trees.items():
        others: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                others |= {(a.asname or a.name.partition(".")[0]): a.name for a in node.names}
                found = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                others |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
                found = [f"{node.module}.{a.name}" for a in node.names]
            elif isinstance(node, ast.Attribute) and (root := _called(node).partition("."))[0] in others:
                found = [f"{others[root[0]].partition('.')[0]}.{root[2]}"]
            else:
                continue
            for name in found:
                ours = name.startswith(("xrddiff", "__future__")) or any(name.startswith(d) for d in _DOCUMENTED)
                if not ours and any(re.match("_(?!_)", part) for part in name.split(".")):
                    places.append(f"{module}: {name}")
    return places


_SECTIONS = ("model", "size", "data", "training", "inference")


def configurations_taken(source: Source) -> list[str]:
    """Functions outside `config` that take the words of a run, or read words past its plan."""
    places = []
    for module, tree in source.trees.items():
        if module.partition(".")[0] == "config":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                typed = [
                    a for a in given if re.search(r"\bConfig\b", ast.unparse(a.annotation) if a.annotation else "")
                ]
                places += [f"{module}.{node.name}({a.arg})" for a in given if a in typed or a.arg == "cfg"]
            elif isinstance(node, ast.Attribute) and node.attr in _SECTIONS and isinstance(node.value, ast.Attribute):
                if node.value.attr == "config" and ast.unparse(node.value.value).endswith("plan"):
                    places.append(f"{module}: {ast.unparse(node)}")
    return places


def modules(source: Source) -> list[str]:
    """Modules that a notebook makes."""
    return list(source.cells)


# Methods and functions that write, replace or remove something, and where they take its name.
_METHODS = set(
    "to_csv to_parquet to_json to_pickle to_excel to_feather to_zarr to_netcdf to_hdf write_text write_bytes savefig tofile touch symlink_to "
    "hardlink_to unlink write_to_file".split()
)
_FUNCTIONS = set(
    "open io.open os.open os.fdopen os.remove os.unlink os.rename os.replace os.removedirs os.truncate os.link os.symlink shutil.copy shutil.copy2 "
    "shutil.copyfile shutil.copytree shutil.move shutil.rmtree np.save np.savez np.savez_compressed np.savetxt torch.save json.dump pickle.dump "
    "save_file h5py.File zarr.open zarr.open_group tarfile.open zipfile.ZipFile".split()
)
_SECOND = (
    "os.rename",
    "os.replace",
    "os.link",
    "shutil.copy",
    "shutil.copy2",
    "shutil.copyfile",
    "shutil.copytree",
    "shutil.move",
    "save_file",
)
_MODES = (
    "open",
    "io.open",
    "os.fdopen",
    "h5py.File",
    "zarr.open",
    "zarr.open_group",
    "tarfile.open",
    "zipfile.ZipFile",
)
# What gives a place to write to: `with writing(path) as part`, a parameter of the type `Part`, a buffer in memory.
_GIVERS = (
    "writing",
    "new_output",
    "writing_hdf5",
    "scratch_folder",
    "TemporaryDirectory",
    "BytesIO",
    "StringIO",
    "open_appending",
    "append_to",
)
WRITERS = {  # modules that may write otherwise, and why
    "core.files": "the one way to write",
    "core.safe_write": "the one way to write",
    "core.launcher": "output of a program, in a folder made for it",
    "core.registry": "the index of the package, which `make export` writes",
    "data.formats.store": "the file behind `writing_hdf5`",
    "data.formats.parts": "shards of a store that is not finished",
    "data.remote.byte_cache": "bytes of servers in the user's cache, which processes share",
    "run.streaming.answers": "a table that grows in place",
}


def _called(node: ast.expr) -> str:
    """The dotted name of a function that is called."""
    if isinstance(node, ast.Attribute):
        return f"{_called(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def _root(node: ast.expr) -> str | None:
    """The name that an expression of a path begins with: `part` of `part / "a"` and of `str(part)`."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Call):
            node = node.args[0] if isinstance(node.func, ast.Name) and node.args else node.func
        elif isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
            node = node.value
        elif isinstance(node, ast.BinOp):
            node = node.left
        else:
            return None
    return node.id


def _written(call: ast.Call) -> ast.expr | None:
    """The place that a call writes to; None if it writes nothing."""
    name, last = _called(call.func), _called(call.func).rpartition(".")[2]
    if isinstance(call.func, ast.Attribute) and last in _METHODS:
        if last in ("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "unlink"):
            return call.func.value
        named = [k.value for k in call.keywords if k.arg in ("path_or_buf", "path", "fname")]
        return (call.args[:1] or named or [None])[0]
    if name not in _FUNCTIONS or not call.args:
        return None
    if name in _MODES:
        mode = (
            call.args[1]
            if len(call.args) > 1
            else next((k.value for k in call.keywords if k.arg == "mode"), ast.Constant("r"))
        )
        if isinstance(mode, ast.Constant) and not re.search("[wax+]", str(mode.value)):
            return None
    if name == "os.open" and (
        "O_EXCL" in (flags := ast.unparse(call)) or not re.search("O_(WRONLY|RDWR|CREAT)", flags)
    ):
        return None
    return call.args[1] if name in _SECOND and len(call.args) > 1 else call.args[0]


def _writes(node: ast.AST, given: set[str]) -> Iterator[ast.Call]:
    """Calls below a node that write to a place nobody gave."""
    for child in ast.iter_child_nodes(node):
        inner = set(given)
        if isinstance(child, ast.With | ast.AsyncWith):
            for item in child.items:
                call, names = item.context_expr, item.optional_vars
                known = isinstance(call, ast.Call) and (
                    _called(call.func).rpartition(".")[2] in _GIVERS
                    or _root(call) in inner
                    or _root(call.func) in inner
                )
                inner |= {n.id for n in ast.walk(names) if isinstance(n, ast.Name)} if known and names else set()
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*child.args.args, *child.args.kwonlyargs]
            inner |= {
                a.arg
                for a in arguments
                if a.annotation is not None and _called(a.annotation).rpartition(".")[2] == "Part"
            }
        elif isinstance(child, ast.Assign):
            calls = [n for n in ast.walk(child.value) if isinstance(n, ast.Call)]
            if any(_called(c.func).rpartition(".")[2] in _GIVERS for c in calls) or _root(child.value) in given:
                given |= {t.id for t in child.targets if isinstance(t, ast.Name)}
        elif isinstance(child, ast.Call) and (place := _written(child)) is not None and _root(place) not in given:
            maker = _called(place.func).rpartition(".")[2] if isinstance(place, ast.Call) else ""
            if maker not in _GIVERS and "O_EXCL" not in (said := ast.unparse(place)) and said != "os.devnull":
                yield child
        yield from _writes(child, inner)


def writes_elsewhere(source: Source) -> list[str]:
    """Places that write, replace or remove files past `core.files.writing` and `core.safe_write.new_output`, run notebooks too."""
    trees = {name: tree for name, tree in source.trees.items() if name not in WRITERS}
    for path in sorted((source.root / "nbs" / "runs").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        trees[f"runs/{path.name}"] = ast.parse(
            "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        )
    return [f"{name}: {ast.unparse(call)[:100]}" for name, tree in trees.items() for call in _writes(tree, set())]


MEASURES = {
    "functions above 60 lines": long_functions,
    "classes above 300 lines": long_classes,
    "methods hung onto classes": hung_methods,
    "modules whose notebook asserts nothing": without_assert,
    "examples of errors that need not occur": errors_not_required,
    "imported modules without show_doc or example": without_example,
    "public names defined twice": defined_twice,
    "private names without meaning": vague_names,
    "ignored imports": ignored_imports,
    "circles of imports": circles,
    "writes past the one way to write": writes_elsewhere,
    "words of a run taken below config": configurations_taken,
    "private names of other packages": private_names,
    "modules": modules,
}


def judge(found: Mapping[str, list[str]], allowed: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """What has risen above what is allowed, each with the places behind it, and what has fallen below it."""
    risen, fallen = [], []
    for name, places in found.items():
        most = allowed.get(name, 0)
        if len(places) > most:
            shown = list(dict.fromkeys(places))[:20]
            risen.append("\n    ".join([f"{name}: {len(places)}, and at most {most} are allowed", *shown]))
        elif len(places) < most:
            fallen.append(f"{name}: {len(places)}, down from {most}")
    return risen, fallen


def main(argv: list[str] | None = None) -> int:
    """Compare, lower or show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lower", action="store_true", help="write down the numbers that have fallen")
    parser.add_argument("--show", metavar="NAME", help="the places behind the numbers whose name begins so")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    args = parser.parse_args(argv)
    source, file = Source(args.root), args.root / "tools" / "ratchet.json"
    if args.show:
        for name, measure in MEASURES.items():
            if name.startswith(args.show):
                places = measure(source)
                print(f"{name}: {len(places)}", *dict.fromkeys(places), sep="\n    ")
        return 0
    allowed = json.loads(file.read_text(encoding="utf-8"))
    found = {name: measure(source) for name, measure in MEASURES.items()}
    risen, fallen = judge(found, allowed)
    if args.lower:
        lower = {name: min(len(places), allowed.get(name, 0)) for name, places in found.items()}
        file.write_text(json.dumps(lower, indent=1) + "\n", encoding="utf-8")
    print(*risen, *fallen, sep="\n", end="\n" if risen or fallen else "")
    if fallen and not args.lower:
        print("these have fallen; write them down: make ratchet")
    return 1 if risen else 0


if __name__ == "__main__":
    sys.exit(main())
