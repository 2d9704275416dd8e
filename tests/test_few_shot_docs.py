"""The Python of docs/few_shot.md runs as it stands, and its commands are understood."""

import os
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from metarl.commands import train

TEXT = (Path(__file__).parents[1] / "docs" / "few_shot.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL), ids=["items", "function", "table"]
)
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "few_shot.md", "exec"), {})


@pytest.mark.parametrize("line", re.findall(r"^metarl train .*$", TEXT, re.MULTILINE))
def test_train_commands_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "omniglot" in line and not os.environ.get("METARL_DATA"):
        pytest.skip("METARL_DATA names no folder that contains omniglot/")
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        (tmp_path / "data" / "mini-imagenet" / str(number)).mkdir(parents=True)
        for image in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / "mini-imagenet" / str(number) / f"{image}.png")
    assert callable(train.prepare([*shlex.split(line)[2:], "--out", "run"]))
