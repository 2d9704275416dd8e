"""What all simulators promise of masks; those of Warp are in ``test_warp``."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from metarl_envs.mujoco.dynamics import SCALED_FIELDS
from metarl_envs.mujoco.simulator import Simulation, Simulator, load_model, simulate

NO_POOL = importlib.util.find_spec("mujoco.batch") is None
BACKENDS = [pytest.param("native", marks=pytest.mark.skipif(NO_POOL, reason="MuJoCo before 3.17")), "threads"]
ALL, SOME = np.ones(4, dtype=bool), np.array([True, False, False, True])


@pytest.fixture(params=BACKENDS)
def simulator(request: pytest.FixtureRequest) -> Simulator:
    made = simulate(load_model("half_cheetah.xml"), 4, 5, Simulation(request.param, threads=2))
    made.reset(ALL, *starts(made))
    return made


def starts(simulator: Simulator, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.1, 0.1, simulator.qpos.shape), rng.uniform(-0.1, 0.1, simulator.qvel.shape)


def control(seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (4, 6))


def test_only_the_lanes_of_the_mask_are_stepped(simulator: Simulator) -> None:
    before = simulator.qpos.copy()
    simulator.step(control(), SOME)
    assert (simulator.qpos == before).all(axis=1).tolist() == (~SOME).tolist()


def test_only_the_lanes_of_the_mask_are_reset_and_the_others_rows_are_unused(simulator: Simulator) -> None:
    simulator.step(control(), ALL)
    before, (qpos, qvel) = simulator.qpos.copy(), starts(simulator, seed=1)
    qpos[~SOME], qvel[~SOME] = np.nan, np.nan
    simulator.reset(SOME, qpos, qvel)
    assert (simulator.qpos == np.where(SOME[:, None], qpos, before)).all()
    simulator.step(control(), ALL)
    assert np.isfinite(simulator.qpos).all()


def test_factors_are_those_of_all_lanes_and_stay_in_force(simulator: Simulator) -> None:
    runs = []
    for mass in (np.ones(4), np.array([2.0, 1.0, 1.0, 0.5]), None, np.ones(4)):
        factors = {name: np.ones(4) if name != "mass" else mass for name in SCALED_FIELDS}
        simulator.reset(ALL, *starts(simulator), None if mass is None else factors)
        simulator.step(control(), ALL)
        runs.append(simulator.qpos.copy())
    designed, heavy, kept, again = runs
    assert (designed == heavy).all(axis=1).tolist() == [False, True, True, False]
    assert (heavy == kept).all() and (designed == again).all()
