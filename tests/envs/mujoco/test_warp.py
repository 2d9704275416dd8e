"""Lanes under MuJoCo Warp against lanes under MuJoCo's own simulator, on the CPU and, where there is one, on a GPU."""

import copy
import importlib.util
import warnings
from collections import Counter
from dataclasses import replace

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from scipy import stats
from support.synthetic import collected
from torch.utils._python_dispatch import TorchDispatchMode

from metarl.algorithms.maml import MAML
from metarl.control import RolloutError, Sampling
from metarl.environments.lanes import LaneError
from metarl.networks import Network
from metarl.types import policy_of
from metarl_envs.bandit import Bandit
from metarl_envs.mujoco import Dynamics, RobotVectorEnv, Simulation, make_lanes
from metarl_envs.mujoco.robots import starting_state
from metarl_envs.mujoco.simulator import ThreadSimulator, load_model
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.ant import Ant, AntGoal, AntVelocity
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity
from metarl_envs.tabular import TabularMDP

pytest.importorskip("mujoco_warp", reason="MuJoCo Warp is not installed")

from metarl_envs.mujoco.warp_lanes import WarpVectorEnv
from metarl_envs.mujoco.warp_simulator import WarpSimulator

pytestmark = pytest.mark.slow  # on a clean machine Warp compiles its kernels for a minute
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FAMILIES = [HalfCheetahVelocity(), AntVelocity()]
CPU = torch.device("cpu")


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


def warp_lanes(device, num_envs=4, family=FAMILIES[0], **options):
    return WarpVectorEnv(family, num_envs, device=device, **options)


def actions_for(env, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, env.action_space.shape)).float().to(env.device)


def every(env):
    return torch.ones(env.num_envs, dtype=torch.bool, device=env.device)


def numpy(values):
    return values.cpu().double().numpy()


def same(one, other):
    """On a GPU the order of additions is left to chance."""
    return torch.equal(one, other) if one.device == CPU else torch.allclose(one, other, atol=1e-3)


def start_alike(ours, reference):
    """Put both environments, which have been reset, into the reference's states."""
    qpos, qvel = reference.simulator.qpos.copy(), reference.simulator.qvel.copy()
    reference.simulator.reset(np.ones(len(qpos), dtype=bool), qpos, qvel)
    ours.simulator.reset(every(ours), *(torch.from_numpy(values).to(ours.device) for values in (qpos, qvel)))


@pytest.mark.parametrize("family", FAMILIES, ids=["half-cheetah", "ant"])
def test_trajectories_agree_with_mujocos_until_chaos_parts_them(device, family):
    ours, reference = warp_lanes(device, 64, family), RobotVectorEnv(family, 64)
    ours.reset(seed=0)
    reference.reset(seed=0)
    start_alike(ours, reference)
    medians = {}
    for step in range(1, 101):
        actions = actions_for(ours, step)
        ours.step(actions)
        reference.step(actions.cpu().numpy())
        apart = np.abs(numpy(ours.simulator.qpos) - reference.simulator.qpos).max(axis=1)
        medians[step] = np.median(apart)
        if step == 1:
            assert apart.max() < 1e-5
    # Noise of 1e-7 on the starting state brings MuJoCo's own trajectories apart by 0.3 (half-cheetah) and 1.3 (ant)
    # after 100 steps. Ant's contacts have their friction pyramids turned, which parts trajectories as they land.
    assert medians[1] < 1e-6
    assert medians[10] < (1e-4 if family is FAMILIES[0] else 0.3)
    assert medians[100] < (1.5 if family is FAMILIES[0] else 4.0)
    ours.check()


