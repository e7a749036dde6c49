"""matplotlib, of a version that always draws the same: in a folder of its own, unless it is there."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

VERSION = "3.11.2"


def prepare(folder: Path):
    """Makes that `import matplotlib` works."""
    if importlib.util.find_spec("matplotlib") and importlib.metadata.version("matplotlib") == VERSION:
        return
    place = folder.resolve() / f"plotting-{VERSION}"
    packages = place / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    if not (packages / "matplotlib").exists():
        print(f"scripts/bench: installing matplotlib {VERSION} in {place}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin/pip"), "install", "-q", "--disable-pip-version-check", f"matplotlib=={VERSION}"], check=True)
    sys.path.insert(0, str(packages))
