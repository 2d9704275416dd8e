"""Sampling: environment steps under MAML's policies, under the same actions without them, and of the bare simulator."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from entrant import Entrant
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from torch import Tensor

from metarl.algorithms.maml import MAML
from metarl.control import ControlTasks, collect
from metarl.environments.workers import usable_cpus
from metarl.seeding import stream
from metarl.speed.allocator import keep_freed_memory
from metarl.speed.parts import CHECKS, Graphs
from metarl.types import Learner, State, policy_of
from metarl_envs.mujoco import RobotEnv, RobotTasks, Simulation
from metarl_envs.mujoco.robots import starting_state
from metarl_envs.mujoco.simulator import load_model
from metarl_envs.navigation import LARGEST_MOVE, PointNavigation, arrived, distance, move
from metarl_envs.robots.ant import AntVelocity
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity

FAMILIES = {"half-cheetah": HalfCheetahVelocity, "ant": AntVelocity, "navigation": PointNavigation}


class Size:
    """Lanes of a family: tasks x episodes of some steps, on a device; with metarl's memory settings, or without."""

    def __init__(
        self, family: str, tasks: int, episodes: int, horizon: int, device: str, keep_memory: bool = True
    ) -> None:
        made = FAMILIES[family]()
        self.family: Any = replace(made, sampling=replace(made.sampling, episodes=episodes, horizon=horizon))
        self.tasks, self.lanes, self.horizon, self.device = tasks, tasks * episodes, horizon, device
        if device == "cuda" and isinstance(made, RobotTasks):
            self.family = replace(self.family, simulation=Simulation("warp"))
        if device == "cpu" and keep_memory:
            keep_freed_memory()

    def policies(self) -> tuple[ControlTasks, Learner, State]:
        """Return tasks with MAML's policies for them."""
        learner, sampled = MAML().build(self.family.spec), self.family.sample(self.tasks, "train", stream(0, "tasks"))
        params = {name: value.to(self.device) for name, value in learner.init(stream(0, "initialisation")).items()}
        return sampled, learner, learner.begin(params, sampled.descriptors.to(self.device))

    def environment(self) -> VectorEnv:
        return self.family.environment(self.lanes, torch.device(self.device))

    def collecting(self, env: VectorEnv, all_lanes: bool = False, processes: bool = False) -> Entrant:
        """Collect episodes as training does. Environments that restart episodes by themselves step all lanes."""
        _, learner, state = self.policies()
        generator = stream(0, "draw", device=self.device)

        def run() -> float:
            policy = policy_of(learner, state)
            mask = collect(env, learner.spec, policy, self.tasks, self.horizon, generator).mask
            return float(mask.numel() if all_lanes else mask.sum())

        return self.entrant(run, processes)

    def compiled(self) -> Entrant:
        """The same as in a run with --compile."""
        entrant, graphs = self.collecting(self.environment()), Graphs()
        iterations = itertools.count(3, step=2)  # later comparisons, few in a long run, fall into even ones

        def work(number: int) -> Any:
            with graphs.used(next(iterations)):
                return entrant.work(number)

        compile_all(lambda: work(0))
        return entrant._replace(work=work)

    def actions(self) -> Tensor:
        """The actions ``[step, lane, size]`` that the policies take: the cost of physics depends on them."""
        _, learner, state = self.policies()
        generator = stream(0, "draw", device=self.device)
        policy = policy_of(learner, state)
        rollout = collect(self.environment(), learner.spec, policy, self.tasks, self.horizon, generator)
        return rollout.actions.flatten(0, 1).transpose(0, 1).contiguous()

    def entrant(self, run: Callable[[], float], processes: bool = False) -> Entrant:
        """Time what returns the number of steps that it took."""

        def work(number: int) -> dict[str, float]:
            return {"steps": run()}

        return Entrant(work, {"lanes": self.lanes, "horizon": self.horizon}, self.device, processes)

    @property
    def steps(self) -> float:
        """All lanes' steps, whether or not their episodes have ended."""
        return float(self.lanes * self.horizon)


