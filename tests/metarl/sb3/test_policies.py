"""Policies with ``predict``, exported models and imported actors: that they are the meta-learner's own."""

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from support.synthetic import initial
from torch import nn

import metarl_envs  # noqa: F401  # registers the single environments
from metarl import objectives, sb3
from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.networks.layers import LogStd
from metarl.networks.options import Network
from metarl.trained import Trained
from metarl.types import Spec
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity

SMALL = Network(hidden=(8, 6), activation="tanh", std=0.5)
CHEETAH = HalfCheetahVelocity(sampling=Sampling(episodes=2, horizon=10))
NAVIGATION = PointNavigation(sampling=Sampling(episodes=2, horizon=10))
PENDULUM = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0, ())), "attribute", Sampling(2, 5))
BANDIT = Bandit(arms=3, sampling=Sampling(episodes=2, horizon=5))


def learnt(algorithm: Any, family: Any) -> Trained:
    learner = algorithm.build(family.spec)
    return Trained(algorithm, family, learner, initial(learner), torch.device("cpu"), 0)


def residual(spec: Spec) -> nn.Module:
    """A network that is no multilayer perceptron."""
    return nn.Sequential(nn.Linear(*spec.input_shape, spec.output_size), nn.Sigmoid(), LogStd(spec.output_size))


def test_predict_is_the_adapted_policy() -> None:
    trained = learnt(MAML(step_size=0.2, network=SMALL), CHEETAH)
    task = trained.task(velocity=1.3)
    policy, observations = sb3.policy(trained, task, steps=2, seed=4), torch.randn(5, 17)
    outputs, _ = trained.learner.predict(trained.adapt(task, 2, seed=4)[2].state, observations.unsqueeze(0))
    means = outputs[0].chunk(2, -1)[0].clamp(-1, 1).numpy()
    actions, state = policy.predict(observations.double().numpy(), state=None, deterministic=True)
    np.testing.assert_allclose(actions, means, rtol=0, atol=1e-6)
    assert (actions.dtype, actions.shape, state) == (np.float32, (5, 6), None)
    one, _ = policy.predict(observations[3].numpy(), deterministic=True)
    np.testing.assert_allclose(one, means[3], rtol=0, atol=1e-6)
    sampled = np.stack([policy.predict(observations.numpy())[0] for _ in range(2)])
    assert (sampled[0] != sampled[1]).any()
    assert np.abs(sampled).max() <= 1
    with pytest.raises(ValueError, match=r"shape \(5, 16\) where \(17,\) or \(n, 17,\) was expected"):
        policy.predict(observations[:, 1:].numpy())


@pytest.mark.parametrize(("family", "own"), [(CHEETAH, False), (PENDULUM, True), (BANDIT, False)])
def test_a_pickled_policy_goes_on_with_the_same_actions(family: Any, own: bool) -> None:
    trained = learnt(MAML(), family)
    policy = sb3.policy(trained, trained.tasks(1), steps=1, seed=4, own_spaces=own)
    observations = np.zeros((4, *family.spec.input_shape), dtype=np.float32)
    policy.predict(observations)
    again = pickle.loads(pickle.dumps(policy))
    for deterministic in (False, True, False):
        ours, theirs = (one.predict(observations, deterministic=deterministic)[0] for one in (policy, again))
        np.testing.assert_array_equal(ours, theirs)


def test_discrete_actions_are_numbers_that_environments_take() -> None:
    policy, env = sb3.policy(learnt(MAML(network=SMALL), BANDIT)), gymnasium.make("metarl/Bandit-v0")
    one, _ = policy.predict(np.ones(1))
    assert one.shape == ()
    assert one in env.action_space
    chosen, _ = policy.predict(np.ones((500, 1)))
    probabilities = policy.outputs(torch.ones(1, 1)).softmax(-1)[0].numpy()
    np.testing.assert_allclose(np.bincount(chosen, minlength=3) / 500, probabilities, atol=0.08)
    assert (policy.predict(np.ones((2, 1)), deterministic=True)[0] == probabilities.argmax()).all()


