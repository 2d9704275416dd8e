"""Which signs the rows of a run have."""

from typing import Any

import pytest

from metarl.algorithms import MAML, RL2
from metarl.control import Sampling
from metarl.networks import Network
from metarl.training import Settings, train
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

SMALL = Sampling(episodes=4, horizon=3)
NETWORK = Network(hidden=(4,))
ALL = {"clipped_actions", "action_std", "explained_variance", "inner_signal"}


def signs(algorithm: Any, family: Any, **options: Any) -> set[str]:
    run = train(algorithm, family, settings=Settings(iterations=1, meta_batch_size=2, device="cpu", **options))
    return {name.removeprefix("signs/") for name in run.rows[-1] if name.startswith("signs/")}


def test_rows_have_the_signs_that_there_are() -> None:
    maml = MAML(network=NETWORK)
    assert signs(maml, PointNavigation(sampling=SMALL)) == ALL
    assert signs(maml, Bandit(sampling=SMALL)) == {"explained_variance", "inner_signal"}
    assert signs(RL2(hidden=4), PointNavigation(sampling=SMALL)) == ALL - {"inner_signal"}
    squashed = MAML(network=Network(hidden=(4,), distribution="squashed"))
    assert signs(squashed, PointNavigation(sampling=SMALL)) == {"explained_variance", "inner_signal"}
    assert signs(maml, Sinusoid()) == set()


@pytest.mark.parametrize(("name", "there"), [("tasks.sampling.horizon", True), ("tasks.action_unit", False)])
def test_actions_are_not_compared_with_ends_that_a_schedule_may_move(name: str, there: bool) -> None:
    schedule = {name: "2/3@0.5"} if there else {name: "0.1..0.2"}
    found = signs(MAML(network=NETWORK), PointNavigation(sampling=SMALL), schedules=schedule)
    assert ("clipped_actions" in found) == there


def test_clipped_actions_follow_the_unit_of_the_family() -> None:
    shares = []
    for unit in (0.1, 0.001):
        family = PointNavigation(action_unit=unit, sampling=Sampling(episodes=20, horizon=20))
        run = train(MAML(network=NETWORK), family, settings=Settings(iterations=1, meta_batch_size=4, device="cpu"))
        shares.append(run.rows[0]["signs/clipped_actions"])
    assert shares[0] == pytest.approx(0.32, abs=0.05)  # the ends are one standard deviation away, or a hundred
    assert shares[1] == 0