@pytest.mark.parametrize(("family", "typical"), [(FAMILIES[0], 1e-5), (FAMILIES[1], 1e-2)], ids=["half-cheetah", "ant"])
def test_single_steps_rewards_and_terminations_agree_with_mujocos(device, family, typical):
    ours, reference = warp_lanes(device, 64, family), RobotVectorEnv(family, 64)
    tasks = {"velocity": np.linspace(0, 2, 64)}
    reference.reset(seed=0, options=tasks)
    observations, payments, ended = [], [], []
    for step in range(30):
        ours.reset(seed=step, options=tasks)
        start_alike(ours, reference)
        actions = actions_for(ours, step)
        seen, rewards, terminations, truncations, _ = ours.step(actions)
        expected, paid, terminated, _, _ = reference.step(actions.cpu().numpy())
        assert (numpy(terminations) == terminated).all() and not truncations.any()
        observations.append(np.abs(numpy(seen) - expected).max(axis=1))
        payments.append(np.abs(numpy(rewards) - paid))
        ended.append(terminated.sum())
        reference.reset(options={"reset_mask": terminated})
    assert np.median(observations) < 10 * typical and np.median(payments) < typical
    assert np.quantile(payments, 0.99) < 20 * typical
    assert (np.sum(ended) > 0) == (family is FAMILIES[1])


def test_steps_and_contact_forces_agree_with_mujocos_where_friction_has_no_corners(device):
    """Ant's contacts differ by how their pyramids of friction are turned, and by nothing else."""
    model = copy.copy(load_model("ant.xml"))
    model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    ours, reference = WarpSimulator(model, 32, 5, device, True), ThreadSimulator(model, 32, 5, 1, True)
    rng, every_lane = np.random.default_rng(0), np.ones(32, dtype=bool)
    all_lanes = torch.from_numpy(every_lane).to(device)
    qpos, qvel = starting_state(Ant(), model, rng, (32,))
    reference.reset(every_lane, qpos, qvel)
    for _ in range(30):
        ours.reset(all_lanes, *(torch.from_numpy(values).to(device) for values in (reference.qpos, reference.qvel)))
        reference.reset(every_lane, reference.qpos.copy(), reference.qvel.copy())
        assert not ours.cfrc_ext.any()
        control = rng.uniform(-1, 1, (32, 8))
        ours.step(torch.from_numpy(control).to(device), all_lanes)
        reference.step(control, every_lane)
        assert np.abs(numpy(ours.qpos) - reference.qpos).max() < 1e-3
        assert np.median(np.abs(numpy(ours.qvel) - reference.qvel)) < 1e-5
    touching = np.abs(reference.cfrc_ext) > 0.1
    assert touching.mean() > 0.02
    relative = np.abs(numpy(ours.cfrc_ext) - reference.cfrc_ext)[touching] / np.abs(reference.cfrc_ext)[touching]
    assert np.median(relative) < 1e-3


@pytest.mark.parametrize("family", FAMILIES, ids=["half-cheetah", "ant"])
def test_a_fixed_policy_earns_the_same_returns_on_both_backends(device, family):
    learner = MAML(network=Network(hidden=(16,))).build(family.spec)
    params = learner.init(torch.Generator().manual_seed(3))
    returns = []
    for env, seed in ((RobotVectorEnv(family, 96), 1), (warp_lanes(device, 96, family), 2)):
        on = getattr(env, "device", CPU)
        state = learner.begin({name: value.to(on) for name, value in params.items()}, torch.zeros(1, 1, device=on))
        generator = torch.Generator(on).manual_seed(seed)
        told = collected(env, learner, state, 1, 40, generator, {"velocity": torch.ones(96)})
        returns.append((told.rewards * told.mask).sum(2)[0].cpu().numpy())
    # Trajectories are chaotic, so that every machine draws anew: of a million, one may fail.
    assert stats.ks_2samp(*returns).pvalue > 1e-6
    assert stats.ttest_ind(*returns, equal_var=False).pvalue > 1e-6
    assert min(values.std() for values in returns) > 0.1