def test_it_is_evaluated_alone_and_in_lanes() -> None:
    trained = learnt(MAML(network=SMALL), CHEETAH)
    policy = sb3.policy(trained, trained.task(velocity=1.3), steps=1)
    single = Monitor(gymnasium.make("metarl/HalfCheetahVelocity-v0", velocity=1.3, max_episode_steps=10))
    returns, lengths = evaluate_policy(policy, single, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [10, 10]
    lanes = sb3.TaskVecEnv(CHEETAH, 2, trained.task(velocity=1.3))
    beside, _ = evaluate_policy(policy, lanes, n_eval_episodes=2, return_episode_rewards=True)
    # Other starts of the same task: each step pays at least -1.3 - 0.05 * 6 for standing still with full torques.
    assert np.mean(returns) == pytest.approx(np.mean(beside), abs=8)
    lanes.close()


@pytest.mark.parametrize(
    ("algorithm", "family"),
    [
        (MAML(network=SMALL), CHEETAH),
        (MAML(network=Network(hidden=(7,)), learn_step_sizes=True, adapt_only=("head",)), NAVIGATION),
        (MAML(network=Network(hidden=())), NAVIGATION),
        (MAML(network=SMALL), BANDIT),
        (Reptile(network=SMALL, carry_moments=False), NAVIGATION),
        (MultiTask(network=SMALL), NAVIGATION),
        (MultiTask(condition="multiply", network=SMALL), NAVIGATION),
        (MultiTask(condition="heads", network=SMALL), BANDIT),
    ],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_an_exported_model_is_the_policy(algorithm: Any, family: Any, steps: int, tmp_path: Path) -> None:
    trained = learnt(algorithm, family)
    task = trained.tasks(1)
    policy = sb3.policy(trained, task, steps, seed=2)
    sb3.to_ppo(trained, task, steps, seed=2).save(tmp_path / "model.zip")
    model = PPO.load(tmp_path / "model.zip", device="cpu")
    observations = 2 * torch.randn(50, *family.spec.input_shape, generator=torch.Generator().manual_seed(1))
    outputs = policy.outputs(observations)
    actions = objectives.sample(family.spec.kind, outputs, torch.Generator().manual_seed(2))
    with torch.no_grad():
        distribution = model.policy.get_distribution(observations)
        mode, log_probs = distribution.mode(), distribution.log_prob(actions)
    expected = objectives.log_prob(family.spec.kind, outputs, actions)
    torch.testing.assert_close(mode, objectives.mode(family.spec.kind, outputs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
    told = observations.numpy()
    np.testing.assert_allclose(
        model.predict(told, deterministic=True)[0], policy.predict(told, deterministic=True)[0], rtol=0, atol=1e-6
    )


class Spaces(gymnasium.Env[Any, Any]):
    """Keeps the last action, and starts at a random observation."""

    def __init__(self, sees: Any, acts: Any) -> None:
        self.observation_space, self.action_space = sees, acts
        self.action: Any = None

    def heed(self, g: float) -> None:
        self.g = g

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.action = action
        return self.observation_space.sample(), 0.0, False, True, {}


def heeding(make: Any) -> GymnasiumFamily:
    return GymnasiumFamily(make, spaces.Dict(g=spaces.Box(5.0, 15.0)), lambda env, g: env.unwrapped.heed(g))


SEEN, ODD = spaces.Box(-2, 2, (3,)), spaces.Box(np.array([-1.0, 5.0]), np.array([3.0, 6.0]), dtype=np.float64)
PIXELS = spaces.Box(0, 255, (4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("sees", "acts"),
    [
        (SEEN, spaces.Box(-2, 2, (1,))),
        (SEEN, ODD),
        (SEEN, spaces.Box(-2, 3, (2, 2))),
        (SEEN, spaces.Discrete(3, start=5)),
        (SEEN, spaces.Discrete(3)),
        (spaces.Discrete(4, start=2), spaces.Discrete(3, start=-1)),
        (spaces.Discrete(4, start=2), ODD),
        (PIXELS, ODD),
        (spaces.Box(0, 255, (4, 5), np.uint8), ODD),
        (spaces.Box(0, 255, (2, 4, 5, 3), np.uint8), ODD),
        (spaces.Box(-1, 1, (4, 5, 3)), spaces.Discrete(3, start=1)),
    ],
)
def test_an_exported_model_acts_in_the_environment_itself_as_the_policy_in_lanes(sees: Any, acts: Any) -> None:
    family = GymnasiumFamily(
        lambda: Spaces(sees, acts), spaces.Dict(g=spaces.Box(5.0, 15.0)), lambda env, g: env.unwrapped.heed(g)
    )
    trained, real = learnt(MAML(network=SMALL), family), Spaces(sees, acts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "metarl.sb3.shifted", None)
        model = PPO.load(_file(sb3.to_ppo(trained, n_steps=4, batch_size=4)), env=real, device="cpu")
    assert model.action_space == acts
    policy, lanes = sb3.policy(trained), family.environment(1, torch.device("cpu"))
    own = sb3.policy(trained, own_spaces=True)
    for seed in range(5):
        seen, _ = lanes.reset(seed=[seed])
        lanes.step(policy.predict(seen, deterministic=True)[0])
        observation, _ = real.reset(seed=seed)
        action, _ = model.predict(observation, deterministic=True)
        same, _ = own.predict(observation, deterministic=True)
        np.testing.assert_allclose(action, same, rtol=1e-5, atol=1e-5)
        assert (same.dtype, same.shape) == (acts.dtype, acts.shape) and real.action_space.contains(same)
        assert own.predict(np.stack([observation] * 2))[0].shape == (2, *acts.shape)
        np.testing.assert_allclose(action, lanes._envs[0].unwrapped.action, rtol=1e-5, atol=1e-5)
        assert real.action_space.contains(action.astype(acts.dtype))
        sampled, _ = model.predict(observation)
        assert real.action_space.contains(sampled.astype(acts.dtype))
    before = sb3.import_actor(model, trained.algorithm, family)
    for name, value in before.items():
        torch.testing.assert_close(value, trained.params[name], rtol=1e-4, atol=1e-5)
    model.learn(8)


def test_the_pendulum_itself_gets_the_torques_of_its_lanes(tmp_path: Path) -> None:
    trained = learnt(MAML(network=SMALL), PENDULUM)
    task = trained.task(g=7.0)
    sb3.to_ppo(trained, task, steps=1, seed=2).save(tmp_path / "model.zip")
    env = gymnasium.make("Pendulum-v1", g=7.0)
    model = PPO.load(tmp_path / "model.zip", env=env, device="cpu")
    assert (model.observation_space, model.action_space) == (env.observation_space, env.action_space)
    lanes, policy = PENDULUM.environment(1, torch.device("cpu")), sb3.policy(trained, task, 1, seed=2)
    seen, _ = lanes.reset(seed=[3], options={"g": [7.0]})
    alone, _ = env.reset(seed=3)
    for _ in range(5):
        seen, *_ = lanes.step(policy.predict(seen, deterministic=True)[0])
        alone, *_ = env.step(model.predict(alone, deterministic=True)[0])
        np.testing.assert_allclose(seen[0], alone, rtol=1e-4, atol=1e-5)


def test_bounds_that_depend_on_the_task_need_a_task() -> None:
    class Motor(Spaces):
        def __init__(self, g: float) -> None:
            super().__init__(SEEN, spaces.Box(-g, g, (1,)))

    family = GymnasiumFamily(Motor, spaces.Dict(g=spaces.Box(5.0, 15.0)))
    trained = learnt(MAML(network=SMALL), family)
    with pytest.raises(ValueError, match=r"the environment's spaces depend on the task, .*: give the task"):
        sb3.to_ppo(trained)
    assert sb3.to_ppo(trained, trained.task(g=7.0)).action_space == spaces.Box(-7, 7, (1,))


def test_actors_of_other_actions_are_refused() -> None:
    model = PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), policy_kwargs={"net_arch": [8, 6]}, device="cpu")
    other = heeding(lambda: Spaces(SEEN, spaces.Box(-4, 4, (1,))))
    with pytest.raises(ValueError, match=r"the model acts in Box\(-2.0, 2.0, .* environments act in Box\(-4.0, 4.0"):
        sb3.import_actor(model, MAML(network=SMALL), other)


def test_an_exported_model_learns_without_metarl(tmp_path: Path) -> None:
    """It is loaded where metarl cannot be imported; the environment is Gymnasium's own, of the same spaces."""
    trained = learnt(MAML(network=SMALL), CHEETAH)
    family_lanes = sb3.TaskVecEnv(CHEETAH, 1)
    np.save(tmp_path / "observations.npy", np.ones((3, 17)))
    model = sb3.to_ppo(trained, n_steps=8, batch_size=8)
    (tmp_path / "model.zip").write_bytes(sb3.saved(model))
    script = """
import sys
import gymnasium, numpy as np
from stable_baselines3 import PPO
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("metarl", "metarl_envs"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1e10, 1e10, (17,), dtype=np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (6,), dtype=np.float32)
    def reset(self, seed=None, options=None):
        return np.zeros(17), {}
    def step(self, action):
        return np.zeros(17), 1.0, False, False, {}
model = PPO.load("model.zip", env=Env(), device="cpu")
np.save("actions.npy", model.predict(np.load("observations.npy"), deterministic=True)[0])
model.learn(16)
"""
    assert family_lanes.observation_space == gymnasium.spaces.Box(-1e10, 1e10, (17,), dtype=np.float64)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    expected, _ = sb3.policy(trained).predict(np.ones((3, 17)), deterministic=True)
    np.testing.assert_allclose(np.load(tmp_path / "actions.npy"), expected, rtol=0, atol=1e-6)


def test_the_seed_decides_the_critic_and_leaves_the_global_generator() -> None:
    trained = learnt(MAML(network=SMALL), NAVIGATION)
    before = torch.get_rng_state()
    one, same, other = (sb3.to_ppo(trained, seed=seed).policy for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.value_net.weight, same.value_net.weight)
    assert not torch.equal(one.value_net.weight, other.value_net.weight)


def test_an_exported_model_learns_one_task() -> None:
    trained = learnt(MAML(network=SMALL), CHEETAH)
    env = gymnasium.make("metarl/HalfCheetahVelocity-v0", velocity=1.3, max_episode_steps=10)
    model = PPO.load(_file(sb3.to_ppo(trained)), env=env, n_steps=16, batch_size=16, device="cpu")
    before = model.policy.action_net.weight.detach().clone()
    model.learn(32)
    assert (model.policy.action_net.weight != before).any()


def _file(model: PPO) -> io.BytesIO:
    return io.BytesIO(sb3.saved(model))


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_actors_come_back(kind: Any, tmp_path: Path) -> None:
    algorithm = MAML(network=SMALL, learn_step_sizes=True)
    trained = learnt(algorithm, NAVIGATION)
    model = sb3.to_ppo(trained)
    if kind is A2C:
        state = model.policy.state_dict()
        model = A2C("MlpPolicy", sb3.TaskVecEnv(NAVIGATION, 1), policy_kwargs=model.policy_kwargs, device="cpu")
        model.policy.load_state_dict(state)
    model.save(tmp_path / "model.zip")
    for given in (model, tmp_path / "model.zip", str(tmp_path / "model.zip")):
        params = sb3.import_actor(given, algorithm, NAVIGATION)
        assert set(params) == {name for name in trained.params if not name.startswith("step_size:")}
        assert all(torch.equal(value, trained.params[name]) for name, value in params.items())


def test_the_default_model_is_read_with_its_defaults() -> None:
    model = PPO("MlpPolicy", sb3.TaskVecEnv(BANDIT, 1), device="cpu")
    params = sb3.import_actor(model, MAML(network=Network(hidden=(64, 64), activation="tanh")), BANDIT)
    assert torch.equal(params["head.weight"], model.policy.action_net.weight)
    assert not params["head.weight"].requires_grad


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Network(hidden=(64,), activation="tanh"), r"shapes \[\(64, 2\), .* where MAML has .*--algorithm.hidden"),
        (Network(hidden=(64, 64), activation="relu"), "the model's activation is tanh where MAML has relu"),
        (Network(architecture=residual), "MAML is no plain multilayer perceptron"),
    ],
)
def test_actors_of_other_networks_are_refused(network: Network, told: str) -> None:
    model = PPO("MlpPolicy", sb3.TaskVecEnv(NAVIGATION, 1), device="cpu")
    with pytest.raises(ValueError, match=told):
        sb3.import_actor(model, MAML(network=network), NAVIGATION)


