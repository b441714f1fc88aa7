"""Comparison of what is installed with what is pinned for this Python and platform.

python .ci/pins.py constraints.txt
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Not of PyPI's choosing: ourselves, and what every environment is made with.
OURS = {"odesteer", "odesteer-median", "pip", "setuptools"}


def main(constraints: Path) -> None:
    pins = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            [exact] = requirement.specifier
            assert exact.operator == "==", f"{constraints}: '{line}' is not exact"
            if requirement.marker is None or requirement.marker.evaluate():
                pins[canonicalize_name(requirement.name)] = exact.version
    installed = {canonicalize_name(each.name): each.version for each in distributions()}
    wrong = [
        f"{name} is {version}, pinned is {pins.get(name, 'nothing')}"
        for name, version in sorted(installed.items())
        # 2.13.0+cpu is the build of 2.13.0 that was asked for.
        if name not in OURS and version.partition("+")[0] != pins.get(name)
    ]
    assert not wrong, "\n".join(wrong)
    print(f"{len(installed)} packages, all as pinned")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
