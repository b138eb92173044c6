"""Draws the pictures of docs/sweeps.md anew, by the very commands that the page shows: after a change of a scenario or of a plot.

Start it with .venv/bin/python tools/docs_pictures.py. 64 colours are enough for plots and make files of a few ten kilobytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLOURS = 64


def main() -> int:
    """Run the page's commands in a folder of their own, with PNG for every format; take over what the page has pictures of."""
    page = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    wanted = re.findall(r"!\[[^]]*\]\((\w+)\.png\)", page)
    with tempfile.TemporaryDirectory() as folder:
        for line in re.findall(r"^\$ wagma (.*)$", page, re.MULTILINE):
            words = re.sub(r"\.(pdf|svg)\b", ".png", line).split()
            print("wagma", *words, flush=True)
            subprocess.run([sys.executable, "-m", "wagma", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for name in wanted:
            with Image.open(Path(folder, f"{name}.png")) as picture:
                few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                few.save(DOCS / f"{name}.png", optimize=True)
            print(f"{name}.png: {(DOCS / f'{name}.png').stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
