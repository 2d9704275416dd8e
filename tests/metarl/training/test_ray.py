"""Ray Train makes the processes and their group, as the guide has it; metarl.train finds them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarl.runs import load_progress
from tests.support import pages

pytest.importorskip("ray", reason='needs pip install "metarl-toolkit[ray]"')
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
CLUSTER = "import ray\nray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)\n"
FAMILY, SETTINGS, FOLDER = "PointNavigation()", 'Settings(device="auto")', "/shared/run"
"""What the guide has, and a small run on two CPUs has not."""


def test_the_guides_ray_train_example(tmp_path: Path) -> None:
    """On a local cluster of two workers; a short training stands for the guide's."""
    page = (ROOT / "docs" / "many_machines.md").read_text(encoding="utf-8")
    (code,) = (block.code for block in pages.blocks(page) if "TorchTrainer" in block.code)
    assert all(code.count(text) == 1 for text in (FAMILY, SETTINGS, FOLDER))
    code = code.replace(FAMILY, "PointNavigation(sampling=PointNavigation().sampling.__class__(episodes=4, horizon=5))")
    code = code.replace(SETTINGS, 'Settings(device="cpu", iterations=2, meta_batch_size=3)')
    (tmp_path / "driver.py").write_text(CLUSTER + code.replace(FOLDER, str(tmp_path / "run")))
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "envs", "plugins"))
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}  # Ray keeps results and tokens there
    command = [sys.executable, "driver.py"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "world_size=2" in done.stdout + done.stderr
    assert load_progress(tmp_path / "run" / "checkpoint.pt", torch.device("cpu"))["iteration"] == 2
