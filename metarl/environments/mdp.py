"""Gymnasium environments, single and batched, from a Markov decision process written as pure torch functions.

The functions work on the last axes only. So a single environment (no leading axis) and a batch of lanes share the same
dynamics code, and on the CPU they agree bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl.environments.bookkeeping import describe, opened, plain_seed
from metarl.pictures.window import Window
from metarl.seeding import Places, spawn, uniform
from metarl.speed import send

Parameters = Mapping[str, Tensor]


class Episode(NamedTuple):
    """The episode so far, for drawing."""

    states: Tensor  # [time + 1, ...] the initial state, and the state after each step
    actions: Tensor  # [time, ...]
    rewards: Tensor  # [time]


Draw = Callable[[Episode, Parameters], np.ndarray[Any, Any]]
"""``(episode, parameters) -> frame [height, width, 3]``, uint8."""

FRAMES_PER_SECOND = 10
BLOCK = 256
"""Steps whose random numbers are drawn at first, where no horizon says how many there will be."""
_CPU = torch.device("cpu")


class MDP(NamedTuple):
    """The dynamics of a family. ``...`` stands for the leading axes: none, or the lanes."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    parameter_space: spaces.Dict
    start: Tensor
    """The initial state of every episode."""
    step: Callable[[Parameters, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    """``(parameters, state, action, noise) -> (state, reward [...], terminated [...])``. All randomness of a step is
    in ``noise`` ``[..., noise]``, uniform in [0, 1); ``metarl.seeding.normal`` makes normal numbers of it."""
    observe: Callable[[Tensor], Tensor]
    """``state -> observation``."""
    check: Callable[[Parameters], None] = lambda parameters: None
    """Raises ValueError for parameters that are no valid task. Shapes and finiteness are already checked."""
    noise: int = 0
    """How many random numbers a step needs."""


def box(low: float, high: float, shape: tuple[int, ...]) -> spaces.Box:
    """Return a Box of torch's default dtype."""
    return spaces.Box(low, high, shape, dtype=torch.empty(0).numpy().dtype.type)


class MDPEnv(gymnasium.Env[Any, Any]):
    """A single environment of an MDP. ``reset(options={...})`` sets task parameters by name until they are set again.

    Args:
        mdp: The dynamics.
        parameters: The task.
        draw: Draws a frame of an episode; None if the environment cannot be rendered.
        render_mode: ``"rgb_array"``, ``"human"`` (a pygame window) or None.

    Raises:
        ValueError: an unknown render mode, or parameters that are no valid task.
        gymnasium.error.DependencyNotInstalled: ``"human"`` without pygame.
    """

    def __init__(
        self, mdp: MDP, parameters: Mapping[str, Any], draw: Draw | None = None, render_mode: str | None = None
    ):
        modes = ["human", "rgb_array"] if draw else []
        if render_mode not in (None, *modes):
            raise ValueError(f"unknown render mode {render_mode!r}: expected one of {[None, *modes]}")
        self.metadata = {"render_modes": modes, "render_fps": FRAMES_PER_SECOND}
        self.observation_space, self.action_space = mdp.observation_space, mdp.action_space
        self.parameter_space, self.render_mode = mdp.parameter_space, render_mode
        self._mdp, self._draw, self._generator = mdp, draw, Generator()
        self._parameters = _checked(mdp, parameters, ())
        self._state, self._steps = mdp.start, list[tuple[Tensor, Tensor, Tensor]]()
        self._window = Window("metarl", FRAMES_PER_SECOND) if render_mode == "human" else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode. Raises ValueError for options that are not task parameters, or have the wrong shape."""
        seed = plain_seed(seed)
        super().reset(seed=seed)
        self._generator.manual_seed(int(self.np_random.integers(2**63)))
        self._parameters = {**self._parameters, **_checked(self._mdp, options or {}, ())}
        self._state, self._steps = self._mdp.start, []
        self._show()
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step. The time limit is Gymnasium's wrapper."""
        actions = _tensor(action, _action_dtype(self.action_space))
        noise = uniform(self._generator, 1, self._mdp.noise)[0]
        self._state, reward, terminated = self._mdp.step(self._parameters, self._state, actions, noise)
        if self.render_mode is not None:
            self._steps.append((self._state, actions, reward))
        self._show()
        return self._observation(), float(reward), bool(terminated), False, {}

    def render(self) -> Any:
        """Return the episode so far as an image, ``[height, width, 3]`` uint8, or None without a render mode.

        In "human" mode, show it in a window instead; ``reset`` and ``step`` do so automatically.
        """
        if self.render_mode == "rgb_array":
            return self._frame()
        return self._show()

    def close(self) -> None:
        """Close the window."""
        if self._window is not None:
            self._window.close()

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._frame())

    def _frame(self) -> np.ndarray[Any, Any]:
        states, actions, rewards = zip(*self._steps, strict=True) if self._steps else ((), (), ())
        assert self._draw is not None
        episode = Episode(torch.stack([self._mdp.start, *states]), _stacked(actions), _stacked(rewards))
        return self._draw(episode, self._parameters)

    def _observation(self) -> np.ndarray[Any, Any]:
        return self._mdp.observe(self._state).numpy().copy()


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([*values]) if values else torch.empty(0)


class MDPVectorEnv(VectorEnv[Any, Any, Any]):
    """Lanes of an MDP on one device, without automatic resets: a finished lane idles until it is reset.

    Args:
        mdp: The dynamics.
        parameters: The task of every lane until ``reset`` sets others.
        num_envs: Number of lanes.
        horizon: Steps after which a lane is truncated; None for no limit.
        device: The device of the lanes, whose arrays are then torch tensors. None for NumPy arrays.

    Raises:
        ValueError: no lanes, no steps, or parameters of the wrong shape.
    """

    places: Places | None = None
    """Which lanes of a larger batch these are, see ``metarl.control.Placed``."""

    def __init__(
        self,
        mdp: MDP,
        parameters: Mapping[str, Any],
        num_envs: int,
        horizon: int | None = None,
        device: torch.device | str | None = None,
    ):
        describe(self, mdp.observation_space, mdp.action_space, num_envs, horizon)
        self.horizon = horizon
        self.device = None if device is None else torch.device(device)
        self._on = torch.device(device or "cpu")
        self.parameter_space = mdp.parameter_space
        self._mdp, self._generator = mdp, Generator(self._on)
        self._generator.seed()
        self._parameters = {name: self._lanes(value) for name, value in _checked(mdp, parameters, ()).items()}
        self._state = self._lanes(mdp.start)
        self._book = opened(self._lanes(torch.tensor(0)))
        # Numbers for all steps of an episode, a row for each lane: what lane k gets depends on no other lane.
        self._steps = 0
        self._noise = self._drawn(horizon or BLOCK)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes in the mask ``options["reset_mask"]``, by default all; the others continue undisturbed.

        The other options are task parameters, one row per lane; only rows of reset lanes take effect.
        Raises ValueError for unknown options and wrong shapes.
        """
        seed = plain_seed(seed)
        super().reset(seed=seed)
        if seed is not None:
            self._generator.manual_seed(seed)
        given = dict(options or {})
        restarted = self._mask(given.pop("reset_mask", True))
        for name, value in _checked(self._mdp, given, (self.num_envs,), self._on).items():
            self._parameters[name] = _where(restarted, value, self._parameters[name])
        self._state = _where(restarted, send(self._mdp.start, self._on), self._state)
        self._book = self._book.restarted(restarted)
        if self._mdp.noise:
            self._noise = _where(restarted, self._drawn(self._noise.shape[1]), self._noise)
        return self._array(self._mdp.observe(self._state)), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every lane that has not finished. Raises ValueError for actions of the wrong shape."""
        running = self._book.running
        tensor = _tensor(actions, _action_dtype(self.single_action_space), self._on)
        if tensor.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {tuple(tensor.shape)} where {self.action_space.shape} was expected")
        state, rewards, ended = self._mdp.step(self._parameters, self._state, tensor, self._noise_now())
        self._state = _where(running, state, self._state)
        self._book = self._book.after_step(running, ended, self.horizon)
        observations = self._array(self._mdp.observe(self._state))
        rewards = self._array(torch.where(running, rewards, 0.0))
        return observations, rewards, self._array(self._book.terminated), self._array(self._book.truncated), {}

    @property
    def generator(self) -> Generator:
        """The random generator of the resets; steps draw nothing."""
        return self._generator

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return the tensors that steps read and change, without copying, apart from actions.

        None for lanes that need random numbers and have no horizon: how many is not known before.
        """
        if self._mdp.noise and self.horizon is None:
            return None
        return self._parameters, self._state, self._book, self._noise

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Continue from a snapshot."""
        self._parameters, self._state, self._book, self._noise = snapshot

    def _drawn(self, steps: int) -> Tensor:
        """Draw the random numbers of steps, ``[lane, step, number]``; row k is the same for any number of lanes."""
        (own,) = spawn(self._generator, 1)  # moves the generator on by as much for any number of lanes
        numbers = self._mdp.noise
        return uniform(own, self.places or self.num_envs, steps * numbers).reshape(self.num_envs, steps, numbers)

    def _noise_now(self) -> Tensor:
        """Return the random numbers of each lane's next step, ``[lane, number]``."""
        if not self._mdp.noise:
            return self._noise[:, 0]
        if self.horizon is None:
            self._steps += 1
            if self._steps > self._noise.shape[1]:
                self._steps = int(self._book.elapsed.max()) + 1  # less, if lanes were reset since
            if self._steps > self._noise.shape[1]:
                self._noise = torch.cat([self._noise, self._drawn(self._noise.shape[1])], dim=1)
        step = self._book.elapsed.clamp(max=self._noise.shape[1] - 1)  # lanes at their end idle, whatever they draw
        return self._noise.gather(1, step.reshape(-1, 1, 1).expand(-1, 1, self._mdp.noise)).squeeze(1)

    def _lanes(self, value: Tensor) -> Tensor:
        return send(value, self._on).expand(self.num_envs, *value.shape).clone()

    def _mask(self, mask: Any) -> Tensor:
        tensor = send(_tensor(mask, torch.bool), self._on)
        if tensor.shape not in ((), (self.num_envs,)):
            raise ValueError(f"reset_mask has shape {tuple(tensor.shape)} where {(self.num_envs,)} was expected")
        return tensor.expand(self.num_envs)

    def _array(self, value: Tensor) -> Any:
        # A copy: the caller may write to it, and the next step still reads the original.
        return value.numpy().copy() if self.device is None else value.clone()


def _where(lanes: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(lanes.reshape(-1, *[1] * (otherwise.ndim - 1)), chosen, otherwise)


def _action_dtype(space: spaces.Space[Any]) -> torch.dtype:
    return torch.int64 if isinstance(space, spaces.Discrete) else torch.get_default_dtype()


def _tensor(value: Any, dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
    # NumPy arrays are copied: torch warns about read-only ones.
    return torch.as_tensor(value if isinstance(value, Tensor) else np.array(value), dtype=dtype, device=device)


def _checked(
    mdp: MDP, given: Mapping[str, Any], lanes: tuple[int, ...], device: torch.device = _CPU
) -> dict[str, Tensor]:
    """Return copies of task parameters on the device. Raises ValueError for wrong names, shapes or values."""
    known = [*mdp.parameter_space.spaces, *(["reset_mask"] if lanes else [])]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"unknown options {unknown}: expected some of {known}")
    # Checked on the CPU, where families sample them: a check on a GPU would wait for it.
    checked = {name: _tensor(value, torch.get_default_dtype()).clone() for name, value in given.items()}
    for name, tensor in checked.items():
        expected = (*lanes, *(mdp.parameter_space[name].shape or ()))
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} where {expected} was expected")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    mdp.check(checked)
    return {name: send(tensor, device) for name, tensor in checked.items()}
