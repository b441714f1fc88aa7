"""Is everything that is installed pinned, and in the version that is pinned?

python .ci/pins.py constraints.txt
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

# Not of PyPI's choosing: ourselves, and what every environment is made with.
OURS = {"odesteer", "odesteer-median", "pip", "setuptools"}


def main(constraints: Path) -> None:
    pins = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].partition(";")[0].strip()
        if requirement:
            name, exact, version = requirement.partition("==")
            assert exact, f"{constraints}: '{line}' is not exact"
            pins[_normal(name)] = version
    installed = {_normal(each.name): each.version for each in distributions()}
    wrong = [
        f"{name} is {version}, pinned is {pins.get(name, 'nothing')}"
        for name, version in sorted(installed.items())
        # 2.13.0+cpu is the build of 2.13.0 that was asked for.
        if name not in OURS and version.partition("+")[0] != pins.get(name)
    ]
    assert not wrong, "\n".join(wrong)
    print(f"{len(installed)} packages, all as pinned")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
