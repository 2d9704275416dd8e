"""Success, which some environments tell of, beside the return."""

from typing import Any

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from support import worker_envs

from metarl import MAML, Settings, evaluate, train
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.control.success import SuccessWatch
from metarl.testing.checks import check_family
from metarl.types import Learner, Rollout, ScoredRollout

SAMPLING = Sampling(episodes=2, horizon=6)


def family(*lengths: int, workers: int = 1) -> GymnasiumFamily:
    low, number = min(lengths), max(lengths) - min(lengths) + 1
    parameters = spaces.Dict(length=spaces.Discrete(number, start=low))
    return GymnasiumFamily(worker_envs.Fragile, parameters, "attribute", SAMPLING, workers)


def rollout(family: GymnasiumFamily, lengths: list[int]) -> Rollout:
    tasks = family.sample(len(lengths), "train", torch.Generator().manual_seed(0))
    parameters = {"length": torch.tensor(lengths)}
    still = Learner(family.spec, 1, *[lambda *_: None] * 3, lambda state, seen: (0 * seen, state), None)
    told: Any = type(tasks)(tasks.spec, parameters, tasks.descriptors, family.environment, SAMPLING)
    found = told.draw(still, None, "support", torch.Generator().manual_seed(0))
    family.environment(2 * len(lengths), torch.device("cpu")).close()
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_success_of_episodes(workers: int) -> None:
    # Odd lengths succeed from step 3 on, even ones never do, 4 does not tell; the horizon is 6.
    found = rollout(family(2, 9, workers=workers), [2, 3, 4, 7])
    assert isinstance(found, ScoredRollout) and found.success is not None
    assert found.success.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert len(found) == 6  # what maps over the fields of a rollout need not know of it


def test_environments_that_do_not_tell() -> None:
    assert type(rollout(family(2, 9), [4, 4])) is Rollout


def test_families_that_tell_keep_the_contract() -> None:
    check_family(family(2, 9))


def test_the_success_rate_is_logged_and_evaluated() -> None:
    chosen = family(3, 3)
    result = train(MAML(steps=1), chosen, settings=Settings(iterations=1, meta_batch_size=2))
    assert result.rows[0]["success/step_0"] == result.rows[0]["success/step_1"] == 1
    evaluation = evaluate(result.learner, result.params, family(2, 3), tasks=20, steps=1)
    lengths = evaluation.tasks.parameters["length"]
    assert sorted(evaluation.metrics) == ["return/step_0", "return/step_1", "success/step_0", "success/step_1"]
    assert evaluation.scores["success"].tolist() == [(lengths == 3).float().tolist()] * 2
    assert lengths.unique().tolist() == [2, 3]


def test_no_success_is_logged_where_none_is_told() -> None:
    result = train(MAML(steps=1), family(4, 4), settings=Settings(iterations=1, meta_batch_size=2))
    assert "return/step_0" in result.rows[0]
    assert not any(name.startswith("success") for name in result.rows[0])


@pytest.mark.parametrize("tensors", [True, False])
def test_vector_environments_tell_in_their_infos(tensors: bool) -> None:
    told = iter([{}, {"success": [0.0, 1.0]}, {"success": [False, False]}])

    class Told(VectorEnv):
        num_envs = 2

        def step(self, actions: Any) -> Any:
            infos = next(told)
            return actions, actions, actions, actions, {k: torch.tensor(v) if tensors else v for k, v in infos.items()}

    watch, batch = SuccessWatch(Told()), Rollout(*[torch.zeros(1, 2, 3)] * 6)
    watch.step(None)
    assert watch.scored(batch) is batch
    watch.step(None)
    watch.step(None)
    scored = watch.scored(batch)
    assert isinstance(scored, ScoredRollout) and scored.success is not None
    assert scored.success.tolist() == [[0, 1]]
