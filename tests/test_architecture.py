"""The page on the architecture tells of the code as it is; ``python docs/draw_architecture.py`` renews it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "draw_architecture.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("draw_architecture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_lines_and_its_table_are_those_of_the_code(script: Any) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert len(script.PLACE.findall(text)) > 20
    assert script.page(text) == text


def test_its_picture_shows_the_imports_there_are(script: Any) -> None:
    assert script.told(script.arrows()) in script.PICTURE.read_text(encoding="utf-8")


def test_every_file_that_it_names_is_there(script: Any) -> None:
    for row in script.PAGE.read_text(encoding="utf-8").splitlines():
        for word in row.split("`")[1::2]:
            if word.startswith(("metarl/", "tests/")) and ":" not in word:
                assert (script.ROOT / word).exists(), word


def test_rooms_are_drawn_alike_each_time(script: Any, tmp_path: Path) -> None:
    found = {"low": set[str](), "middle": {"low"}, "high": {"low", "middle"}}
    assert script.floors(found) == {"low": 0, "middle": 1, "high": 2}
    assert script.direct(found) == {"low": set(), "middle": {"low"}, "high": {"middle"}}
    for name in ("one.svg", "two.svg"):
        script.draw(found, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
