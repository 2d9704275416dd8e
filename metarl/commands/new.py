"""``metarl new tasks|algorithm|outer NAME``: write a small, working plugin package to start from.

It imports only the standard library, so it starts at once. Packages are made from ``metarl/templates``, whose plugins
are called ``my-family``, ``my-algorithm`` and ``my-outer``.
"""

import argparse
import builtins
import importlib.util
import io
import json
import keyword
import math
import os
import re
import shutil
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple, NoReturn

from metarl import plugins
from metarl.cli import DONE, Execute
from metarl.files import check_folder, expanded, typed

KINDS = {
    "control": "an environment of your own, as functions of torch tensors",
    "gymnasium": "a Gymnasium environment whose parameters differ between tasks",
    "regression": "a function whose parameters differ between tasks",
    "images": "few-shot classification of labelled images",
    "table": "few-shot regression on a table whose rows come in groups",
}
TRAINED = {
    "tasks": "maml {}",
    "algorithm": "{} point-navigation --iterations 100",
    "outer": "maml sinusoid --outer {} --iterations 1000",
}
"""Arguments of ``metarl train`` for each kind of plugin."""
_TAKEN = ("sampling", "spec", "parameter_space", "sample", "environment", "single")
"""Names that a family of Gymnasium environments has already."""
TITLES = {"family": "task family", "algorithm": "algorithm", "outer": "outer update"}


class Names(NamedTuple):
    """The names of a plugin, its module and its class."""

    plugin: str  # half-cheetah
    module: str  # half_cheetah
    cls: str  # HalfCheetah

    @classmethod
    def of(cls, plugin: str) -> "Names":
        """Derive all names from that of the plugin."""
        return cls(plugin, plugin.replace("-", "_"), "".join(word.capitalize() for word in plugin.split("-")))


def prepare(arguments: list[str]) -> Execute:
    """``tasks|algorithm|outer NAME``: write a small, working plugin package."""
    chosen = _parser().parse_args(arguments)
    kind = getattr(chosen, "kind", chosen.what)
    changed = _environment(getattr(chosen, "env", None), getattr(chosen, "parameter", ()), kind)
    folder = expanded(chosen.name if chosen.out is None else chosen.out)
    check_name(chosen.name)
    check_folder(folder.parent)
    files = render(chosen.name, kind, changed)
    if os.path.lexists(folder):
        raise ValueError(f"{folder} already exists and is not overwritten; choose another folder with --out")

    def execute() -> int:
        write(folder, files)
        print(f"wrote {folder}: {', '.join(sorted(files))}")
        print(f"pip install -e {typed(folder)}")
        print(f"metarl check {chosen.name}")
        print(f"metarl train {TRAINED[chosen.what].format(chosen.name)}")
        return DONE

    return execute


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors. The command line then prints them in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{message}; '{self.prog} --help' shows the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="metarl new", description="Write a small, working plugin package to start from.")
    whats = parser.add_subparsers(dest="what", required=True, metavar="|".join(TRAINED))
    tasks = whats.add_parser("tasks", help="a task family", description="Write a package with a task family.")
    kinds = "; ".join(f"{kind}: {description}" for kind, description in KINDS.items())
    tasks.add_argument("--kind", choices=KINDS, default="control", help=f"kind of tasks (default: control). {kinds}")
    tasks.add_argument("--env", metavar="ID", help="with --kind gymnasium: the environment's id, such as CartPole-v1")
    tasks.add_argument(
        "--parameter", metavar="NAME=LOW,HIGH", action="append", default=[],
        help="with --env: an attribute of the environment that differs between tasks, and its range; may be repeated",
    )  # fmt: skip
    algorithm = whats.add_parser("algorithm", help="an algorithm", description="Write a package with an algorithm.")
    outer = whats.add_parser("outer", help="an outer update", description="Write a package with an outer update.")
    for what in (tasks, algorithm, outer):
        what.add_argument("name", metavar="NAME", help="lower-case words joined by hyphens")
        what.add_argument("--out", help="folder to write (default: NAME)")
    return parser


def check_name(name: str) -> None:
    """Raise ValueError for a name that is invalid or already in use."""
    if not plugins.NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} is not lower-case words joined by hyphens{_corrected(name)}")
    names = Names.of(name)
    if found := [plugin for plugin in plugins.installed(*plugins.GROUPS) if plugin.name == name]:
        raise ValueError(f"the {found[0]} already has this name; choose another, or uninstall {found[0].package}")
    if keyword.iskeyword(names.module) or keyword.iskeyword(names.cls) or names.cls in dir(builtins):
        raise ValueError(f"the module {names.module} or the class {names.cls} has a name of Python's{_advice(name)}")
    if names.module in sys.stdlib_module_names:
        raise ValueError(f"{names.module!r} is a module of Python's standard library{_advice(name)}")
    if importlib.util.find_spec(names.module) is not None:
        raise ValueError(f"a module {names.module!r} is installed or in the current folder{_advice(name)}")
    if _is_distribution(name):
        raise ValueError(f"a package {name!r} is installed{_advice(name)}")