def test_lanes_of_different_dynamics_agree_with_mujocos(device):
    factors = {"mass": [0.5, 1.0, 1.5, 2.0], "friction": [1.0, 0.3, 1.0, 2.0], "damping": [1.0, 1.0, 3.0, 0.2]}
    options = {name: np.array(values) for name, values in factors.items()}
    ours, reference = warp_lanes(device), RobotVectorEnv(HalfCheetahVelocity(), 4)
    ours.reset(seed=0)
    ours.step(actions_for(ours))  # a graph is captured before the factors are known
    ours.reset(seed=0, options=options)
    reference.reset(seed=0, options=options)
    start_alike(ours, reference)
    designed = warp_lanes(device)
    designed.reset(seed=0)
    start_alike(designed, reference)
    for step in range(8):
        actions = actions_for(ours, step)
        observations = numpy(ours.step(actions)[0])
        expected = reference.step(actions.cpu().numpy())[0]
        np.testing.assert_allclose(observations, expected, atol=1e-2)
        if step == 0:
            np.testing.assert_allclose(observations, expected, atol=1e-4)
            other = np.abs(numpy(designed.step(actions)[0]) - observations).max(axis=1)
            assert other[[0, 2, 3]].min() > 1e-3  # nothing touches the floor yet


def test_factors_of_1_give_the_robot_as_designed_again(device):
    env = warp_lanes(device, 2)
    runs = []
    for options in ({}, {"mass": np.array([2.0, 1.0])}, {"mass": np.ones(2)}):
        env.reset(seed=0, options=options)
        runs.append(env.step(actions_for(env))[0].clone())
    designed, heavy, again = runs
    assert torch.allclose(designed, again, atol=1e-4) and torch.allclose(designed[1], heavy[1], atol=1e-4)
    assert (designed[0] - heavy[0]).abs().max() > 1e-2


def test_keywords_set_the_task_and_the_dynamics(device):
    options = {"num_envs": 2, "backend": "warp", "device": device, "horizon": 5}
    made = [
        gymnasium.make_vec("metarl/HalfCheetahVelocity-v0", **options, velocity=0.7, mass=mass) for mass in (1.0, 2.0)
    ]
    told = []
    for env in made:
        assert isinstance(env, WarpVectorEnv) and env.horizon == 5
        assert numpy(env._parameters["velocity"]) == pytest.approx([0.7, 0.7])
        env.reset(seed=0)
        told.append(env.step(actions_for(env))[0])
    assert (told[0] - told[1]).abs().max() > 1e-2


def test_contact_forces_can_be_observed(device):
    env = warp_lanes(device, 8, AntVelocity(robot=Ant(contact_forces=True, terminate=False)))
    observations, _ = env.reset(seed=0)
    assert observations.shape == (8, 105) and not observations[:, 27:].any()
    for step in range(12):
        observations = env.step(actions_for(env, step))[0]
    assert observations[:, 27:].abs().max() == 1


def test_tensors_share_memory_with_warp_and_live_on_the_device(device):
    env = warp_lanes(device)
    observations, _ = env.reset(seed=0)
    told = env.step(actions_for(env))
    assert env.simulator.qpos.data_ptr() == env.simulator._data.qpos.ptr
    assert {values.device for values in (observations, *told[:4])} == {env.device} and env.device.type == device.type
    assert [values.dtype for values in told[:4]] == [torch.float32, torch.float32, torch.bool, torch.bool]
    state = env.simulator.qpos.clone()
    for values in told[:4]:
        values.fill_(1)
    assert torch.equal(env.simulator.qpos, state) and not env._book.terminated.any()


def test_what_is_told_has_torchs_default_dtype(device, float64):
    env = warp_lanes(device)
    observations, _ = env.reset(seed=0, options={"velocity": np.ones(4)})
    told = env.step(actions_for(env))
    assert observations.dtype is told[0].dtype is told[1].dtype is torch.float64
    assert env.simulator.qpos.dtype is torch.float32


def test_a_replayed_graph_steps_as_kernel_by_kernel(device, monkeypatch):
    graphs, eager = warp_lanes(device), warp_lanes(device)
    monkeypatch.setattr(eager.simulator, "_launch", eager.simulator._advance)
    monkeypatch.setattr(eager, "_captured", lambda: eager._advance)
    for env in (graphs, eager):
        env.reset(seed=0)
    for step in range(5):
        one, other = (env.step(actions_for(env, step))[0] for env in (graphs, eager))
        assert same(one, other)
    assert graphs.simulator._launch.func.__name__ == "_replay"


