"""Pictures of the methods' pages: docs/images/methods/NAME.png.

python -m experiments.method_portraits        # about a minute
"""

from pathlib import Path

from experiments.gallery.measure import run
from experiments.gallery.plot import method_figure

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images" / "methods"

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    measured = run()
    for method in dict.fromkeys(method for method, _ in measured.panels):
        method_figure(measured, method, FOLDER / f"{method}.png")
