"""Write README.md from index.ipynb: its text, code and printed output, with pictures beside it in docs/pictures."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"


def picture(data: str, number: int, described: str) -> str:
    """Store a PNG output and return the Markdown that shows it, with `described` for who cannot see it."""
    name = f"index-{number}.png"
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(base64.b64decode(data))
    return f"![{described}](docs/pictures/{name})"


def main() -> None:
    for old in PICTURES.glob("index-*.png"):
        old.unlink()
    parts, pictures = ["<!-- Written by `make readme` from index.ipynb: edit that. -->"], 0
    for cell in nbformat.read(ROOT / "index.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        if re.search(r"^# ?\| ?hide$", cell.source, re.M):
            continue
        echo = not re.search(r"^# ?\| ?echo: *false", cell.source, re.M)
        source = re.sub(r"^# ?\|.*\n?", "", cell.source, flags=re.M).strip()
        if echo and source:
            parts.append(f"```python\n{source}\n```")
        described = re.search(r"^# ?\| ?fig-alt: *(.+)$", cell.source, re.M)
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                parts.append(picture(data["image/png"], pictures, described[1] if described else f"figure {pictures}"))
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]).strip())
            elif text := "".join(output.get("text", data.get("text/plain", ""))).strip():
                parts.append(f"```text\n{text}\n```")
    (ROOT / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
