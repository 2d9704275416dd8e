"""What Gymnasium promises of every environment that is registered under ``metarl/``."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import metarl_envs  # noqa: F401  # registers the environments
from metarl_envs.mujoco.simulator import load_model

KEYWORDS: dict[str, dict[str, Any]] = {
    "AntDirection": {"direction": -1.0, "mass": 1.5},
    "AntGoal": {"goal": (2.0, -1.0)},
    "AntVelocity": {"velocity": 2.0, "terminate": False},
    "Bandit": {"probabilities": (0.0, 1.0, 0.5)},
    "HalfCheetahDirection": {"direction": -1.0},
    "HalfCheetahVelocity": {"velocity": 0.7, "control_cost": 0.1},
    "PointNavigation": {"goal": (0.4, -0.3)},
    "PointNavigationPicture": {"goal": (0.4, -0.3)},
    "TabularMDP": {"reward_means": np.arange(50.0).reshape(10, 5)},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The minimal resolution for an image is 36x36 for the default `CnnPolicy`"
)
"""Stable-Baselines3's own network of pictures is for larger ones."""
IDS = sorted(name for name in gymnasium.registry if name.startswith("metarl/"))
ROBOTS = [name for name in IDS if "Ant" in name or "Cheetah" in name]
DRAWN = [name for name in IDS if name not in ROBOTS]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it runs


@pytest.fixture
def opengl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.node.callspec.params["name"] in ROBOTS:
        monkeypatch.setenv("MUJOCO_GL", request.getfixturevalue("backend"))
    yield


@pytest.fixture
def no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pygame open its windows nowhere."""
    pytest.importorskip("pygame", reason="windows need pygame: pip install 'metarl-toolkit[render]'")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def make(name: str, **options: Any) -> gymnasium.Env:
    return gymnasium.make(name, **KEYWORDS[short(name)], **options)


def short(name: str) -> str:
    return name.removeprefix("metarl/").removesuffix("-v0")


def test_all_are_tested() -> None:
    assert [short(name) for name in IDS] == sorted(KEYWORDS)


# Making and checking


@pytest.mark.parametrize("name", IDS)
def test_made_with_its_task_it_passes_both_checkers(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    load_model.cache_clear()
    env = make(name).unwrapped
    check_env(env, skip_render_check=True)
    check_env_for_sb3(env)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", IDS)
def test_its_task_is_the_one_that_was_asked_for(name: str) -> None:
    env = make(name).unwrapped
    for parameter, value in KEYWORDS[short(name)].items():
        if parameter in env._parameters:
            np.testing.assert_allclose(env._parameters[parameter], value, rtol=1e-6)
    assert set(KEYWORDS[short(name)]) & set(env.parameter_space.keys())


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", [None, "sync"])
def test_it_is_made_in_batches(name: str, mode: str | None) -> None:
    envs = gymnasium.make_vec(name, num_envs=3, vectorization_mode=mode, **KEYWORDS[short(name)])
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    observations, rewards, terminations, truncations, _ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert rewards.shape == terminations.shape == truncations.shape == (3,)
    envs.close()


# Wrappers


@pytest.mark.parametrize("name", IDS)
def test_standard_wrappers_work(name: str) -> None:
    env = wrappers.TimeLimit(make(name, max_episode_steps=-1), 3)
    env = wrappers.FlattenObservation(wrappers.RecordEpisodeStatistics(env))
    env = wrappers.TransformObservation(env, lambda seen: 2 * seen, env.observation_space)
    if isinstance(env.action_space, gymnasium.spaces.Box):
        env = wrappers.RescaleAction(env, np.float32(0), np.float32(1))
        assert env.action_space.low.tolist() == [0.0] * env.action_space.shape[0]
    env.reset(seed=0)
    env.action_space.seed(0)
    told = [env.step(env.action_space.sample()) for _ in range(3)]
    assert [truncated for _, _, _, truncated, _ in told] == [False, False, True]
    assert told[-1][4]["episode"]["l"] == 3
    assert told[-1][4]["episode"]["r"] == pytest.approx(sum(reward for _, reward, *_ in told))


@pytest.mark.parametrize("name", IDS)
def test_vector_wrappers_work_without_automatic_resets(name: str) -> None:
    envs = gymnasium.make_vec(name, num_envs=2, max_episode_steps=3)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    envs = wrappers.vector.RecordEpisodeStatistics(envs)
    envs = wrappers.vector.TransformReward(envs, lambda rewards: 2 * rewards)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    rewards = []
    for _ in range(3):
        _, reward, terminations, truncations, info = envs.step(envs.action_space.sample())
        rewards.append(reward / 2)
    assert truncations.all() and not terminations.any()
    np.testing.assert_allclose(info["episode"]["r"], sum(rewards), rtol=1e-5, atol=1e-5)
    assert info["episode"]["l"].tolist() == [3, 3]


@pytest.mark.skipif(importlib.util.find_spec("moviepy") is None, reason="RecordVideo needs moviepy")
def test_videos_are_recorded(tmp_path: Path) -> None:
    env = wrappers.RecordVideo(
        make("metarl/Bandit-v0", render_mode="rgb_array"), str(tmp_path / "videos"), video_length=3
    )
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    env.close()
    assert len(list(tmp_path.glob("videos/*.mp4"))) == 1


# Rendering


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize("name", IDS)
def test_pictures_show_the_state(name: str) -> None:
    size = {"width": 64, "height": 48} if name in ROBOTS else {}
    env = make(name, render_mode="rgb_array", **size)
    env.reset(seed=0)
    frames = [env.render(), env.render()]
    env.action_space.seed(1)
    for _ in range(5):
        env.step(env.action_space.sample())
    frames.append(env.render())
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert {frame.shape for frame in frames} == {(48, 64, 3) if size else (400, 400, 3)}
    assert (frames[0] == frames[1]).all() and (frames[0] != frames[2]).any()
    env.close()


@pytest.mark.usefixtures("no_window")
@pytest.mark.parametrize("name", DRAWN)
def test_windows_and_pictures_pass_gymnasiums_checker(name: str) -> None:
    check_env(make(name, render_mode="human").unwrapped)
    check_env_for_sb3(make(name, render_mode="rgb_array").unwrapped, skip_render_check=False)


@pytest.mark.usefixtures("no_window")
def test_a_window_shows_the_picture() -> None:
    import pygame

    env, drawn = (make("metarl/Bandit-v0", render_mode=mode) for mode in ("human", "rgb_array"))
    for each in (env, drawn):
        each.reset(seed=0)
        each.step(1)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
    np.testing.assert_array_equal(shown, drawn.render())
    assert env.render() is None
    env.close()
    assert pygame.display.get_surface() is None
    env.close()


def test_a_window_without_pygame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match=r'pip install "metarl-toolkit\[render\]"'):
        make("metarl/Bandit-v0", render_mode="human")


def test_without_a_render_mode_nothing_is_drawn() -> None:
    env = make("metarl/TabularMDP-v0").unwrapped
    env.reset(seed=0)
    assert env.render() is None


# Registration


@pytest.mark.parametrize(
    "program",
    [
        "import metarl_envs",
        "import gymnasium, metarl_envs; gymnasium.spec('metarl/AntGoal-v0')",
    ],
)
def test_registration_imports_nothing_heavy(program: str) -> None:
    heavy = ("torch", "mujoco", "metarl", "matplotlib", "PIL", "pygame")
    code = f"{program}; import sys; sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_may_be_named_with_the_environment() -> None:
    code = "import gymnasium; print(gymnasium.make('metarl_envs:metarl/Bandit-v0').spec.id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "metarl/Bandit-v0\n"
