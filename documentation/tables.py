"""Tables of the README that follow from what methods and networks declare.

    python documentation/tables.py

writes them anew between their marks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ssl_pretrain.methods import METHODS  # noqa: E402 - of this folder, not of what is installed
from ssl_pretrain.networks.registry import NETWORKS, shown_names  # noqa: E402

README = ROOT / "README.md"
BEGIN, END = "<!-- methods: written by documentation/tables.py -->", "<!-- end of methods -->"


def methods_table() -> str:
    """A row per method: page, pretext task, what is trained, networks."""
    lines = ["| method | pretext task | trains and exports | networks |", "| --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        page = f"documentation/methods/{name.lower()}.md"
        networks = [network for network, row in NETWORKS.items() if method.goes_with(row.offers)]
        shown = shown_names(networks).replace("|", "/")  # a bar would end the cell
        if method.goes_with(frozenset({"convolutions"})):
            shown += ", [your own](documentation/how-to/bring-your-own-encoder.md)"
        elif method.goes_with(frozenset({"convolutions", "decoder"})):
            shown += ", [your own](documentation/how-to/bring-your-own-encoder.md) with a decoder"
        task = (method.__doc__ or "").split("\n")[0].rstrip(".")
        lines.append(f"| [{name}]({page}) | {task} | {method.exports} | {shown} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The README with its tables as they should be."""
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    return between.sub(lambda _: f"\n{methods_table()}\n\n", text)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
