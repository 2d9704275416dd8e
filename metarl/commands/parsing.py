"""From command lines to dataclasses, by tyro; errors in one line."""

import contextlib
import dataclasses
import difflib
import io
import re
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import tyro
from gymnasium.spaces import Space
from torch import Tensor
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from metarl.fewshot import Classes
from metarl.files import expanded
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
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """A shell expands ``~/x``, and leaves ``--out=~/x`` as it is. An empty path is none."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: expanded(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


@registry.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``PATH`` instead of tyro's ``{None}|PATH``; the word None is still taken."""
    choices = get_args(info.type)
    if get_origin(info.type) not in (Union, types.UnionType) or len(choices) != 2 or type(None) not in choices:
        return None
    (given,) = (choice for choice in choices if choice is not type(None))
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(given, info.markers))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return None
    count = spec.nargs
    return PrimitiveConstructorSpec(
        nargs=(1, count) if isinstance(count, int) and count > 1 else count,
        metavar=spec.metavar,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
        choices=None if spec.choices is None else (*spec.choices, "None"),
    )


# After the rule for optional values: the later rule is asked first, and splits of classes are optional.
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


_read: set[type] = set()
"""Dataclasses that are being handed on to tyro's own rule."""


@registry.struct_rule
def _flowing(info: StructTypeInfo) -> StructConstructorSpec | None:
    """As tyro reads a dataclass, but for line breaks in the middle of a field's help, which it keeps."""
    if not dataclasses.is_dataclass(info.type) or info.type in _read:
        return None
    _read.add(info.type)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _read.remove(info.type)
    if not isinstance(spec, StructConstructorSpec):
        return None
    fields = (dataclasses.replace(field, helptext=partial(_paragraphs, field.helptext)) for field in spec.fields)
    return dataclasses.replace(spec, fields=tuple(fields))


def _paragraphs(told: str | Callable[[], str | None] | None) -> str | None:
    text = told() if callable(told) else told
    return text and "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


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


def task_parameters(words: Sequence[str], expected: str) -> dict[str, float | list[float]]:
    """Read ``name=number`` and ``name=number,number``, as --task takes them. Raises ValueError for anything else."""
    parameters: dict[str, float | list[float]] = {}
    for word in words:
        name, _, told = word.partition("=")
        try:
            numbers = [float(number) for number in told.split(",")]
        except ValueError:
            raise ValueError(f"--task {word}: expected {expected}") from None
        parameters[name] = numbers[0] if len(numbers) == 1 else numbers
    return parameters


def _message(box: str) -> str:
    """Return the message in tyro's box, without the frame, the title and the advice under it, and what it may mean.

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
    told = re.sub(r"^Error parsing (?!--)[\w.]+: ", "", told)  # a dataclass's own error needs no name before it
    return told + _suggestion(told, "\n".join(line for section in sections for line in section))


def _suggestion(told: str, box: str) -> str:
    """Of the options that tyro finds similar to an unknown one, name that whose last word is most like it."""
    unknown = re.match(r"Unrecognized options: (--[\w.-]+)", told)
    if not unknown:
        return ""
    similar = {option.rpartition(".")[2].removeprefix("--"): option for option in re.findall(r"^--[\w.-]+", box, re.M)}
    nearest = difflib.get_close_matches(unknown[1].rpartition(".")[2].removeprefix("--"), similar, n=1, cutoff=0.0)
    return f"; did you mean {similar[nearest[0]]}?" if nearest else ""
