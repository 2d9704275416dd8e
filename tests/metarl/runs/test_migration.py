"""Configurations of earlier formats."""

import copy
from typing import Any

import pytest

from metarl.algorithms import MAML, MANN, RL2, SNAIL, Matching
from metarl.outer import ProMP
from metarl.runs.layout import FORMAT
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
    assert found["format"] == FORMAT
    made, family = rebuild(found["algorithm"], "algorithms"), rebuild(found["tasks"], "tasks")
    assert (type(made), made.advantages.discount, made.advantages.gae_lambda) == expected
    assert (family.sampling.episodes, family.sampling.horizon) == (2, 3)


def test_what_never_told_of_them_stays_as_it_is() -> None:
    given = config("MAML", {"steps": 2}, {"episodes": 2, "horizon": 3})
    assert migrated(given) == given | {"format": FORMAT}
    assert migrated(migrated(given)) == migrated(given)


def test_checkpoints_of_format_1_have_no_buffers() -> None:
    given = {"format": 1, "params": {"w": 3}, "iteration": 2}
    found = migrated_checkpoint(given)
    assert found == {"format": 2, "params": {"w": 3}, "iteration": 2, "buffers": {}}
    assert given == {"format": 1, "params": {"w": 3}, "iteration": 2}
    assert migrated_checkpoint(found | {"buffers": {"b": 1}}) == found | {"buffers": {"b": 1}}


@pytest.mark.parametrize(("outer", "schedule"), [("TRPO", (1.0, 0.5)), ("Adam", None)])
def test_policies_go_on_with_the_steps_that_they_began_with(outer: str, schedule: tuple[float, ...] | None) -> None:
    """Adam also trains on examples, whose steps were never halved."""
    options = {"max_kl": 0.01} if outer == "TRPO" else {"learning_rate": 0.1}
    given = config("MAML", {"steps": 2, "schedule": None}, {}) | {
        "format": 2,
        "outer": {"reference": f"metarl.outer:{outer}", "options": options},
    }
    assert rebuild(migrated(given)["algorithm"], "algorithms") == MAML(steps=2, schedule=schedule)


@pytest.mark.parametrize("number", [1, 2])
def test_promp_goes_on_as_it_began(number: int) -> None:
    promp = {"reference": "metarl.outer:ProMP", "options": {"clip": 0.2, "inner_kl_coefficient": 0.1}}
    given = config("MAML", {}, {}) | {"format": number, "outer": promp}
    made = rebuild(migrated(given)["outer"], "outers")
    assert made == ProMP(clip=0.2, inner_kl_coefficient=0.1, inner_kl_adaptive=True, inner_kl_over_steps="sum")
    now = given | {"format": FORMAT}
    assert rebuild(migrated(now)["outer"], "outers") == ProMP(clip=0.2, inner_kl_coefficient=0.1)


@pytest.mark.parametrize("reference", ["matching", "metarl.algorithms:Matching", "metarl.algorithms.matching:Matching"])
@pytest.mark.parametrize("number", [2, 3])
def test_matching_networks_keep_their_cosines_without_a_scale(reference: str, number: int) -> None:
    given = config("Matching", {"reads": 3}, {}) | {"format": number}
    given["algorithm"]["reference"] = reference
    assert rebuild(migrated(given)["algorithm"], "algorithms") == Matching(reads=3, scale=1.0)
    assert rebuild(migrated(given | {"format": FORMAT})["algorithm"], "algorithms") == Matching(reads=3)


def test_memory_augmented_networks_keep_the_papers_form() -> None:
    given = config("MANN", {"slots": 16}, {})
    expected = MANN(slots=16, write="key", key_strength=1.0, learn_key_strength=False)
    assert rebuild(migrated(given)["algorithm"], "algorithms") == expected


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("reference", ["snail", "metarl.algorithms.snail:SNAIL"])
def test_snails_attention_began_at_random(reference: str, number: int) -> None:
    given = config("SNAIL", {"length": 9}, {}) | {"format": number}
    given["algorithm"]["reference"] = reference
    assert rebuild(migrated(given)["algorithm"], "algorithms") == SNAIL(length=9, first_weights="glorot")
    assert rebuild(migrated(given | {"format": FORMAT})["algorithm"], "algorithms") == SNAIL(length=9)
