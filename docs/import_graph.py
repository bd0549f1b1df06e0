"""Draw which rooms of the package import which: python docs/import_graph.py [ROOT] [--wings] -o FILE.svg

Wings and their rooms stand in the order of `.importlinter`, the lowest at the top. An arrow on the right goes
to a room that stands above it, as it should; one on the left, in red, goes the wrong way. The number is how many modules import how
many: pairs of modules. The same source gives the same bytes.
"""

import argparse
import ast
import configparser
import html
from collections import Counter
from pathlib import Path

STEP, LEFT, BOX = 30, 130, (118, 22)


def layers(root: Path) -> dict[str, list[str]]:
    """The rooms of each wing of `.importlinter`, lowest first."""
    found = configparser.ConfigParser()
    found.read(root / ".importlinter", encoding="utf-8")

    def lowest_first(contract: str) -> list[str]:
        lines = found[f"importlinter:contract:{contract}"]["layers"].split()
        return [line for line in lines if line != "|"][::-1]

    return {wing: lowest_first(wing) for wing in lowest_first("wings")}


def imports(root: Path) -> set[tuple[str, str]]:
    """Pairs (module, module it imports) of the package below `root`, wherever in the module the import stands."""
    package = root / "xrddiff"
    files = {
        p: ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for p in package.rglob("*.py")
    }
    files = {p: name for p, name in files.items() if not {"_modidx", "_notebooks"} & set(p.with_suffix("").parts)}
    known, pairs = set(files.values()), set()
    for path, name in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parent = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
                    base = ".".join([*parent[: len(parent) - node.level + 1], *filter(None, [node.module])])
                targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
            elif isinstance(node, ast.Import):
                targets = [a.name for a in node.names]
            else:
                continue
            pairs |= {(name, t) for t in targets if t in known and t != name}
    return pairs


def between(pairs: set[tuple[str, str]], depth: int) -> Counter[tuple[str, str]]:
    """How many pairs of modules stand behind each arrow between two wings (depth 1) or rooms (depth 2)."""
    split = [(a.split("."), b.split(".")) for a, b in pairs]
    return Counter((a[depth], b[depth]) for a, b in split if min(len(a), len(b)) > 2 and a[depth] != b[depth])


def draw(wings: dict[str, list[str]], arrows: Counter[tuple[str, str]]) -> str:
    """The picture as SVG."""
    order = [room for rooms in wings.values() for room in rooms]
    y = {room: 30 + STEP * i for i, room in enumerate(order)}
    width, height = LEFT + BOX[0] + 60 + STEP * len(order) // 2, 20 + STEP * len(order)
    lines, labels = [], []
    for (a, b), count in sorted(arrows.items(), key=lambda item: (-abs(y[item[0][0]] - y[item[0][1]]), item[0])):
        back = y[b] > y[a]
        side, colour = (-1, "#c0392b") if back else (1, "#7f8c8d")
        x = LEFT if back else LEFT + BOX[0]
        bulge = side * (14 + 0.66 * abs(y[a] - y[b]))
        top, bottom = y[a] + (4 if back else -4), y[b] + (-4 if back else 4)
        stroke = 0.8 + 0.35 * count**0.5
        lines.append(
            f'<path d="M{x} {top} C{x + bulge:.0f} {top} {x + bulge:.0f} {bottom} {x + side * 5} {bottom}" fill="none" stroke="{colour}" '
            f'stroke-opacity="{1 if back else 0.6}" stroke-width="{stroke:.1f}" marker-end="url(#{"back" if back else "down"})"/>'
        )
        place = x + 0.75 * bulge, (top + bottom) / 2 + 3
        labels.append(
            f'<text x="{place[0]:.0f}" y="{place[1]:.0f}" text-anchor="middle" font-size="9" fill="{colour if back else "#2c3e50"}" '
            f'stroke="white" stroke-width="2.5" paint-order="stroke"><title>{a} imports {b}</title>{count}</text>'
        )
    boxes = []
    for wing, rooms in wings.items():
        if not wing:
            continue
        top = y[rooms[0]] - STEP / 2
        boxes.append(
            f'<path d="M10 {top:.0f} H{width - 10}" stroke="#d5d8dc"/>'
            f'<text x="{LEFT - 20}" y="{(y[rooms[0]] + y[rooms[-1]]) / 2 + 5:.0f}" text-anchor="end" font-size="15" font-weight="bold" fill="#1b2631">{html.escape(wing)}</text>'
        )
    for room in order:
        boxes.append(
            f'<rect x="{LEFT}" y="{y[room] - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="4" fill="#eaf2f8" stroke="#2c3e50"/>'
            f'<text x="{LEFT + BOX[0] / 2:.0f}" y="{y[room] + 4:.0f}" text-anchor="middle" font-size="12" fill="#1b2631">{html.escape(room)}</text>'
        )
    head = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9" orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("down", "#7f8c8d"), ("back", "#c0392b"))
    )
    body = "\n".join([*lines, *labels, *boxes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n<defs>{head}</defs>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Draw the graph and say which arrows go the wrong way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--wings", action="store_true", help="the wings, not their rooms")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    wings = layers(args.root)
    arrows = between(imports(args.root), 1 if args.wings else 2)
    groups = {"": list(wings)} if args.wings else wings
    order = [room for names in groups.values() for room in names]
    args.output.write_text(draw(groups, arrows), encoding="utf-8")
    back = {arrow: n for arrow, n in arrows.items() if order.index(arrow[1]) > order.index(arrow[0])}
    print(
        f"{len(order)} {'wings' if args.wings else 'rooms'}, {len(arrows)} arrows, {len(back)} of them back: {', '.join(f'{a} → {b} ({n})' for (a, b), n in sorted(back.items())) or 'none'}"
    )


if __name__ == "__main__":
    main()