def tensors_of(env):
    """Where everything lies that a step might read or write."""
    held = {**vars(env), **vars(env.simulator), **env._parameters, **env._book._asdict()}
    return {name: value.data_ptr() for name, value in held.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def captured(monkeypatch):
    """Whole steps are captured, as on a GPU: work that finds everything in its place, and leaves it there."""
    taken = []

    def capture(simulator, work):
        def replay():
            taken.append(work)
            places = tensors_of(work.__self__)
            work()
            assert tensors_of(work.__self__) == places

        return replay

    ready = property(lambda simulator: simulator._launch != simulator._first_step)
    monkeypatch.setattr(WarpSimulator, "can_be_captured", ready)
    monkeypatch.setattr(WarpSimulator, "captured", capture)
    return taken


@pytest.mark.parametrize("dynamics", [False, True], ids=["", "dynamics"])
@pytest.mark.parametrize("family", FAMILIES, ids=["half-cheetah", "ant"])
def test_whole_steps_that_are_captured_are_the_steps(family, dynamics, captured):
    found, plain = (warp_lanes(CPU, family=family, horizon=6) for _ in range(2))
    plain._captured = lambda: plain._advance
    generator = torch.Generator().manual_seed(0)
    for step in range(14):
        if step in (0, 5, 9):  # some lanes with other tasks; the last with another model
            options = {"velocity": torch.rand(4, generator=generator)}
            options |= {"reset_mask": torch.tensor([True, False, True, False])} if step else {}
            options |= {"mass": torch.full((4,), 1.2)} if dynamics and step == 9 else {}
            assert same(*(env.reset(seed=step, options=dict(options))[0] for env in (found, plain)))
        one, other = (env.step(actions_for(env, step))[:4] for env in (found, plain))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))
    assert len(captured) > 10


def test_a_captured_step_that_does_something_else_is_not_used(captured, monkeypatch):
    def capture(simulator, work):
        return lambda: simulator.qvel.add_(1)

    monkeypatch.setattr(WarpSimulator, "captured", capture)
    found, plain = (warp_lanes(CPU) for _ in range(2))
    plain._captured = lambda: plain._advance
    for env in (found, plain):
        env.reset(seed=0)
        env.step(actions_for(env))
    with pytest.warns(UserWarning, match="no graph of a whole step could be captured.*it does something else"):
        one = found.step(actions_for(found, 1))
    for step in (1, 2):
        other = plain.step(actions_for(plain, step))
        assert all(torch.equal(*pair) for pair in zip(one[:4], other[:4], strict=True))
        one = found.step(actions_for(found, step + 1))


def test_where_no_graph_can_be_captured_steps_are_launched_with_a_warning(monkeypatch):
    import warp

    def refuse(*arguments):
        raise RuntimeError("no capture here")

    env = warp_lanes(CPU)
    env.reset(seed=0)
    monkeypatch.setattr(warp, "ScopedCapture", refuse)
    with pytest.warns(UserWarning, match="no graph .* captured.*no capture here"):
        env.step(actions_for(env))
    before = env.simulator.qpos.clone()
    env.step(actions_for(env))
    assert (env.simulator.qpos != before).any()


def test_seeds_determine_the_start_whose_noise_is_gymnasiums(device):
    env = warp_lanes(device, 2000)
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])
    qpos, qvel = numpy(env.simulator.qpos), numpy(env.simulator.qvel)
    assert np.abs(qpos).max() <= 0.1 + 1e-6 and np.abs(qpos.std() - 0.2 / np.sqrt(12)) < 1e-3
    assert np.abs(qvel.mean()) < 3e-3 and np.abs(qvel.std() - 0.1) < 1e-3


def test_reset_mask_restarts_only_its_lanes_with_their_tasks(device):
    env = warp_lanes(device, 3, AntVelocity())
    env.reset(seed=0, options={"velocity": torch.tensor([0.1, 0.2, 0.3])})
    observations = env.step(actions_for(env))[0]
    mask, bodies = torch.tensor([False, True, False]), env.simulator.xpos.clone()
    masked, _ = env.reset(options={"reset_mask": mask, "velocity": np.array([1.0, 1.1, 1.2])})
    assert (masked == observations).all(1).tolist() == [True, False, True]
    assert (env.simulator.xpos == bodies).all(2).all(1).tolist() == [True, False, True]
    np.testing.assert_allclose(numpy(env._parameters["velocity"]), [0.1, 1.1, 0.3], rtol=1e-6)
    # A body's position is that of the new state: no step may be paid for the way to the start.
    assert torch.allclose(env.simulator.xpos[1, 1], env.simulator.qpos[1, :3], atol=1e-6)


