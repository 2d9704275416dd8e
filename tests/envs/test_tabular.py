import numpy as np
import pytest
import torch

from metarl.types import Learner, Spec, policy_of
from metarl_envs.tabular import (
    TabularMDP,
    make_env,
    make_vector_env,
    optimal_returns,
    reward,
    transition,
    uniform_returns,
)

# Action 0 stays, action 1 goes to the other state; leaving state 0 costs 1, staying in state 1 pays 2.
STAY_OR_GO = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
MEANS = torch.tensor([[0.0, -1.0], [2.0, 0.0]])


def test_transitions_by_hand() -> None:
    table = torch.tensor([[[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]] * 3)
    uniforms = torch.tensor([0.0, 0.199, 0.2, 0.69, 0.71, 0.999])
    zeros = torch.zeros(6, dtype=torch.int64)
    batch = table.expand(6, 3, 2, 3)
    assert transition(batch, zeros, zeros, uniforms).tolist() == [0, 0, 1, 1, 2, 2]
    # States without probability are never entered, at the ends either.
    assert transition(batch, zeros, zeros + 1, uniforms).tolist() == [2] * 6
    single = [transition(table, torch.tensor(0), torch.tensor(0), uniform).item() for uniform in uniforms]
    assert single == [0, 0, 1, 1, 2, 2]


def test_rounding_invents_no_state() -> None:
    table = torch.full((7, 2, 7), 1 / 7)
    assert transition(table, torch.tensor(3), torch.tensor(1), torch.tensor(1.0)).item() == 6


def test_rewards_by_hand() -> None:
    states, actions = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    noise = torch.tensor([0.0, 0.5, -0.25, 3.0])
    assert reward(MEANS.expand(4, 2, 2), states, actions, noise).tolist() == [0.0, -0.5, 1.75, 3.0]


def test_single_and_batch_agree_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = TabularMDP().sample(100, "train", generator).parameters
    states, actions = torch.randint(10, (100,), generator=generator), torch.randint(5, (100,), generator=generator)
    uniforms, noise = torch.rand(100, generator=generator), torch.randn(100, generator=generator)
    following = transition(parameters["transitions"], states, actions, uniforms)
    rewards = reward(parameters["reward_means"], states, actions, noise)
    for i in range(100):
        assert transition(parameters["transitions"][i], states[i], actions[i], uniforms[i]) == following[i]
        assert reward(parameters["reward_means"][i], states[i], actions[i], noise[i]) == rewards[i]


def test_known_returns() -> None:
    transitions, means = STAY_OR_GO.expand(2, 2, 2, 2), torch.stack([MEANS, MEANS + 1])
    # From state 0: stay for one step; go and stay from two steps on. One more per step in the second task.
    assert optimal_returns(transitions, means, 1).tolist() == [0, 1]
    assert optimal_returns(transitions, means, 2).tolist() == [1, 3]
    assert optimal_returns(transitions, means, 3).tolist() == [3, 6]
    # At random: -1/2, then -1/2 + (-1/2 + 1) / 2, then -1/2 + (-1/4 + 5/4) / 2.
    assert uniform_returns(transitions, means, 1).tolist() == [-0.5, 0.5]
    assert uniform_returns(transitions, means, 2).tolist() == [-0.25, 1.75]
    assert uniform_returns(transitions, means, 3).tolist() == [0, 3]


def test_the_optimal_policy_earns_the_optimal_return() -> None:
    envs = make_vector_env(4000, transitions=STAY_OR_GO, reward_means=MEANS)
    observations, _ = envs.reset(seed=0)
    assert observations[0].tolist() == [1, 0]
    total = np.zeros(4000)
    for action in (1, 0, 0):
        observations, rewards, _, _, _ = envs.step(np.full(4000, action))
        assert (observations == [0, 1]).all()
        total += rewards
    assert total.mean() == pytest.approx(3, abs=0.1)
    assert total.std() == pytest.approx(np.sqrt(3), abs=0.1)


def test_next_states_have_their_frequencies() -> None:
    transitions = torch.tensor([[[0.1, 0.6, 0.3], [1.0, 0.0, 0.0]]] * 3)
    envs = make_vector_env(5000, transitions=transitions, reward_means=torch.zeros(3, 2))
    envs.reset(seed=0)
    np.testing.assert_allclose(envs.step(np.zeros(5000, dtype=int))[0].mean(0), [0.1, 0.6, 0.3], atol=0.03)


def test_a_uniform_policy_earns_the_uniform_return() -> None:
    family = TabularMDP()
    tasks = family.sample(20, "test", torch.Generator().manual_seed(0))
    learner = Learner(
        family.spec, 1, *[lambda *_: None] * 3, lambda state, seen: (torch.zeros(*seen.shape[:-1], 5), state), None
    )
    rollout = tasks.rollout(policy_of(learner, None), torch.Generator().manual_seed(1))
    assert rollout.rewards.shape == (20, 20, 10)
    assert rollout.mask.all()
    expected = uniform_returns(**tasks.parameters, horizon=10)
    assert rollout.rewards.sum(2).mean() == pytest.approx(expected.mean().item(), abs=0.6)
    assert (optimal_returns(**tasks.parameters, horizon=10) > expected + 5).all()


def test_the_family() -> None:
    family = TabularMDP()
    assert family.spec == Spec(input_shape=(10,), output_size=5, kind="discrete", descriptor_size=550)
    assert (family.sampling.horizon, family.environment(2, torch.device("cpu")).horizon) == (10, 10)
    tasks = family.sample(40, "train", torch.Generator().manual_seed(0))
    transitions, means = tasks.parameters["transitions"], tasks.parameters["reward_means"]
    assert (transitions.shape, means.shape) == ((40, 10, 5, 10), (40, 10, 5))
    torch.testing.assert_close(transitions.sum(-1), torch.ones(40, 10, 5))
    # Dirichlet(1) over 10 states: mean 1/10, variance 9 / (100 * 11).
    assert transitions.var() == pytest.approx(9 / 1100, rel=0.05)
    assert means.mean() == pytest.approx(1, abs=0.1)
    assert means.std() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(tasks.descriptors, torch.cat([means.flatten(1), transitions.flatten(1)], dim=1))
    again = family.sample(40, "test", torch.Generator().manual_seed(0))
    assert torch.equal(tasks.descriptors, again.descriptors)
    assert TabularMDP(states=3, actions=2).spec.descriptor_size == 24


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="two states and two actions, not 1 and 5"):
        TabularMDP(states=1)
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        TabularMDP().sample(0, "train", torch.Generator())
    with pytest.raises(ValueError, match="transitions are probabilities"):
        make_env(transitions=STAY_OR_GO * 2, reward_means=MEANS)
    with pytest.raises(ValueError, match=r"reward_means has shape \(10, 5\) where \(2, 2\) was expected"):
        make_env(transitions=STAY_OR_GO)
