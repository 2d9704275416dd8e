import numpy as np
import pytest
import torch

from metarl.control import Sampling, scripted
from metarl.seeding import stream
from metarl.types import Learner, Spec, policy_of
from metarl_envs.bandit import Bandit, make_env, make_vector_env, optimal_returns, pull, uniform_returns
from metarl_envs.tabular import TabularMDP


def test_a_pull_by_hand() -> None:
    probabilities = torch.tensor([[0.2, 0.8], [0.5, 0.0], [1.0, 0.3]])
    rewards = pull(probabilities, torch.tensor([1, 1, 0]), torch.tensor([0.79, 0.0, 0.999]))
    assert rewards.tolist() == [1, 0, 1]
    assert pull(probabilities, torch.tensor([0, 0, 1]), torch.tensor([0.2, 0.49, 0.3])).tolist() == [0, 1, 0]
    # The single environment's call: no leading axis.
    assert pull(torch.tensor([0.2, 0.8]), torch.tensor(1), torch.tensor(0.79)).item() == 1


def test_rewards_have_the_arms_frequencies() -> None:
    envs = make_vector_env(3000, probabilities=[0.1, 0.9])
    envs.reset(seed=0)
    assert set(envs.step(np.zeros(3000, dtype=int))[1]) == {0.0, 1.0}
    assert envs.step(np.zeros(3000, dtype=int))[1].mean() == pytest.approx(0.1, abs=0.02)
    assert envs.step(np.ones(3000, dtype=int))[1].mean() == pytest.approx(0.9, abs=0.02)


def test_lanes_have_their_own_arms() -> None:
    envs = make_vector_env(2, probabilities=[0.5, 0.5, 0.5])
    envs.reset(options={"probabilities": [[0, 1, 0], [1, 0, 0]]})
    assert [envs.step(np.full(2, arm))[1].tolist() for arm in range(3)] == [[0, 1], [1, 0], [0, 0]]


def test_the_observation_is_one() -> None:
    env = make_env(probabilities=[1.0, 0.0])
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [1]
    observation, reward, terminated, truncated, _ = env.step(0)
    assert (observation.tolist(), reward, terminated, truncated) == ([1], 1.0, False, False)
    assert env.step(1)[1] == 0.0
    assert (env.action_space.n, make_env().action_space.n) == (2, 5)


def test_the_family() -> None:
    family = Bandit(arms=7)
    assert family.spec == Spec(input_shape=(1,), output_size=7, kind="discrete", descriptor_size=7)
    assert family.parameter_space["probabilities"].shape == (7,)
    assert family.sampling.episodes * family.sampling.horizon == 100
    tasks = family.sample(500, "train", torch.Generator().manual_seed(0))
    probabilities = tasks.parameters["probabilities"]
    assert probabilities.shape == (500, 7)
    assert torch.equal(probabilities, tasks.descriptors)
    again = family.sample(500, "test", torch.Generator().manual_seed(0))
    assert torch.equal(again.descriptors, probabilities)
    assert 0 <= probabilities.min() < 0.01
    assert 0.99 < probabilities.max() <= 1


def test_known_returns() -> None:
    probabilities = torch.tensor([[0.2, 0.8], [0.5, 0.1]])
    assert optimal_returns(probabilities, 10).tolist() == pytest.approx([8, 5])
    assert uniform_returns(probabilities, 10).tolist() == pytest.approx([5, 3])


def test_a_uniform_policy_earns_the_uniform_return() -> None:
    family = Bandit()
    tasks = family.sample(8, "test", torch.Generator().manual_seed(0))
    learner = Learner(family.spec, 1, *[lambda *_: None] * 3, lambda state, seen: (seen.repeat(1, 1, 5), state), None)
    rollout = tasks.rollout(policy_of(learner, None), torch.Generator().manual_seed(1))
    assert rollout.rewards.shape == (8, 100, 1)
    expected = uniform_returns(tasks.parameters["probabilities"], 1).mean()
    assert rollout.rewards.mean() == pytest.approx(expected.item(), abs=0.06)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two arms, not 1"):
        Bandit(arms=1)
    with pytest.raises(ValueError, match="at least one task is needed, not -2"):
        Bandit().sample(-2, "train", torch.Generator())
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]"):
        make_env(probabilities=[0.5, 1.5])
    with pytest.raises(ValueError, match=r"probabilities has shape \(3,\) where \(5,\) was expected"):
        make_env().reset(options={"probabilities": [0.1, 0.2, 0.3]})


@pytest.mark.parametrize("family", [Bandit(sampling=Sampling(4, 3)), TabularMDP(sampling=Sampling(4, 3))])
def test_episodes_of_a_task_do_not_depend_on_the_number_of_tasks(family) -> None:
    policy = scripted(family.spec, lambda seen: torch.ones(seen.shape[:2], dtype=torch.int64))
    few, many = (
        family.sample(tasks, "test", stream(0, "tasks")).rollout(policy, stream(0, "draw")) for tasks in (2, 5)
    )
    for name in ("observations", "rewards", "last_observations"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:2]), name
    assert few.rewards.unique().numel() > 1
