"""From command lines to dataclasses, by tyro; errors in one line."""

import contextlib
import io
import re
from typing import Any

import tyro
from gymnasium.spaces import Space
from torch import Tensor
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from metarl.grouping import Classes
from metarl.networks import Architecture

registry = ConstructorRegistry()


@registry.primitive_rule
def _architecture(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Architecture] | None:
    """On the command line an architecture is a name: functions are given as module:attribute."""
    if info.type != Architecture:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str) or callable(value),
        str_from_instance=lambda value: [str(value)],
    )


@registry.primitive_rule
def _held(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Spaces, tensors and splits of classes have no form on the command line: they stay as the family has them."""
    kind: Any = info.type
    if not (kind == Classes | None or (isinstance(kind, type) and issubclass(kind, Space | Tensor))):
        return None

    def refuse(words: list[str]) -> Any:
        raise ValueError("this cannot be given on the command line; bind a family to a name, pass 'module:name'")

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{fixed}",
        instance_from_str=refuse,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value) if isinstance(value, Space) else type(value).__name__],
    )


def parse(kind: Any, arguments: list[str], command: str, description: str, partial: bool = False) -> Any:
    """Parse a command line into a dataclass, if ``partial`` leaving out options that it does not have.

    Raises ValueError, in one line, for a wrong one; --help exits.
    """
    said = io.StringIO()
    told: dict[str, Any] = {"prog": f"metarl {command}", "description": description, "registry": registry}
    try:
        with contextlib.redirect_stderr(said):
            if partial:
                return tyro.cli(kind, args=arguments, return_unknown_args=True, **told)[0]
            return tyro.cli(kind, args=arguments, **told)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_message(said.getvalue())}; 'metarl {command} --help' tells the options") from None


def _message(box: str) -> str:
    """Return the message in tyro's box, without the frame, the title and the advice under it.

    Where the terminal cannot draw it, rules of hyphens stand between the three.
    """
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))):
        if line.strip("─-"):
            sections[-1].append(line)
        elif line:
            sections.append([])
    framed = "╭" in box
    told = " ".join(sections[0] if framed or len(sections) == 1 else sections[1]) or box.strip()
    return re.sub(r"^Error parsing (?!--)[\w.]+: ", "", told)  # a dataclass's own error needs no name before it
