"""The README's Python runs as it stands, and its commands name options that exist."""

import re
import shlex
from pathlib import Path

import pytest

from metarl.commands import train

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


TRAININGS = [
    line.split("#")[0] for line in README.splitlines() if line.startswith("metarl train") and "--help" not in line
]


@pytest.mark.parametrize("line", TRAININGS)
def test_train_commands_are_understood(line, tmp_path):
    arguments = [*shlex.split(line)[2:], "--out", str(tmp_path / "run")]
    assert callable(train.prepare(arguments))
