"""What metarl reads in tyro's messages, which are for people and may change with its version."""

from dataclasses import dataclass

import pytest

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