def compile_all(work: Callable[[], Any]) -> None:
    """Do work until all that is compiled in it has been checked. Raises UserWarning for what cannot be."""
    with warnings.catch_warnings(category=UserWarning, action="error"):
        for _ in range(CHECKS + 1):
            work()


def raw(**size: Any) -> Entrant:
    """The simulator alone, under the same actions: what no environment can exceed."""
    sized = Size(**size)
    if isinstance(sized.family, PointNavigation):
        return arithmetic(sized)
    return captured_step(sized) if sized.device == "cuda" else batch(sized)


def arithmetic(size: Size) -> Entrant:
    """The operations of a step of navigation, and nothing about them."""
    actions, goal = size.actions(), torch.full((size.lanes, 2), 0.3, device=size.device)

    def run() -> float:
        position = torch.zeros_like(goal)
        for row in actions:
            position = move(position, row, LARGEST_MOVE)
            distance(position, goal).neg()
            arrived(position, goal)
        return size.steps

    return size.entrant(run)


def batch(size: Size) -> Entrant:
    """MuJoCo's own pool of threads."""
    from mujoco.batch import Batch

    robot, rng = size.family.robot, np.random.default_rng(0)
    model, controls = load_model(robot.model_file), np.clip(size.actions().numpy() / robot.action_scale, -1, 1)
    simulator = Batch(model, size.lanes, usable_cpus())
    qpos, qvel, control = (simulator.bind(name) for name in ("qpos", "qvel", "ctrl"))

    def run() -> float:
        simulator.reset()
        qpos[...], qvel[...] = starting_state(robot, model, rng, (size.lanes,))
        for row in controls:
            control[...] = row
            simulator.step(nstep=robot.substeps)
        return size.steps

    return size.entrant(run)


def captured_step(size: Size) -> Entrant:
    """MuJoCo Warp's captured control step, launched again and again."""
    controls, env = size.actions().clamp(-1, 1), size.environment()
    simulator = env.simulator
    env.reset(seed=0)
    env.step(controls[0])

    def run() -> float:
        env.reset(seed=0)
        for row in controls:
            simulator._control.copy_(row)
            with simulator._in_order():
                simulator._launch()
        return size.steps

    return size.entrant(run)


def lanes(**size: Any) -> Entrant:
    """metarl's vector environment, without a policy: observations, rewards, checks."""
    sized = Size(**size)
    env, rows = sized.environment(), sized.actions()
    rows = rows if getattr(env, "device", None) is not None else rows.cpu().numpy()

    def run() -> float:
        env.reset(seed=0)
        ended = [(one | other).sum() for _, _, one, other, _ in map(env.step, rows)]
        return sized.steps - float(sum(ended[:-1]))

    return sized.entrant(run)


def collected(**size: Any) -> Entrant:
    """metarl's vector environment, with policies."""
    sized = Size(**size)
    return sized.collecting(sized.environment())


def compiled(**size: Any) -> Entrant:
    """The same with compiled steps."""
    return Size(**size).compiled()


def gymnasium_sync(**size: Any) -> Entrant:
    """Gymnasium's lanes in this process, one after another, with the same policies."""
    sized = Size(**size)
    return sized.collecting(SyncVectorEnv([single(sized)] * sized.lanes, copy=False), all_lanes=True)


def gymnasium_async(**size: Any) -> Entrant:
    """Gymnasium's lanes in a process each, with the same policies."""
    sized = Size(**size)
    env = AsyncVectorEnv([single(sized)] * sized.lanes, copy=False)
    return sized.collecting(env, all_lanes=True, processes=True)


def single(size: Size) -> Callable[[], gymnasium.Env]:
    """Return what makes one environment."""
    return Point if isinstance(size.family, PointNavigation) else lambda: RobotEnv(size.family)


class Point(gymnasium.Env):
    """Point navigation as one writes it in NumPy."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (2,))
    goal = np.array([0.3, 0.4])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.position = np.zeros(2)
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.position = self.position + np.clip(action * LARGEST_MOVE, -LARGEST_MOVE, LARGEST_MOVE)
        offset = self.position - self.goal
        reward, ended = -float(np.sqrt(offset @ offset)), bool((np.abs(offset) < 0.01).all())
        return self.position.astype(np.float32), reward, ended, False, {}