def test_the_horizon_truncates_each_lane_which_then_idles(device):
    env = warp_lanes(device, 2, horizon=3)
    env.reset(seed=0)
    actions = actions_for(env)
    assert not env.step(actions)[3].any()
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(actions)[3].tolist() == [False, False]
    assert env.step(actions)[3].tolist() == [False, True]
    before = env.simulator.qpos.clone()
    observations, rewards, terminations, truncations, _ = env.step(actions)
    assert truncations.tolist() == [True, True] and not terminations.any()
    assert rewards[0] != 0 and rewards[1] == 0
    assert (env.simulator.qpos == before).all(1).tolist() == [False, True]
    again, rewards, _, _, _ = env.step(actions)
    assert torch.equal(again, observations) and rewards.tolist() == [0, 0]


def test_a_fallen_ant_terminates_and_idles(device):
    env = warp_lanes(device, 2, AntVelocity())
    env.reset(seed=0)
    qpos, qvel = env.simulator.qpos.clone(), env.simulator.qvel.clone()
    qpos[0, 2] = 1.5
    env.simulator.reset(every(env), qpos, qvel)
    _, rewards, terminations, _, _ = env.step(torch.zeros(2, 8))
    assert terminations.tolist() == [True, False] and rewards[0] != 0
    before = env.simulator.qpos.clone()
    _, rewards, terminations, _, _ = env.step(torch.zeros(2, 8))
    assert terminations.tolist() == [True, False] and rewards[0] == 0
    assert (env.simulator.qpos == before).all(1).tolist() == [True, False]


@pytest.mark.parametrize("speed", [1e12, np.nan])
def test_an_unstable_lane_tells_nan_and_leaves_the_others_alone(device, speed):
    env, undisturbed = warp_lanes(device), warp_lanes(device)
    for each in (env, undisturbed):
        each.reset(seed=0)
    qpos, qvel = env.simulator.qpos.clone(), env.simulator.qvel.clone()
    qvel[[1, 3]] = speed
    env.simulator.reset(every(env), qpos, qvel)
    for step in range(3):
        told, rewards, terminations, _, _ = env.step(actions_for(env, step))
        expected, paid, *_ = undisturbed.step(actions_for(env, step))
        assert told.isnan().all(1).tolist() == rewards.isnan().tolist() == [False, True, False, True]
        assert same(told[::2], expected[::2]) and same(rewards[::2], paid[::2])
        assert not terminations.any()
    with pytest.raises(LaneError, match=r"unstable, or an action was not finite, in lanes \[1, 3\]") as caught:
        env.check()
    assert caught.value.lanes == [1, 3]
    env.reset(options={"reset_mask": np.array([False, True, False, True])})
    assert env.step(actions_for(env))[0].isfinite().all()
    env.check()


def test_an_action_of_nan_breaks_its_lane_only(device):
    env = warp_lanes(device)
    env.reset(seed=0)
    actions = actions_for(env)
    actions[2, 0] = torch.nan
    assert env.step(actions)[0].isnan().all(1).tolist() == [False, False, True, False]
    assert env.step(actions_for(env))[0].isnan().all(1).tolist() == [False, False, True, False]


def test_contacts_that_do_not_fit_break_their_lanes(device, monkeypatch):
    import mujoco_warp

    make_data = mujoco_warp.make_data
    monkeypatch.setattr(mujoco_warp, "make_data", lambda *args, **sizes: make_data(*args, **{**sizes, "nconmax": 1}))
    env = warp_lanes(device)
    env.reset(seed=0)
    for step in range(20):
        observations = env.step(actions_for(env, step))[0]
    assert observations.isnan().all()
    with pytest.raises(LaneError, match=r"more contacts than memory .* lanes \[0, 1, 2, 3\]"):
        env.check()


