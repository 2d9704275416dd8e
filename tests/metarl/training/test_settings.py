"""Settings that leave open what depends on the kind of tasks."""

import dataclasses
from pathlib import Path

import pytest

from metarl import cli, training
from metarl.algorithms import MAML
from metarl.commands import train as command
from metarl.networks import Network
from metarl.testing import small_family
from metarl.training.settings import Settings, default_settings
from metarl.types import Kind


@pytest.mark.parametrize(
    ("kind", "expected"), [("continuous", (500, 40, 10, 1)), ("regression", (20_000, 25, 1000, 100))]
)
def test_python_and_the_command_line_have_the_same_defaults(
    kind: Kind, expected: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, algorithm = small_family(kind), MAML(network=Network(hidden=(4,)))
    names = "iterations", "meta_batch_size", "checkpoint_every", "log_every"
    for settings in (None, Settings(), Settings(seed=3)):
        run = training.start(training.Source(algorithm), training.Source(family), settings=settings)
        assert tuple(getattr(run.settings, name) for name in names) == expected
    monkeypatch.setattr(command, "finish", lambda *arguments: 0)
    monkeypatch.setattr(training.loop.Run, "train", lambda self, *arguments: seen.append(self.settings))
    seen: list[Settings] = []
    tasks = {"continuous": "point-navigation", "regression": "sinusoid"}[kind]
    words = ["train", "maml", tasks, "--recipe", "none", "--seed", "3", "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert seen == [dataclasses.replace(default_settings(family.spec), seed=3)]


def test_what_is_given_stays() -> None:
    settings = Settings(iterations=7, log_every=2)
    assert settings.filled(small_family("regression").spec) == Settings(7, 25, checkpoint_every=1000, log_every=2)
    assert settings.filled(small_family("discrete").spec) == Settings(7, 40, checkpoint_every=10, log_every=2)
