"""The page of the papers' settings: its trainings say which recipe they take, so that none is taken unasked."""

from pathlib import Path

import pytest
from support import pages

from metarl.plugins import find_recipe

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
TRAININGS = [
    call
    for block in pages.blocks(PAGE.read_text(encoding="utf-8"))
    if block.language == "sh"
    for call in pages.calls(block.code)
    if call[0] == "train"
]


def takes_a_recipe_unasked(call: list[str]) -> bool:
    return "--recipe" not in call and find_recipe(call[1], call[2]) is not None


def test_the_page_has_trainings() -> None:
    assert len(TRAININGS) > 25


@pytest.mark.parametrize("call", TRAININGS, ids=" ".join)
def test_every_training_says_which_recipe_it_takes(call: list[str]) -> None:
    assert not takes_a_recipe_unasked(call), f"say --recipe none, or --recipe paper: metarl {' '.join(call)}"


def test_a_recipe_that_is_taken_unasked_is_noticed() -> None:
    assert takes_a_recipe_unasked(["train", "maml", "ant-velocity", "--iterations", "500"])
    assert not takes_a_recipe_unasked(["train", "maml", "ant-velocity", "--recipe", "paper"])
    assert not takes_a_recipe_unasked(["train", "snail", "ant-velocity"])