def test_a_solver_that_stops_early_breaks_no_lane(device):
    """As in MuJoCo, which goes on with what the solver has. MuJoCo Warp tells it as an overflow."""
    env = warp_lanes(device, 16, HalfCheetahVelocity(simulation=Simulation(solver_iterations=1)))
    env.reset(seed=0)
    assert env.simulator._compiled.opt.iterations == 1 and env._model.opt.iterations == 100
    reached = False
    for step in range(10):
        assert env.step(actions_for(env, step))[0].isfinite().all()
        reached |= env.simulator._overflow.any().item()
    assert reached
    env.check()


def test_the_models_own_number_of_iterations_holds_where_it_is_smaller(device):
    model = copy.copy(load_model("half_cheetah.xml"))
    model.opt.iterations = 3
    assert WarpSimulator(model, 1, 1, device, False)._compiled.opt.iterations == 3


def test_a_gpu_gets_machine_code():
    """Not PTX, which the driver would compile again on each machine."""
    import warp

    assert warp.config.cuda_output == "cubin"


def test_memory_for_contacts_is_an_option(device):
    env = warp_lanes(device, 2, HalfCheetahVelocity(simulation=Simulation(contacts=60)))
    assert env.simulator._data.naconmax == 2 * 60


@pytest.mark.parametrize(
    "family", [HalfCheetahVelocity(), AntVelocity(robot=Ant(terminate=False))], ids=["half-cheetah", "ant"]
)
def test_contacts_fit_however_the_robot_tumbles(device, family):
    env = warp_lanes(device, 16, family)
    env.reset(seed=0)
    for step in range(200):
        env.step(actions_for(env, step))
    env.check()


def learner_for(family, tasks, device):
    learner = MAML(network=Network(hidden=(8,))).build(family.spec)
    params = {name: value.to(device) for name, value in learner.init(torch.Generator().manual_seed(0)).items()}
    return learner, learner.begin(params, tasks.descriptors.to(device))


