"""Films of a policy before and after each adaptation step, in the family's single environment.

The family needs a method ``single(parameters, render_mode) -> gymnasium.Env``; see ``metarl.types.Family``.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from metarl.control import ControlTasks, Single, check_environment, collect
from metarl.environments import close_environment, composite, flag, flat, parts_of
from metarl.evaluation import acting_by_the_mean
from metarl.pictures.frames import Frame, frame_of
from metarl.pictures.plotting import after
from metarl.pictures.video import Clip
from metarl.seeding import stream
from metarl.trained.outcome import Trained
from metarl.types import Family, Learner, State, Tasks, policy_of

SHOWN_NUMBERS = 6
"""A film's title shows the task parameters if they are at most this many numbers."""


class Recorder(VectorEnv[Any, Any, Any]):
    """A vector environment with one environment as its only lane. It records a frame at every step.

    Args:
        env: An environment with the render mode "rgb_array".
        height: Height of the frames in pixels.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], height: int):
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.num_envs = 1
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space, self.action_space = (
            batch_space(space, 1) for space in (env.observation_space, env.action_space)
        )
        self.frames: list[Frame] = []
        self._env, self._height = env, height
        self._observation, self._ended = np.zeros(0), (False, False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode and a new film."""
        observation, _ = self._env.reset(seed=seed)
        self._observation, self._ended = self._seen(observation), (False, False)
        self.frames = [self._frame()]
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step. After the end of the episode, nothing changes and rewards are 0."""
        reward = 0.0
        if not any(self._ended):
            observation, step_reward, terminated, truncated, _ = self._env.step(actions[0])
            reward = float(step_reward)
            self._ended = flag("terminated", terminated), flag("truncated", truncated)
            self._observation = self._seen(observation)
            self.frames.append(self._frame())
        terminations, truncations = (np.array([flag]) for flag in self._ended)
        return self._observation, np.array([reward]), terminations, truncations, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environment."""
        close_environment(self._env, "the environment")

    @property
    def fps(self) -> float:
        """Frames per second, from the environment's metadata."""
        return float(self._env.metadata.get("render_fps") or 20)

    def _seen(self, observation: Any) -> Any:
        """Return an observation as lanes of one do; parts become a vector, whose layout is that of their space."""
        if composite(observation):
            observation = flat(parts_of(self._env.observation_space), observation)
        return np.asarray(observation)[None]

    def _frame(self) -> Frame:
        return frame_of(self._env.render(), self._height)


def single_of(family: Family) -> Callable[..., gymnasium.Env[Any, Any]]:
    """Return the function that makes a family's single environment. Raises ValueError if there is none."""
    if not isinstance(family, Single) or not family.spec.control:
        raise ValueError(
            f"{type(family).__name__} cannot be rendered: it has no method single(parameters, render_mode) that makes "
            "one Gymnasium environment"
        )
    return family.single


def check_rendering(trained: Trained, tasks: ControlTasks, height: int = 240) -> None:
    """Raise ValueError unless the environment of the first task can be rendered: look at its first frame."""
    single = single_of(trained.family)
    name = type(trained.family).__name__
    try:
        recorder = Recorder(single(_parameters(_one(tasks, 0, trained.learner)), "rgb_array"), height)
        try:
            recorder.reset(seed=0)
        finally:
            recorder.close()
    except Exception as error:
        raise ValueError(f"{name} cannot be rendered: {error}") from error


def film(
    trained: Trained, tasks: ControlTasks, steps: int = 3, seed: int = 0, mean: bool = False, height: int = 240
) -> tuple[list[list[Clip]], float]:
    """Film one episode of every task after 0, 1, ..., ``steps`` adaptation steps.

    Return the clips of each task, and their frames per second. Actions are sampled, as in evaluation; with ``mean``,
    they are the most likely ones. Adaptation always samples. Tasks are adapted to one at a time, with as many episodes
    as in the run, or one for a policy with memory.

    Raises:
        ValueError: the family has no single environment, or one that cannot be rendered or does not fit its Spec.
        RolloutError: an environment failed.
    """
    check_rendering(trained, tasks, height)
    learner = acting_by_the_mean(trained.learner) if mean else trained.learner
    clips: list[list[Clip]] = []
    fps = 0.0
    bar = tqdm(total=len(tasks.descriptors) * (steps + 1), unit="episode", disable=not sys.stderr.isatty())
    for number in range(len(tasks.descriptors)):
        task = _one(tasks, number, trained.learner)
        recorder = Recorder(single_of(trained.family)(_parameters(task), "rgb_array"), height)
        check_environment(recorder, 1, learner.spec)
        clips.append([])
        for step, adapted in enumerate(trained.adapt(task, steps, seed + number)):
            generator = stream(seed, "render", number, step, device=trained.device)
            clips[-1].append(_clip(recorder, learner, adapted.state, task, step, generator))
            bar.update()
        fps = recorder.fps
        recorder.close()
    bar.close()
    return clips, fps


def _clip(recorder: Recorder, learner: Learner, state: State, task: ControlTasks, step: int, generator: Any) -> Clip:
    rollout = collect(recorder, learner.spec, policy_of(learner, state), 1, task.sampling.horizon, generator)
    total = float(rollout.rewards.sum())
    return Clip(f"{after(step)}, return {total:.1f}", recorder.frames)


def _one(tasks: ControlTasks, number: int, learner: Learner) -> ControlTasks:
    """Return one of the tasks. A policy with memory acts in one lane, so it gets one episode at a time."""
    row = slice(number, number + 1)
    parameters = {name: values[row] for name, values in tasks.parameters.items()}
    sampling = tasks.sampling if learner.memory is None else replace(tasks.sampling, episodes=1)
    return replace(tasks, parameters=parameters, descriptors=tasks.descriptors[row], sampling=sampling, within=None)


def _parameters(task: ControlTasks) -> dict[str, np.ndarray[Any, Any]]:
    return {name: values[0].numpy(force=True) for name, values in task.parameters.items()}


def title(tasks: Tasks, number: int) -> str:
    """Return a title for a task: its parameters if they are few, otherwise its number."""
    rows = {name: values[number].flatten().tolist() for name, values in tasks.parameters.items()}
    if sum(map(len, rows.values())) > SHOWN_NUMBERS:
        return f"task {number}"
    return "; ".join(f"{name} = {', '.join(f'{value:.2f}' for value in row)}" for name, row in rows.items())
