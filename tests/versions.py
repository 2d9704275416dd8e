"""Run tests with the lowest and with the newest versions that pyproject.toml allows, on each Python that is here.

``make versions``, or ``python tests/versions.py [--which lowest] [--python 3.12] [--pin torch==2.13.0] [TESTS ...]``.
Each pair of a Python and a set of versions has a virtual environment of its own, in the folder ``.versions``.

The lowest versions are the floors of pyproject.toml themselves, so a floor that is too low fails here. Where a floor is
older than the Python, ``FIRST`` has the first version with wheels for that Python. ``--pin`` replaces one, where that
version cannot be installed, such as PyTorch's CPU builds of the past.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".versions"
PYTHONS = ("3.11", "3.12", "3.13")
SETS = ("lowest", "newest")
EXTRAS = ("render", "tune")
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "scikit-learn")
"""What the tests need of the extra dev."""
FIRST = {
    "3.12": {"scipy": "1.11.3", "scikit-learn": "1.4.0"},
    "3.13": {
        "numpy": "2.1.0", "scipy": "1.14.1", "matplotlib": "3.9.2", "pillow": "11.0.0", "scikit-learn": "1.5.2",
        "mujoco": "3.3.0",
    },
}  # fmt: skip
"""The first versions with wheels for a Python, where pyproject.toml's floors are older."""
FAST = (
    "tests/metarl/algorithms", "tests/metarl/outer", "tests/metarl/control", "tests/metarl/environments",
    "tests/metarl/fewshot", "tests/metarl/networks", "tests/metarl/runs", "tests/metarl/sb3", "tests/metarl/commands",
    "tests/metarl/tuning", "tests/envs",
)  # fmt: skip
"""The tests that are run where none are named: those that meet other packages."""


class Room(NamedTuple):
    """One Python with one set of versions."""

    python: str
    which: str

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return FOLDER / f"{self.python}-{self.which}"


def floors(requirements: Iterable[str]) -> dict[str, str]:
    """Return the floor of each requirement that has one: ``numpy>=1.26`` is ``{"numpy": "1.26"}``."""
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([\w.]+)", one) for one in requirements)
    return {one[1].lower(): one[2] for one in found if one}


def constraints(python: str, which: str, project: Mapping, pins: Mapping[str, str]) -> dict[str, str]:
    """Return the versions that pip is to take, by package."""
    if which == "newest":
        return dict(pins)
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name in EXTRAS for one in extras[name]), *tools(project)]
    return floors(asked) | FIRST.get(python, {}) | dict(pins)


def tools(project: Mapping) -> list[str]:
    """Return the requirements of the tests themselves."""
    return [one for one in project["optional-dependencies"]["dev"] if re.split(r"[>=\[]", one)[0] in TOOLS]


def interpreters(versions: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each version of Python, and where it is, if it is here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in versions:
        name = f"python{version}"
        places = [shutil.which(name), *map(str, sorted(pyenv.glob(f"{version}.*/bin/{name}")))]
        yield version, next((place for place in places if place and runs(place)), None)


def runs(interpreter: str) -> bool:
    """Return whether an interpreter runs: pyenv has stand-ins for those that are not chosen."""
    return subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode == 0


def prepare(room: Room, interpreter: str, project: Mapping, pins: Mapping[str, str]) -> str:
    """Make the virtual environment of a room. Return its Python."""
    shutil.rmtree(room.folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", room.folder], check=True)
    file = room.folder / "constraints.txt"
    chosen = constraints(*room, project, pins)
    file.write_text("".join(f"{name}=={version}\n" for name, version in chosen.items()))
    python = str(room.folder / "bin" / "python")
    packages = ["--editable", f"{ROOT}[{','.join(EXTRAS)}]", *tools(project)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--constraint", file, *packages], check=True)
    return python


def tried(room: Room, interpreter: str, project: Mapping, pins: Mapping[str, str], tests: list[str]) -> str:
    """Run the tests in a room. Return how that ended."""
    print(f"\n== Python {room.python}, {room.which} versions", flush=True)
    try:
        python = prepare(room, interpreter, project, pins)
    except subprocess.CalledProcessError as error:
        return f"could not be installed (exit code {error.returncode})"
    subprocess.run([python, "-m", "pip", "list", "--format", "freeze"], check=True)
    # Old packages on top of newer ones meet what is deprecated there: here, that is no error.
    marks = ["-m", "not slow and not benchmark and not gpu", "-W", "default::DeprecationWarning"]
    code = subprocess.run([python, "-m", "pytest", "-q", *marks, *tests], cwd=ROOT, check=False).returncode
    return "passed" if code == 0 else f"failed (exit code {code} of pytest)"


def main() -> int:
    """Run what was asked for. Return 1 if a room failed, or no Python was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--which", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=list(PYTHONS))
    parser.add_argument("--pin", nargs="+", default=[], metavar="NAME==VERSION")
    parser.add_argument("tests", nargs="*")
    asked = parser.parse_args()
    pins = dict(pin.split("==", 1) for pin in asked.pin)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = dict(interpreters(asked.python))
    told = {
        Room(version, which): tried(Room(version, which), place, project, pins, asked.tests or list(FAST))
        for version, place in found.items()
        if place is not None
        for which in asked.which
    }
    print()
    for version, place in found.items():
        if place is None:
            print(f"Python {version}: not found on this machine, skipped")
    for room, ended in told.items():
        print(f"Python {room.python}, {room.which} versions: {ended}")
    return 0 if told and set(told.values()) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