def _corrected(name: str) -> str:
    """Return the nearest valid name, as the end of a sentence; empty if there is none."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    better = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    better = f"my-{better}" if better[:1].isdigit() else better
    return f"; did you mean {better!r}?" if better else ""


def _advice(name: str) -> str:
    return f"; choose another, such as 'my-{name}'"


def _is_distribution(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


Change = Callable[[str], str]


def _environment(env: str | None, parameters: Sequence[str], kind: str) -> Change:
    """Return a function that puts another environment into a family's source. Raises ValueError for wrong options."""
    if env is None and not parameters:
        return lambda text: text
    if kind != "gymnasium" or env is None or not parameters:
        raise ValueError(
            "--env ID and --parameter NAME=LOW,HIGH must be given together, with --kind gymnasium, such as --env "
            "CartPole-v1 --parameter length=0.3,0.8"
        )
    ranges = dict(map(_range, parameters))
    names = list(ranges)
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    fields = "\n".join(
        f'    {name}: tuple[float, float] = ({low}, {high})\n    """Range of {name}, which is uniform in it."""'
        for name, (low, high) in ranges.items()
    )
    (low, high), values = ranges[names[0]], f'parameters["{names[0]}"]'
    changes = {
        r"    gravity: tuple.*?(?=\n    sampling:)": fields,
        r"Gymnasium's pendulum with a different gravity and mass": f"{env} with a different {listed}",
        r"(?<=descriptor: )``g``.*?kilograms": " and ".join(f"``{name}`` ``[task, 1]``" for name in names),
        r"(?<=Descriptor: )gravity and mass": listed,
        r"Sample pendulums": "Sample tasks",
        r'"Pendulum-v1"': json.dumps(env),
        r"(?<=spaces.Dict\().*?\)\)": ", ".join(f"{name}=spaces.Box(*self.{name})" for name in names) + ")",
        r"(?<=MyFamily\()gravity=\(9.0, 10.0\)": "",
        r"    assert 9 <= .*?<= 2": f"    assert {low} <= {values}.min() <= {values}.max() <= {high}",
    }

    def change(text: str) -> str:
        for pattern, replacement in changes.items():
            text = re.sub(pattern, replacement.replace("\\", r"\\"), text, flags=re.DOTALL)
        return text

    return change


def _range(parameter: str) -> tuple[str, tuple[float, float]]:
    name, _, ends = parameter.partition("=")
    try:
        low, high = map(float, ends.split(","))
    except ValueError:
        raise ValueError(f"--parameter {parameter}: expected NAME=LOW,HIGH, such as length=0.3,0.8") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--parameter {parameter}: expected two finite numbers, the lower first")
    if not name.isidentifier() or keyword.iskeyword(name) or name in _TAKEN:
        raise ValueError(f"--parameter {parameter}: {name!r} cannot be the name of a field here")
    return name, (low, high)


def render(name: str, kind: str, change: Change = lambda text: text) -> dict[str, str]:
    """Return the text of each file of a package, by path. ``kind``: a kind of family, 'algorithm' or 'outer'.

    ``change`` is applied to the templates first. Raises ValueError if the name of the class is already used in a file.
    """
    what = "family" if kind in KINDS else kind
    names, placeholders = Names.of(name), Names.of(f"my-{what}")
    sources = {
        "pyproject.toml": f"{what}/pyproject.toml",
        "README.md": f"{what}/README.md",
        f"{placeholders.module}/{what}.py": f"{kind}/{what}.py",
        f"tests/test_{placeholders.module}.py": f"{kind}/test_{what}.py",
    }
    if what == "family":
        sources[f"{placeholders.module}/recipes/{placeholders.plugin}.toml"] = "family/recipe.toml"
    files = {path: change(_template(source)) for path, source in sources.items()}
    for path, text in files.items():
        if path.endswith(".py") and names != placeholders and names.cls in _identifiers(text):
            raise ValueError(f"{Path(path).name} already uses the name of the class {names.cls}{_advice(name)}")
    files[f"{placeholders.module}/__init__.py"] = f'"""The {TITLES[what]} my-{what} for metarl."""\n'
    files[f"{placeholders.module}/py.typed"] = ""
    return {_renamed(path, placeholders, names): _renamed(text, placeholders, names) for path, text in files.items()}


def _template(source: str) -> str:
    return (resources.files("metarl") / "templates" / f"{source}.template").read_text(encoding="utf-8")


def _identifiers(text: str) -> set[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def _renamed(text: str, old: Names, new: Names) -> str:
    for one, other in zip(old, new, strict=True):
        text = text.replace(one, other)
    return text


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files into a new folder: all of them, or none if it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")
    partial.mkdir()
    try:
        for path, text in files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text, encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
