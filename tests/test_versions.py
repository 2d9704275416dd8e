"""``make versions``: the versions that it asks pip for, and the Pythons that it finds."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import versions

PROJECT = tomllib.loads((versions.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_floors_are_read() -> None:
    asked = ["numpy>=1.26", "gymnasium[mujoco]>=1.3", "Stable-Baselines3>=2.9,<3", "build", "metarl-toolkit[render]"]
    assert versions.floors(asked) == {"numpy": "1.26", "gymnasium": "1.3", "stable-baselines3": "2.9"}


def test_every_dependency_has_a_floor() -> None:
    assert len(versions.floors(PROJECT["dependencies"])) == len(PROJECT["dependencies"])
    assert set(versions.floors(versions.tools(PROJECT))) == set(versions.TOOLS)


def test_the_lowest_versions_are_the_floors_and_the_newest_only_what_is_pinned() -> None:
    project = {
        "dependencies": ["numpy>=1.26", "torch>=2.8"],
        "optional-dependencies": {"render": ["a>=1"], "tune": ["optuna>=4.2"], "dev": ["pytest>=8", "mypy>=1"]},
    }
    lowest = {"numpy": "1.26", "torch": "2.8", "a": "1", "optuna": "4.2", "pytest": "8"}
    assert versions.constraints("3.11", "lowest", project, {}) == lowest
    pinned = versions.constraints("3.13", "lowest", project, {"torch": "2.13.0"})
    assert (pinned["torch"], pinned["numpy"]) == ("2.13.0", versions.FIRST["3.13"]["numpy"])
    assert versions.constraints("3.13", "newest", project, {"torch": "2.13.0"}) == {"torch": "2.13.0"}
    assert versions.constraints("3.13", "newest", project, {}) == {}


def test_pythons_that_are_there_are_found_and_stand_ins_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "python9.1"
    stand_in.write_text("#!/bin/sh\nexit 127\n")
    stand_in.chmod(0o755)
    real = tmp_path / "versions" / "9.1.4" / "bin" / "python9.1"
    real.parent.mkdir(parents=True)
    real.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert dict(versions.interpreters(["9.1", "9.2"])) == {"9.1": str(real), "9.2": None}
    real.unlink()
    assert dict(versions.interpreters(["9.1"])) == {"9.1": None}


def test_pythons_that_are_not_there_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "interpreters", lambda asked: [("3.11", "here"), ("3.13", None)])
    monkeypatch.setattr(versions, "tried", lambda room, *more: "passed" if room.which == "lowest" else "failed")
    monkeypatch.setattr(sys, "argv", ["versions.py"])
    assert versions.main() == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Python 3.13: not found on this machine, skipped",
        "Python 3.11, lowest versions: passed",
        "Python 3.11, newest versions: failed",
    ]
    monkeypatch.setattr(sys, "argv", ["versions.py", "--which", "lowest"])
    assert versions.main() == 0


def test_what_cannot_be_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> str:
        raise subprocess.CalledProcessError(3, "pip")

    monkeypatch.setattr(versions, "prepare", refused)
    told = versions.tried(versions.Room("3.11", "lowest"), "python", PROJECT, {}, [])
    assert told == "could not be installed (exit code 3)"


def test_the_page_tells_the_same_floors() -> None:
    page = (versions.ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    floors = versions.floors(PROJECT["dependencies"])
    for shown, package in (
        ("PyTorch", "torch"), ("Gymnasium", "gymnasium"), ("Stable-Baselines3", "stable-baselines3"),
        ("MuJoCo", "mujoco"), ("NumPy", "numpy"),
    ):  # fmt: skip
        assert f"| {shown} | {floors[package]} and later" in page
    assert f"| Python | {', '.join(versions.PYTHONS)} |" in page
