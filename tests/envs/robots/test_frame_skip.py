"""Actions that last for several control steps, against a slow wrapper around the environment without them."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl_envs.mujoco import RobotEnv, RobotVectorEnv, Simulation
from metarl_envs.robots.ant import Ant, AntVelocity
from metarl_envs.robots.half_cheetah import HalfCheetah, HalfCheetahVelocity


class Repeated(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Applies each action ``times`` times, sums rewards, and stops where the episode ends."""

    def __init__(self, env: gymnasium.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        self.times, self.taken = times, list[int]()

    def step(self, action: Any) -> Any:
        total, taken = 0.0, 0
        while taken < self.times:
            observation, reward, terminated, truncated, info = self.env.step(action)
            total, taken = total + reward, taken + 1
            if terminated or truncated:
                break
        self.taken.append(taken)
        return observation, total, terminated, truncated, info


FAMILIES = [(HalfCheetahVelocity, HalfCheetah), (AntVelocity, Ant)]
LANES, HORIZON = 4, 30


@pytest.mark.parametrize(("family", "robot"), FAMILIES)
@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_lanes_are_a_slow_wrapper_around_single_environments(family: Any, robot: Any, backend: Any) -> None:
    velocities = np.linspace(0.0, 2.0, LANES)
    skipping = family(robot=robot(frame_skip=3), simulation=Simulation(backend))
    lanes = RobotVectorEnv(skipping, LANES, HORIZON)
    lanes.reset(seed=0, options={"velocity": velocities})
    singles = [Repeated(RobotEnv(family(), {"velocity": velocity}), 3) for velocity in velocities]
    own = [RobotEnv(skipping, {"velocity": velocity}) for velocity in velocities]
    for lane, single in enumerate(singles):
        for env in (single.unwrapped, own[lane]):
            env.reset()
            mujoco.mj_resetData(env.model, env.data)  # type: ignore[attr-defined]
            env.set_state(lanes.simulator.qpos[lane], lanes.simulator.qvel[lane])  # type: ignore[attr-defined]
    rng, finished = np.random.default_rng(0), np.zeros(LANES, dtype=bool)
    for step in range(1, HORIZON + 1):
        actions = rng.uniform(-1.5, 1.5, lanes.action_space.shape)
        observations, rewards, terminated, truncated, _ = lanes.step(actions)
        for lane in np.flatnonzero(~finished):
            start = own[lane]._robot.position(own[lane].data).copy()
            for env in (singles[lane], own[lane]):
                observation, reward, ended, cut, info = env.step(actions[lane])
                assert (observation == observations[lane]).all()
                assert reward == rewards[lane] and ended == terminated[lane] and not cut
            moved = own[lane]._robot.position(own[lane].data) - start
            assert info["x_velocity"] == pytest.approx(moved[0] / (0.05 * singles[lane].taken[-1]))
        assert (truncated[~finished] == (step == HORIZON)).all(), "the horizon counts actions"
        finished = terminated | truncated
    taken = {count for single in singles for count in single.taken}
    assert (taken == {3}) == (family is HalfCheetahVelocity), "ants also fall between two actions"
    lanes.close()


def test_films_have_a_frame_for_each_action() -> None:
    assert RobotEnv(HalfCheetahVelocity()).metadata["render_fps"] == 20
    assert RobotEnv(HalfCheetahVelocity(robot=HalfCheetah(frame_skip=4))).metadata["render_fps"] == 5


@pytest.mark.parametrize("robot", [HalfCheetah, Ant])
def test_an_action_lasts_for_one_step_at_least(robot: Any) -> None:
    with pytest.raises(ValueError, match="frame_skip must be at least 1, not 0"):
        robot(frame_skip=0)
