"""Success, which some environments tell of, beside the return."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from support import worker_envs
from support.synthetic import by_hand
from torch.utils import _pytree as pytree

from metarl import MAML, Settings, advantages, evaluate, objectives, train
from metarl.algorithms.rl2 import RL2
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.control.success import SuccessWatch
from metarl.speed.parts import Graphs, run_compiled
from metarl.testing.checks import ContractError, check_batch, check_family
from metarl.types import Experience, Learner, Rollout, each_tensor, joined, policy_of, select

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
    found = told.rollout(policy_of(still, None), torch.Generator().manual_seed(0))
    family.environment(2 * len(lengths), torch.device("cpu")).close()
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_success_of_episodes(workers: int) -> None:
    # Odd lengths succeed from step 3 on, even ones never do, 4 does not tell; the horizon is 6.
    found = rollout(family(2, 9, workers=workers), [2, 3, 4, 7])
    assert found.success is not None
    assert found.success.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


def test_success_is_a_part_of_the_rollout_like_any_other() -> None:
    """It was lost, without a word, by what made another rollout of one."""
    found = rollout(family(2, 9), [2, 3, 4, 7])
    expected = [[0, 0], [1, 1], [0, 0], [1, 1]]

    def told(changed: Rollout) -> Any:
        return None if changed.success is None else changed.success.tolist()

    assert told(replace(found, advantages=0 * found.rewards)) == expected
    assert told(pytree.tree_map(torch.clone, found)) == expected
    leaves, form = pytree.tree_flatten(found)
    assert told(pytree.tree_unflatten(leaves, form)) == expected
    experience = select(
        Experience(descriptors=torch.zeros(4, 0), supports=(found, found), query=found), torch.tensor([3, 0])
    )
    assert [told(batch) for batch in (*experience.supports, experience.query)] == [[[1, 1], [0, 0]]] * 3
    assert told(select(experience, slice(1, 2)).query) == [[0, 0]]
    failed = replace(found, success=torch.tensor([[0.0, 1], [0, 0], [0, 1], [0, 0]]))
    assert told(joined([found, failed])) == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert told(joined([found, replace(found, success=None)])) is None
    untold = replace(found, success=None)
    two = replace(experience, query=untold.select([0, 1]))
    assert told(each_tensor(torch.clone, untold)) is told(two.select(slice(1)).query)
    assert objectives.scores("continuous", found)["success"].tolist() == [0, 1, 0, 1]
    assert list(objectives.scores("continuous", untold)) == ["return"]


def test_a_memory_keeps_success_when_it_prepares_what_it_learns_from() -> None:
    chosen = family(2, 9)
    learner, found = RL2(hidden=3).build(chosen.spec), rollout(chosen, [2, 3, 4, 7])
    for judged in advantages.judged(learner, None, [found, found]):
        assert judged.success is found.success and judged.advantages is not None


def test_graphs_pass_success_and_its_absence_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    found, graphs = rollout(family(2, 9), [2, 3]), Graphs()

    def doubled(batch: Rollout) -> Rollout:
        return replace(batch, rewards=2 * batch.rewards)

    with graphs.used(1):
        for batch in (found, replace(found, success=None)):
            given = (pytree.tree_map(lambda leaf: leaf, batch),)
            made = run_compiled("doubles", doubled, given, ())
            assert torch.equal(made.rewards, 2 * batch.rewards)
            assert (made.success is None) == (batch.success is None)
            assert made.success is None or torch.equal(made.success, found.success)
    assert not graphs.refused


@pytest.mark.parametrize(
    ("success", "message"),
    [(torch.full((2, 2), 0.5), "success contains numbers other than 0 and 1"), (torch.ones(2, 2, 6), "success: found")],
)
def test_success_of_another_form_is_a_fault(success: torch.Tensor, message: str) -> None:
    found = rollout(family(2, 9), [2, 3])
    check_batch(found, family(2, 9).spec, 2)
    with pytest.raises(ContractError, match=message):
        check_batch(replace(found, success=success), family(2, 9).spec, 2)


def test_environments_that_do_not_tell() -> None:
    assert rollout(family(2, 9), [4, 4]).success is None


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

    watch, batch = SuccessWatch(Told()), by_hand(*[torch.zeros(1, 2, 3)] * 6)
    watch.step(None)
    assert watch.scored(batch) is batch
    watch.step(None)
    watch.step(None)
    scored = watch.scored(batch)
    assert scored.success is not None
    assert scored.success.tolist() == [[0, 1]]
