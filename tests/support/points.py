"""Environments of a point on a plane: lanes against single environments."""

from typing import Any

import numpy as np


def check_lanes(make_env: Any, make_vector_env: Any, lanes: int, steps: int) -> None:
    """Assert that lanes with goals of their own are single environments, bit for bit, until the goal is reached."""
    rng = np.random.default_rng(0)
    chosen = rng.uniform(-0.5, 0.5, (lanes, 2)).astype(np.float32)
    actions = rng.normal(size=(steps, lanes, 2)).astype(np.float32)
    batch = make_vector_env(lanes)
    batch.reset(options={"goal": chosen})
    told = [batch.step(action)[:3] for action in actions]
    for lane in range(lanes):
        env = make_env(goal=chosen[lane])
        env.reset()
        for step, action in enumerate(actions[:, lane]):
            observation, reward, terminated, _, _ = env.step(action)
            np.testing.assert_array_equal(observation, told[step][0][lane])
            assert (reward, terminated) == (told[step][1][lane], told[step][2][lane])
            if terminated:
                break
