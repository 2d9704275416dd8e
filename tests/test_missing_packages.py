"""What works without packages that only a part of metarl needs, and what is said where they are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys
for name in {names}:
    sys.modules[name] = None  # as if it were not installed
"""
SB3, MUJOCO = "stable_baselines3", "mujoco"
SMALL = "settings=Settings(iterations=1, meta_batch_size=2, device='cpu')"


def without(names: tuple[str, ...], code: str, folder: Path) -> str:
    """Run code in a process that cannot import some packages; return what it prints."""
    command = [sys.executable, "-c", BLOCKED.format(names=names) + code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_training_and_evaluating_need_neither_sb3_nor_mujoco(tmp_path: Path) -> None:
    code = f"""
import metarl
from metarl import *
from metarl import train
from metarl_envs.bandit import Bandit
from metarl_plugins.sinusoid import Sinusoid

for family, outer in ((Bandit(), "trpo"), (Sinusoid(), "adam")):
    result = train("maml", family, outer, {SMALL})
    found = evaluate(result.learner, result.params, family, tasks=2, steps=1)
    print(sorted(found.metrics))
print([name for name in sys.modules if name.startswith(("stable_baselines3.", "mujoco."))])
"""
    told = without((SB3, MUJOCO), code, tmp_path).splitlines()
    assert told == ["['return/step_0', 'return/step_1']", "['loss/step_0', 'loss/step_1']", "[]"]


LOGS = (
    "logs are written by Stable-Baselines3, which cannot be imported: pip install stable-baselines3; or train without "
    "a run folder, quietly"
)
SB3_NEEDED = "metarl.sb3 needs Stable-Baselines3, which cannot be imported: pip install stable-baselines3"
ROBOTS = "robots need MuJoCo, which cannot be imported: pip install mujoco"
CASES = {
    SB3: {
        f"metarl.train('maml', 'bandit', {SMALL}, out='run')": f"ValueError: {LOGS}",
        f"metarl.train('maml', 'bandit', {SMALL}, quiet=False)": f"ValueError: {LOGS}",
        "import metarl.sb3": f"ImportError: {SB3_NEEDED}",
    },
    MUJOCO: {
        "import metarl_envs.mujoco": f"ImportError: {ROBOTS}",
        "from metarl_envs.robots.ant import AntVelocity": f"ImportError: {ROBOTS}",
        "import gymnasium, metarl_envs; gymnasium.make('metarl/AntGoal-v0')": f"ImportError: {ROBOTS}",
    },
}


@pytest.mark.parametrize("name", [SB3, MUJOCO])
def test_what_needs_them_says_so_in_one_line(name: str, tmp_path: Path) -> None:
    program = f"""
import metarl
from metarl import Settings
for code in {list(CASES[name])}:
    try:
        exec(code)
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
    assert without((name,), program, tmp_path).splitlines() == [*CASES[name].values()]
    assert not any(tmp_path.iterdir()), "nothing is made before that is known"


COMMANDS = {
    SB3: {
        "train maml bandit --out run": LOGS,
        "baseline ppo bandit --out run": SB3_NEEDED,
        "export run model.zip": SB3_NEEDED,
        "train maml bandit --out run --start-from model.zip": SB3_NEEDED,
    },
    MUJOCO: {
        "train maml half-cheetah-velocity --out run": ROBOTS,
        "train maml metarl_envs.robots.ant:AntGoal --out run": ROBOTS,
    },
}


@pytest.mark.parametrize("name", [SB3, MUJOCO])
def test_commands_say_so_in_one_line(name: str, tmp_path: Path) -> None:
    program = f"""
from metarl.cli import main
sys.stderr = sys.stdout
for command in {list(COMMANDS[name])}:
    print(main(command.split()))
"""
    told = without((name,), program, tmp_path).splitlines()
    assert len(told) == 2 * len(COMMANDS[name])
    for line, code, message in zip(told[::2], told[1::2], COMMANDS[name].values(), strict=True):
        assert message in line
        assert code == "2"
    assert not any(tmp_path.iterdir())