def test_what_is_no_actor_is_refused(tmp_path: Path) -> None:
    env, algorithm = sb3.TaskVecEnv(NAVIGATION, 1), MAML(network=Network(hidden=(64, 64), activation="tanh"))
    with pytest.raises(ValueError, match="SAC has no actor that can be read: expected a PPO or A2C model"):
        sb3.import_actor(SAC("MlpPolicy", env, buffer_size=10, device="cpu"), algorithm, NAVIGATION)
    odd = PPO("MlpPolicy", env, policy_kwargs={"activation_fn": nn.ELU}, device="cpu")
    with pytest.raises(ValueError, match="activation is ELU: expected tanh or relu"):
        sb3.import_actor(odd, algorithm, NAVIGATION)
    with pytest.raises(ValueError, match=r"nothing\.zip does not exist"):
        sb3.import_actor(tmp_path / "nothing.zip", algorithm, NAVIGATION)
    (tmp_path / "text.zip").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.zip cannot be read as a model of Stable-Baselines3"):
        sb3.import_actor(tmp_path / "text.zip", algorithm, NAVIGATION)


def test_what_cannot_be_a_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="learns from rewards while it acts"):
        sb3.policy(learnt(RL2(hidden=4), BANDIT))
    trained = learnt(MAML(network=SMALL), NAVIGATION)
    with pytest.raises(ValueError, match="2 adaptation steps need a task"):
        sb3.policy(trained, steps=2)
    with pytest.raises(ValueError, match="one policy is for one task, not for 3"):
        sb3.policy(trained, trained.tasks(3))
    with pytest.raises(ValueError, match="reads its task's descriptor, so a task must be given"):
        sb3.policy(learnt(MultiTask(condition="add", network=SMALL), NAVIGATION))


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        (MAML(network=Network(architecture=residual)), "MAML is no plain multilayer perceptron"),
        (MultiTask(condition="concatenate", network=SMALL), r"policy reads more than observations: .* \(8, 4\)"),
    ],
)
def test_networks_that_stable_baselines_does_not_have_are_refused(algorithm: Any, told: str) -> None:
    trained = learnt(algorithm, NAVIGATION)
    with pytest.raises(ValueError, match=told):
        sb3.to_ppo(trained, trained.tasks(1))
