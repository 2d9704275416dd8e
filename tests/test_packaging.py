"""What users install: the wheel's contents, and what importing the package costs."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
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
    info = f"metarl-{metarl.__version__}.dist-info"
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
    assert set(parser.sections()) == {"console_scripts", "metarl.algorithms", "metarl.tasks"}
    modules = {value.partition(":")[0].replace(".", "/") for group in parser for value in parser[group].values()}
    files = {name.removesuffix(".py").removesuffix("/__init__") for name in wheel.namelist()}
    assert modules <= files


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
