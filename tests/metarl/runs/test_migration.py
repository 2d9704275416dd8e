"""Configurations of earlier formats."""

import copy
from typing import Any

import pytest

from metarl.algorithms import MAML, RL2
from metarl.runs.migration import migrated, migrated_checkpoint
from metarl.runs.options import rebuild


def config(algorithm: str, options: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "algorithm": {"reference": f"metarl.algorithms:{algorithm}", "options": options},
        "tasks": {"reference": "metarl_envs.bandit:Bandit", "options": {"arms": 3, "sampling": sampling}},
        "outer": {"reference": "metarl.outer:TRPO", "options": {}},
        "settings": {},
    }


@pytest.mark.parametrize(
    ("algorithm", "options", "expected"),
    [
        ("MAML", {"steps": 2}, (MAML, 0.9, 0.8)),
        ("RL2", {"hidden": 3, "discount": 0.5, "gae_lambda": 0.3}, (RL2, 0.5, 0.3)),
    ],
)
def test_discount_and_lambda_move_to_the_algorithm_where_they_acted(
    algorithm: str, options: dict[str, Any], expected: tuple[Any, float, float]
) -> None:
    given = config(algorithm, options, {"episodes": 2, "horizon": 3, "discount": 0.9, "gae_lambda": 0.8})
    before = copy.deepcopy(given)
    found = migrated(given)
    assert given == before
    assert found["format"] == 2
    made, family = rebuild(found["algorithm"], "algorithms"), rebuild(found["tasks"], "tasks")
    assert (type(made), made.advantages.discount, made.advantages.gae_lambda) == expected
    assert (family.sampling.episodes, family.sampling.horizon) == (2, 3)


def test_what_never_told_of_them_stays_as_it_is() -> None:
    given = config("MAML", {"steps": 2}, {"episodes": 2, "horizon": 3})
    assert migrated(given) == given | {"format": 2}
    assert migrated(migrated(given)) == migrated(given)


def test_checkpoints_of_format_1_have_no_buffers() -> None:
    given = {"format": 1, "params": {"w": 3}, "iteration": 2}
    found = migrated_checkpoint(given)
    assert found == {"format": 2, "params": {"w": 3}, "iteration": 2, "buffers": {}}
    assert given == {"format": 1, "params": {"w": 3}, "iteration": 2}
    assert migrated_checkpoint(found | {"buffers": {"b": 1}}) == found | {"buffers": {"b": 1}}
