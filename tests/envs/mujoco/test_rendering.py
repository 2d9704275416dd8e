"""What pictures of robots show of their tasks, and that taking them changes nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import metarl_envs  # noqa: F401  # registers the environments
from metarl_envs.mujoco import rendering


@pytest.fixture
def opengl(backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it runs
    monkeypatch.setenv("MUJOCO_GL", backend)


def picture(name: str, moved: float = 0.0, **keywords: Any) -> np.ndarray:
    env = gymnasium.make(f"metarl/{name}-v0", render_mode="rgb_array", width=64, height=64, **keywords)
    env.reset(seed=0)
    qpos = env.unwrapped.data.qpos.copy()
    qpos[0] += moved
    env.unwrapped.set_state(qpos, env.unwrapped.data.qvel)
    env.unwrapped._motion = env.unwrapped._at_rest()
    frame = env.render().astype(int)
    env.close()
    return frame


def green(frame: np.ndarray) -> np.ndarray:
    """Where a picture has the colour of goals, ``[height, width]``; the floor's squares are grey."""
    return (frame[..., 1] - frame[..., 0] > 40) & (frame[..., 2] - frame[..., 0] > 10)


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("AntGoal", {"goal": (-2.0, 0.0)}, {"goal": (2.0, 0.0)}),
        ("AntDirection", {"direction": -1.0}, {"direction": 1.0}),
        ("AntVelocity", {"velocity": -1.0}, {"velocity": 1.0}),
        ("HalfCheetahDirection", {"direction": -1.0}, {"direction": 1.0}),
        ("HalfCheetahVelocity", {"velocity": -1.0}, {"velocity": 1.0}),
    ],
)
def test_the_goal_is_where_it_should_be(name: str, left: dict[str, Any], right: dict[str, Any]) -> None:
    for keywords, half in ((left, slice(0, 32)), (right, slice(32, 64))):
        seen = green(picture(name, **keywords))
        assert seen.sum() >= 4
        assert seen[:, half].sum() > 0.9 * seen.sum()


@pytest.mark.usefixtures("opengl")
def test_the_camera_follows_runners_and_stands_where_a_place_is_looked_for() -> None:
    assert green(picture("HalfCheetahVelocity", moved=20.0)).sum() >= 4
    still, moved = (picture("AntGoal", moved=moved, goal=(2.0, 0.0)) for moved in (0.0, -0.5))
    assert (green(still) == green(moved)).all() and (still != moved).any()
    chosen = {"lookat": np.zeros(3), "distance": 4.0}
    assert not green(picture("HalfCheetahVelocity", moved=20.0, default_camera_config=chosen)).any()


@pytest.mark.usefixtures("opengl")
def test_environments_do_not_draw_into_each_others_pictures() -> None:
    one, other = (
        gymnasium.make(f"metarl/{name}-v0", render_mode="rgb_array", width=48, height=32)
        for name in ("AntGoal", "HalfCheetahVelocity")
    )
    one.reset(seed=0)
    first = one.render()
    other.reset(seed=0)
    between = other.render()
    assert (one.render() == first).all() and (other.render() == between).all()
    other.close()
    assert (one.render() == first).all()
    one.close()


@pytest.mark.usefixtures("opengl")
def test_pictures_change_no_bit_of_the_dynamics() -> None:
    runs = []
    for mode in (None, "rgb_array"):
        env = gymnasium.make("metarl/AntGoal-v0", render_mode=mode, width=32, height=32)
        env.reset(seed=0)
        env.action_space.seed(0)
        told = []
        for _ in range(5):
            told.append(env.step(env.action_space.sample())[:2])
            if mode is not None:
                env.render()
        runs.append(np.array([np.append(*step) for step in told]))
        env.close()
    assert (runs[0] == runs[1]).all()


def test_arrows_by_hand() -> None:
    wanted, own = rendering.arrows(np.array([3.0, 4.0]), np.array([0.0, 2.0]), np.array([0.0, 0.0]))
    assert wanted["pos"].tolist() == [3, 4, rendering.OVERHEAD]
    # Along their own z, which this turns to y; 0.5 m for each m/s, and MuJoCo draws half of the size.
    assert wanted["mat"].reshape(3, 3)[:, 2].tolist() == [0, 1, 0]
    np.testing.assert_allclose(np.linalg.det(wanted["mat"].reshape(3, 3)), 1)
    assert wanted["size"][2] == 2.0
    assert own["size"][2] == 0.0
    along_x = rendering.arrows(np.array([7.0]), np.array([-1.0]), np.array([1.0]))[0]
    assert along_x["pos"].tolist() == [7, 0, rendering.OVERHEAD]
    assert along_x["mat"].reshape(3, 3)[:, 2].tolist() == [-1, 0, 0]


def test_a_machine_without_a_screen_needs_no_variable(backend: str, tmp_path: Path) -> None:
    program = (
        "import gymnasium, metarl_envs\n"
        "env = gymnasium.make('metarl/HalfCheetahVelocity-v0', render_mode='rgb_array', width=64, height=48)\n"
        "env.reset(seed=0); frame = env.render(); env.close()\n"
        "assert frame.shape == (48, 64, 3) and frame.std() > 1, frame.std()\n"
    )
    kept = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", program], env=kept, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# Gymnasium's viewer frees, when it is deleted, a context that it could not make.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_where_no_opengl_works_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none such")
    env = gymnasium.make("metarl/AntGoal-v0", render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"cannot render with MUJOCO_GL=none such.*libegl1 and libgl1-mesa-dri"):
        env.render()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no backend")
@pytest.mark.parametrize("program", ["-c from metarl_envs.robots import half_cheetah", "-m metarl check ant-goal"])
def test_a_backend_that_is_not_there_is_named_in_one_line(program: str, tmp_path: Path) -> None:
    """MuJoCo loads OpenGL when it is imported."""
    flag, command = program.split(" ", 1)
    arguments = [flag, command] if flag == "-c" else [flag, *command.split()]
    environment = os.environ | {"MUJOCO_GL": "none such"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = (done.stdout + done.stderr).strip().splitlines()[-1 if flag == "-c" else 0]
    assert "MuJoCo cannot be imported with MUJOCO_GL=none such" in last
    assert "unset MUJOCO_GL, or install the library" in last


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have a screen")
def test_windows_need_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    env = gymnasium.make("metarl/AntGoal-v0", render_mode="human")
    with pytest.raises(RuntimeError, match="'human' needs a screen: neither DISPLAY nor WAYLAND_DISPLAY is set"):
        env.reset(seed=0)