def warp_tasks(**options):
    family = HalfCheetahVelocity(simulation=Simulation("warp"), sampling=Sampling(episodes=2, horizon=5), **options)
    return family, family.sample(3, "train", torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dynamics", [Dynamics(), Dynamics(mass=(0.8, 1.2))])
def test_tasks_draw_rollouts(device, dynamics):
    family, tasks = warp_tasks(dynamics=dynamics)
    learner, state = learner_for(family, tasks, device)
    rollout, again = (
        tasks.rollout(policy_of(learner, state), torch.Generator(device).manual_seed(0)) for _ in range(2)
    )
    assert rollout.observations.shape == (3, 2, 5, 17) and rollout.mask.all()
    assert rollout.rewards.device.type == device.type
    assert same(rollout.observations, again.observations)


def test_tasks_of_a_family_do_not_mix(device):
    family, tasks = warp_tasks(dynamics=Dynamics(mass=(0.5, 2.0)))
    others = family.sample(3, "train", torch.Generator().manual_seed(1))
    learner, state = learner_for(family, tasks, device)
    drawn = [
        sampled.rollout(policy_of(learner, state), torch.Generator(device).manual_seed(0)).observations
        for sampled in (tasks, others, tasks)
    ]
    assert same(drawn[0], drawn[2]) and not same(drawn[0], drawn[1])


def test_rollouts_say_which_lane_broke_when_and_why(device, monkeypatch):
    family, tasks = warp_tasks()
    learner, state = learner_for(family, tasks, device)
    env = family.environment(6, device)
    tasks = replace(tasks, environment=lambda lanes, device: env)
    tasks.rollout(policy_of(learner, state), torch.Generator(device).manual_seed(0))
    launch = env.simulator._launch
    monkeypatch.setattr(WarpSimulator, "can_be_captured", False)  # in a graph of the whole step nothing explodes

    def explode():
        launch()
        env.simulator.qvel[4] = torch.where(env._book.elapsed[4] == 2, torch.inf, env.simulator.qvel[4])

    monkeypatch.setattr(env.simulator, "_launch", explode)
    expected = r"observations are not finite: task 2, lane 4 \(episode 0\), step 3: .* unstable, .* in lanes \[4\]"
    with pytest.raises(RolloutError, match=expected):
        tasks.rollout(policy_of(learner, state), torch.Generator(device).manual_seed(0))


class Waits(TorchDispatchMode):
    """Counts what makes a processor wait for a GPU: numbers read from tensors, shapes that depend on them, copies."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if name in self.names or by_mask:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def test_rollouts_read_two_numbers_from_tensors():
    family, tasks = warp_tasks(dynamics=Dynamics(mass=(0.8, 1.2)))
    learner, state = learner_for(family, tasks, CPU)
    env = family.environment(6, CPU)
    rows = {name: value.repeat_interleave(2, 0) for name, value in tasks.parameters.items()}
    with Waits() as waits:
        collected(env, learner, state, 3, 5, torch.Generator().manual_seed(0), rows)
    # The environment's seed, which is not drawn on a GPU, and whether all is finite.
    assert waits.counts == {"_local_scalar_dense": 2}


@pytest.mark.gpu
@pytest.mark.parametrize("family", [HalfCheetahVelocity(), AntGoal(), PointNavigation(), Bandit(), TabularMDP()])
def test_rollouts_on_a_gpu_wait_for_it_once(family):
    device = torch.device("cuda")
    tasks = family.sample(3, "train", torch.Generator().manual_seed(0))
    learner, state = learner_for(family, tasks, device)
    generator = torch.Generator(device).manual_seed(0)
    tasks.rollout(policy_of(learner, state), generator)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        tasks.rollout(policy_of(learner, state), generator)
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in told if "called a synchronizing" in str(warning.message)]
    assert len(waits) <= 1, "\n".join(f"{each.filename}:{each.lineno}" for each in waits)


def test_steps_before_a_reset_and_wrong_shapes_are_refused():
    env = warp_lanes(CPU, 3)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(torch.zeros(3, 6))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 6\) where \(3, 6\) was expected"):
        env.step(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"reset_mask must be bool \[3\], not torch.float64"):
        env.reset(options={"reset_mask": np.ones(3)})
    with pytest.raises(ValueError, match=r"unknown options \['speed'\]"):
        env.reset(options={"speed": np.ones(3)})


def test_the_device_and_the_backend_choose_the_simulator(monkeypatch):
    def chosen(backend, device):
        return type(make_lanes(HalfCheetahVelocity(simulation=Simulation(backend)), 1, None, torch.device(device)))

    assert chosen("auto", "cpu") is RobotVectorEnv and chosen("warp", "cpu") is WarpVectorEnv
    assert chosen("threads", "cuda") is RobotVectorEnv
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mujoco_warp" else find_spec(name))
    with pytest.warns(UserWarning, match=r'MuJoCo runs on the CPU.*pip install "metarl-toolkit\[gpu\]"'):
        assert chosen("auto", "cuda") is RobotVectorEnv
    with pytest.raises(ValueError, match=r'the backend .warp. needs MuJoCo Warp.*pip install "metarl-toolkit\[gpu\]"'):
        chosen("warp", "cpu")
    with pytest.raises(ValueError, match="expected backend auto, native or threads, not warp"):
        RobotVectorEnv(HalfCheetahVelocity(simulation=Simulation("warp")), 1)


def test_actions_of_several_steps_are_these_steps_with_summed_rewards(device):
    family = AntVelocity(robot=Ant(frame_skip=2))
    skipping, plain = warp_lanes(device, 6, family, horizon=12), warp_lanes(device, 6, AntVelocity(), horizon=24)
    for env in (skipping, plain):
        env.reset(seed=0)
    for step in range(12):
        actions = 1.5 * actions_for(plain, step)
        found, *expected = skipping.step(actions), plain.step(actions), plain.step(actions)
        torch.testing.assert_close(found[0], expected[1][0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found[1], expected[0][1] + expected[1][1], rtol=1e-3, atol=1e-3)
        assert (found[2] == expected[1][2]).all()
    assert found[2].any() and (found[2] | found[3]).all()
