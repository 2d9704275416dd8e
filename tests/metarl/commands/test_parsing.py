"""What metarl reads in tyro's messages, which are for people and may change with its version."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gymnasium import spaces

from metarl.commands.parsing import parse


@dataclass(frozen=True)
class Options:
    """Some options."""

    step_size: float = 0.1
    """How far."""
    steps: int = 1
    """How often."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


def refused(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse(Options, list(arguments), "try", "Tries.")
    return str(caught.value)


HELP = "; 'metarl try --help' shows the options"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["40", "200"])
def test_errors_come_out_of_their_box_in_one_line(encoding: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the terminal draws boxes or not, and however narrow it is."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for told in (refused("--steps", "0"), refused("--steps", "many"), refused("--step-sice", "1")):
        assert told.endswith(HELP)
        assert not set(told) & set("│╭╰─\n")
    assert refused("--steps", "0") == f"steps=0 must be at least 1{HELP}"
    assert "many" in refused("--steps", "many")
    assert "did you mean --step-size?" in refused("--step-sice", "1")


def test_unknown_options_can_be_left_for_later() -> None:
    assert parse(Options, ["--steps", "3", "--other.option", "1"], "try", "Tries.", partial=True) == Options(steps=3)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of ``numbers``.

    Task parameter: ``group`` ``[task]``.
    """

    inputs: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(20, 3))
    """``[row, *shape]``: numbers."""
    space: spaces.Space[Any] = dataclasses.field(default_factory=lambda: spaces.Discrete(2))
    """A space."""
    names: tuple[str, ...] = tuple(f"country {number}" for number in range(142))
    """Names of the groups."""
    shots: int = 5
    """Rows of ``inputs`` that are
    known."""


def test_the_help_shows_options_and_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    kind = dataclasses.make_dataclass("Command", [("tasks", Table, Table())])
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], "check", "Check ``it``.")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "Check it.",
        "A table of numbers.",
        "group [task]",
        "--tasks.shots INT Rows of inputs that are known.",
        "(default: 142 values)",
    ):
        assert text in shown
    for hidden in ("`", "--tasks.inputs", "--tasks.space", "country 1", "Tensor"):
        assert hidden not in shown
    assert parse(kind, ["--tasks.names", "a", "b", "--tasks.shots", "3"], "check", "").tasks.names == ("a", "b")
