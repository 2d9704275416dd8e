"""What users install: the wheel's contents, what it is called, and what importing the package costs."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from itertools import chain
from pathlib import Path

import pytest

import metarl

ROOT = Path(__file__).parents[1]
PACKAGES = {"metarl": ROOT / "metarl", "metarl_envs": ROOT / "envs", "metarl_plugins": ROOT / "plugins"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    info = f"metarl_toolkit-{metarl.__version__}.dist-info"
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"metarl", "metarl_envs", "metarl_plugins", info}


@pytest.mark.slow
@pytest.mark.parametrize("package", ["metarl", "metarl_envs", "metarl_plugins"])
def test_the_wheel_holds_every_file_of_a_package(wheel: zipfile.ZipFile, package: str) -> None:
    folder = ROOT if package == "metarl" else PACKAGES[package]
    files = {path.relative_to(folder).as_posix() for path in (folder / package).rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    assert {name for name in wheel.namelist() if name.startswith(f"{package}/")} == expected
    assert f"{package}/py.typed" in expected


@pytest.mark.slow
def test_every_entry_point_leads_into_the_wheel(wheel: zipfile.ZipFile) -> None:
    parser = ConfigParser(delimiters="=")
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    parser.read_string(wheel.read(name).decode())
    assert set(parser.sections()) == {"console_scripts", "metarl.algorithms", "metarl.outers", "metarl.tasks"}
    modules = {value.partition(":")[0].replace(".", "/") for group in parser for value in parser[group].values()}
    files = {name.removesuffix(".py").removesuffix("/__init__") for name in wheel.namelist()}
    assert modules <= files


@pytest.mark.slow
def test_the_wheel_is_called_metarl_toolkit_and_asks_for_nobody_called_metarl(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    told = message_from_bytes(wheel.read(name))
    assert told["Name"] == "metarl-toolkit"
    asked = {required(line) for line in told.get_all("Requires-Dist")}
    assert "torch" in asked
    assert "metarl" not in asked


@pytest.mark.slow
@pytest.mark.parametrize("init", ["def hello(): ...\n", None], ids=["replaced", "taken away"])
def test_where_a_namesake_has_replaced_our_init_the_commands_tell_the_mend(
    wheel: zipfile.ZipFile, init: str | None, tmp_path: Path
) -> None:
    """The package called metarl of the public index holds metarl/__init__.py; pip uninstall takes that away again."""
    wheel.extractall(tmp_path)
    (tmp_path / "metarl" / "__init__.py").unlink()
    if init is not None:
        (tmp_path / "metarl" / "__init__.py").write_text(init)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import sys; from metarl.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"metarl {metarl.__version__}\n"
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip uninstall metarl metarl-toolkit, then install metarl-toolkit again")


def required(requirement: str) -> str:
    """Return the name in a requirement."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return name


PROJECTS = [
    ROOT / "pyproject.toml",
    *sorted(ROOT.glob("*/*/pyproject.toml")),
    *sorted(ROOT.glob("metarl/**/pyproject.*")),
]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_projects_ask_for_metarl_toolkit(project: Path) -> None:
    """The name metarl is somebody else's in the public index."""
    told = tomllib.loads(project.read_text())["project"]
    asked = [*told["dependencies"], *chain.from_iterable(told.get("optional-dependencies", {}).values())]
    assert "metarl" not in {required(line) for line in asked}
    assert "metarl-toolkit" in {told["name"], *map(required, asked)}


FOREIGN = re.compile(r"\bmetarl\\?\[|pip install(?= )[^\n`]*[ \"']metarl(?![\w./-])")
"""The name of somebody else's package, with an extra or where pip is asked for it."""
SPOKEN = [
    *(path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")),
    *(path for name in ("metarl", "envs", "plugins", "docs", "tests") for path in sorted((ROOT / name).rglob("*.*"))),
]


def test_nobody_is_told_to_install_another_projects_package() -> None:
    for wrong in (
        'pip install "metarl[gpu]"',
        "pip install metarl",
        "pip install -U 'metarl>=1'",
        'install\n"metarl[gpu]"',
    ):
        assert FOREIGN.search(wrong)
    for right in (
        'pip install "metarl-toolkit[gpu]"',
        "pip install metarl-toolkit",
        "pip install -e metarl/x ./metarl",
    ):
        assert not FOREIGN.search(right)
    texts = [path for path in SPOKEN if path.suffix in ("", ".py", ".pyi", ".md", ".toml", ".template", ".cff", ".txt")]
    assert len(texts) > 200
    found = {path.relative_to(ROOT): FOREIGN.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {path for path, names in found.items() if names} == {Path(__file__).relative_to(ROOT)}


@pytest.mark.parametrize("folder", ["envs", "plugins"])
def test_the_folders_of_packages_are_no_packages(folder: str) -> None:
    assert list((ROOT / folder).glob("*.py")) == []


def test_importing_metarl_is_instant() -> None:
    """As a user would, in a fresh interpreter: nothing beyond the standard library and metarl itself."""
    code = (
        "import sys; before = set(sys.modules); import metarl, metarl.plugins; print(metarl.__version__ != '');"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n['metarl']\n"


@pytest.mark.parametrize("name", metarl.__all__)
def test_public_names_are_found(name: str) -> None:
    assert getattr(metarl, name) is not None
    assert name in dir(metarl)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'metarl' has no attribute 'trian'"):
        metarl.trian  # noqa: B018
