"""Runs that torchrun, or Slurm's srun, starts in two processes, as users start them."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metarl import runs
from metarl.cli import main
from metarl.runs import logger

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OPTIONS = ["--device", "cpu", "--meta-batch-size", "3", "--quiet", "--out", "run"]
DEADLY = """
    import os
    import signal

    from metarl_plugins.sinusoid import Sinusoid


    class Deadly(Sinusoid):
        def sample(self, num_tasks, split, generator):
            if os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.path.exists(
                "run/checkpoint.pt"
            ):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().sample(num_tasks, split, generator)
"""
pytestmark = pytest.mark.slow


def started(folder: Path, command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a command in a folder, as the leader of a session of its own."""
    own = [str(folder), *(str(ROOT / name) for name in ("", "envs", "plugins"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(own), "OMP_NUM_THREADS": "1"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def params(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = runs.load_checkpoint(folder / "checkpoint.pt")["params"]
    return found


def test_a_rank_that_is_killed_is_started_again_and_its_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with exact sums; and one process goes on with the run of two."""
    (tmp_path / "deadly.py").write_text(textwrap.dedent(DEADLY))
    command = [
        "train",
        "maml",
        "deadly:Deadly",
        "--exact-sums",
        "--checkpoint-every",
        "2",
        "--log-every",
        "1",
        *OPTIONS,
    ]
    torchrun = [*TORCHRUN, "--max-restarts", "1", "-m", "metarl", *command, "--iterations", "4"]
    process = started(tmp_path, torchrun)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "metarl: rank 0 of 2 waited in vain for the others (sampling); one of them has ended" in told
    assert [row["iteration"] for row in logger.read_rows(tmp_path / "run" / "progress.csv", 4)] == [1, 2, 3, 4]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["resume", "run", "--iterations", "6", "--quiet"]) == 0
    assert main([*command[:-1], "whole", "--iterations", "6"]) == 0
    assert all(value.equal(params(Path("whole"))[name]) for name, value in params(Path("run")).items())


def test_interrupting_torchrun_saves_what_was_reached(tmp_path: Path) -> None:
    lengths = ["--iterations", "100000", "--checkpoint-every", "100000", "--log-every", "1"]
    command = ["train", "maml", "sinusoid", *lengths, *OPTIONS]
    process = started(tmp_path, [*TORCHRUN, "-m", "metarl", *command])
    until, log = time.monotonic() + 120, tmp_path / "run" / "progress.csv"
    while time.monotonic() < until and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=120)
    assert "stopped; the checkpoint is saved. Go on with: metarl resume run" in told, errors
    reached = runs.load_progress(tmp_path / "run" / "checkpoint.pt", torch.device("cpu"))["iteration"]
    assert reached == log.read_text().count("\n") - 1


SRUN = """#!/bin/bash
# What srun does with a job's last arguments, on one node: so many tasks, each with its variables.
shift
for ((task = 0; task < TASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$TASKS "$@" &
done
while (($(jobs -r | wc -l) > 0)); do wait -n || exit 1; done
"""


@pytest.mark.parametrize(("place", "tasks"), [(0, 1), (1, 2)], ids=["torchrun on each node", "srun alone"])
def test_the_guides_slurm_scripts(place: int, tasks: int, tmp_path: Path) -> None:
    """Two ranks train, by the variables that srun sets. A small training stands for the robot's."""
    page = (ROOT / "docs" / "many_machines.md").read_text(encoding="utf-8")
    script = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[place]
    training = "-m metarl train maml half-cheetah-direction --meta-batch-size 64 --resume --out /shared/run"
    assert script.count(training) == 1
    ours = " ".join(["-m metarl train maml sinusoid --iterations 2", *OPTIONS])
    script = script.replace(training, ours).replace("29500", str(free_port())).replace("-node 8 --max", "-node 2 --max")
    assert tasks == 2 or "-node 2 --max" in script
    for name, text in {"job.sh": script, "srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    tools = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "TASKS": str(tasks)}
    process = started(tmp_path, ["bash", "job.sh"], PATH=tools, **slurm)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert runs.load_progress(tmp_path / "run" / "checkpoint.pt", torch.device("cpu"))["iteration"] == 2


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
