"""Put the measured tables into README.md and docs/, between their markers; --check only says whether they are there.

    python examples/include_results.py

A table stands between ``<!-- include docs/results/NAME.md -->`` and ``<!-- end include -->``.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- include (\S+) -->\n).*?(<!-- end include -->)", re.DOTALL)


def included(text: str) -> str:
    """``text`` with each block filled anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{(ROOT / m[2]).read_text().strip()}\n\n{m[3]}", text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    stale = [page for page in pages() if included(page.read_text()) != page.read_text()]
    if "--check" in sys.argv:
        sys.exit(f"run python examples/include_results.py: {[page.name for page in stale]}" if stale else 0)
    for page in stale:
        page.write_text(included(page.read_text()))
