"""What differs between Linux, macOS and Windows is not relied on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("metarl", "envs", "plugins", "docs") for path in (ROOT / folder).rglob("*.py")
)  # fmt: skip
TEXT = {"open": 1, "read_text": 0, "write_text": 1}
"""Methods of a path that open text files, and the place of their encoding; open has it as a keyword only."""


def without_encoding(source: str) -> list[int]:
    """Lines that open a text file in the encoding of the platform, which is not UTF-8 on Windows."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
        if name not in TEXT or owner in ("Image", "os"):
            continue
        modes = [word.value for word in call.args if isinstance(word, ast.Constant)]
        binary = name == "open" and any(isinstance(mode, str) and "b" in mode for mode in modes)
        positional = name != "open" and len(call.args) > TEXT[name]
        if not binary and not positional and "encoding" not in {word.arg for word in call.keywords}:
            found.append(call.lineno)
    return found


def test_missing_encodings_are_noticed() -> None:
    source = (
        'p.read_text()\np.read_text("utf-8")\np.write_text("x")\nopen(p)\np.open("rb")\np.open("a", encoding="utf-8")'
    )
    assert without_encoding(source) == [1, 3, 4]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_files_are_utf_8_everywhere(path: Path) -> None:
    assert without_encoding(path.read_text(encoding="utf-8")) == []


POSIX_ONLY = """
import os, pkgutil, importlib, signal, sys
import gymnasium, matplotlib.figure, mujoco, numpy, stable_baselines3, torch.utils.tensorboard, torch, tyro
for name in ("fork", "register_at_fork", "sched_getaffinity", "sysconf", "getuid", "kill", "killpg", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1"):
    if hasattr(signal, name):
        delattr(signal, name)
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["pwd"] = None
import metarl, metarl_envs, metarl_plugins
for package in (metarl, metarl_envs, metarl_plugins):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from metarl.cli import main
small = "--iterations 1 --meta-batch-size 2 --tasks.sampling.episodes 2 --tasks.sampling.horizon 3 --out run".split()
assert main(["train", "maml", "half-cheetah-velocity", *small]) == 0
assert main(["evaluate", "run", "--tasks", "2"]) == 0
"""


@pytest.mark.slow
def test_nothing_is_asked_of_the_system_that_windows_lacks(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", POSIX_ONLY], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
