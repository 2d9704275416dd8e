"""It learns: discrete and continuous control in seconds, measured against the known optimum and the uniform policy."""

import torch

from metarl.algorithms.maml import MAML
from metarl.evaluation.scores import evaluate
from metarl.networks.options import Network
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl_envs import bandit, tabular
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_envs.tabular import TabularMDP


def adaptation(algorithm, family, iterations, steps):
    """Mean held-out returns after 0..steps adaptations, and the tasks they were measured on."""
    result = train(algorithm, family, settings=Settings(iterations=iterations, meta_batch_size=20))
    found = evaluate(result.learner, result.params, family, tasks=100, steps=steps)
    return found.scores["return"].mean(1).tolist(), found.tasks.parameters


def test_bandit_comes_close_to_the_best_arm():
    family = Bandit(arms=5)
    returns, parameters = adaptation(
        MAML(step_size=1.0, network=Network(hidden=(32, 32))), family, iterations=40, steps=2
    )
    best = float(bandit.optimal_returns(parameters["probabilities"], 1).mean())
    uniform = float(bandit.uniform_returns(parameters["probabilities"], 1).mean())
    assert abs(returns[0] - uniform) < 0.05
    assert returns[1] > uniform + 0.75 * (best - uniform)
    assert returns[2] > returns[1] - 0.02


def test_tabular_mdp_improves_with_every_step():
    family = TabularMDP()
    algorithm = MAML(step_size=3.0, network=Network(hidden=(32, 32), activation="tanh"))
    returns, parameters = adaptation(algorithm, family, iterations=30, steps=3)
    tables = (parameters["transitions"], parameters["reward_means"])
    best = float(tabular.optimal_returns(*tables, family.sampling.horizon).mean())
    uniform = float(tabular.uniform_returns(*tables, family.sampling.horizon).mean())
    assert abs(returns[0] - uniform) < 1
    assert returns[1] > uniform + 0.25 * (best - uniform)
    assert returns[3] > uniform + 0.45 * (best - uniform)
    assert returns[0] < returns[1] < returns[2] < returns[3]


def test_navigation_adapts_in_one_step():
    algorithm = MAML(step_size=0.5, network=Network(hidden=(32, 32), activation="tanh"))
    returns, _ = adaptation(algorithm, PointNavigation(), iterations=12, steps=1)
    assert returns[1] > returns[0] + 10


def test_tasks_do_not_depend_on_the_number_of_threads():
    def goals():
        return PointNavigation().sample(5, "train", torch.Generator().manual_seed(3)).parameters["goal"]

    before = goals()
    torch.set_num_threads(1)
    assert torch.equal(goals(), before)
