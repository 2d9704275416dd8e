"""Meta-World's plugin where Meta-World is not: here. Its own tests run by ``make metaworld``."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarl import plugins

FOLDER = Path(__file__).parents[2] / "plugins" / "metaworld"


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in [name for name in sys.modules if name.startswith("metarl_metaworld")]:
        del sys.modules[name]


def test_asking_for_it_says_what_to_install(on_path: None) -> None:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load("tasks", "metarl_metaworld.families:ML1")
    assert str(caught.value) == (
        "importing 'metarl_metaworld.families' failed: ImportError: metaworld is not installed; install it apart from "
        "other MuJoCo projects, from metarl's repository: pip install -c plugins/metaworld/constraints.txt . "
        "plugins/metaworld"
    )
