"""Parse command lines into dataclasses with tyro. Errors take one line."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import tyro
from gymnasium.spaces import Space
from torch import Tensor
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from metarl import plugins, safety
from metarl.algorithms import CellChoice
from metarl.fewshot import Classes
from metarl.files import expanded
from metarl.networks import Architecture
from metarl.speed import Device, check_device
from metarl.training import Schedules

registry = ConstructorRegistry()
_LONG = 16
"""How many values a default has at most that the help shows."""


@registry.primitive_rule
def _architecture(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Architecture | CellChoice] | None:
    """Take an architecture or a recurrent cell by its name; functions are given as module:attribute."""
    if info.type not in (Architecture, CellChoice):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str) or callable(value),
        str_from_instance=lambda value: [str(value)],
    )


@registry.primitive_rule
def _device(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Device | None] | None:
    """Take a device by its name; whether it is there is told where it is used."""
    if info.type not in (Device, Device | None):
        return None

    def read(words: list[str]) -> Device | None:
        if words == ["None"] and info.type == Device | None:
            return None
        check_device(words[0])
        return words[0]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{auto,cpu,cuda,cuda:N}",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, str | None),
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
    """Show ``PATH`` in the help instead of tyro's ``{None}|PATH``. The word None is still accepted."""
    choices = get_args(info.type)
    if get_origin(info.type) not in (Union, types.UnionType) or len(choices) != 2 or type(None) not in choices:
        return None
    (value_type,) = (choice for choice in choices if choice is not type(None))
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(value_type, info.markers))
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


# This rule must come after the one for optional values: later rules are tried first, and splits of classes are
# optional.
@registry.primitive_rule
def _held(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Spaces, tensors and splits of classes cannot be set on the command line: they keep the family's values."""
    if not _is_held(info.type):
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


def _is_held(kind: Any) -> bool:
    plain_kind = get_origin(kind) or kind
    if kind == Classes | None or (isinstance(plain_kind, type) and issubclass(plain_kind, Space | Tensor)):
        return True
    return plain_kind in (Mapping, dict) and any(map(_is_held, get_args(kind)))


@registry.primitive_rule
def _schedules(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Take schedules as NAME=FROM..TO, in any number."""
    if info.type != Schedules:
        return None

    def read(words: list[str]) -> dict[str, str]:
        pairs = [word.partition("=") for word in words]
        if wrong := [name for name, mark, _ in pairs if not mark]:
            raise ValueError(f"{wrong[0]}: expected NAME=FROM..TO, such as meta-batch-size=5..40")
        return {name: text for name, _, text in pairs}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=FROM..TO ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={schedule}" for name, schedule in value.items()],
    )


_hidden: set[str] = set()
"""Names of options that the help leaves out, as nobody can give them."""
_read: set[type] = set()
"""Dataclasses that tyro's own rule is reading at the moment."""


@registry.struct_rule
def _flowing(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Read a dataclass as tyro does, but remove line breaks within paragraphs of a field's help."""
    # get_struct_spec below tries this rule again: returning None then leaves the work to tyro's own rule.
    if not dataclasses.is_dataclass(info.type) or info.type in _read:
        return None
    _read.add(info.type)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _read.remove(info.type)
    if not isinstance(spec, StructConstructorSpec):
        return None
    return dataclasses.replace(spec, fields=tuple(map(_shown, spec.fields)))


def _shown(field: StructFieldSpec) -> StructFieldSpec:
    """Return an option as the help shows it: data that it holds are left out there, and long lists are counted."""
    kind: Any = field.type
    if _is_held(kind):
        _hidden.add(field.name.replace("_", "-"))
        kind = Annotated[kind, tyro.conf.Suppress]
    if isinstance(field.default, tuple | list) and len(field.default) > _LONG:
        kind = Annotated[kind, tyro.conf.arg(help_behavior_hint=f"(default: {len(field.default)} values)")]
    if dataclasses.is_dataclass(field.default) and not _paragraphs(field.helptext):
        kind = Annotated[kind, tyro.conf.arg(help=_paragraphs(inspect.getdoc(field.default)))]  # above its options
    return dataclasses.replace(field, type=kind, helptext=partial(_paragraphs, field.helptext))


def _paragraphs(helptext: str | Callable[[], str | None] | None) -> str | None:
    text = helptext() if callable(helptext) else helptext
    return text and "\n\n".join(" ".join(plain(paragraph).split()) for paragraph in text.split("\n\n"))


def plain(text: str) -> str:
    """Return a docstring's text without the marks of code, which terminals do not render."""
    return safety.harmless(re.sub(r"``(.+?)``", r"\1", text, flags=re.DOTALL))


def parse(kind: Any, arguments: list[str], command: str, description: str, partial: bool = False) -> Any:
    """Parse a command line into a dataclass. With ``partial``, ignore unknown options.

    Raises ValueError, with a message of one line, for an invalid command line. --help exits.
    """
    errors = io.StringIO()
    keywords: dict[str, Any] = {"prog": f"metarl {command}", "description": plain(description), "registry": registry}
    try:
        with contextlib.redirect_stderr(errors):
            if partial:
                return tyro.cli(kind, args=arguments, return_unknown_args=True, **keywords)[0]
            found = tyro.cli(kind, args=arguments, **keywords)
    except ValueError as error:  # a dataclass's own, which early versions of tyro 1.0 do not tell as wrong options
        raise ValueError(f"{error}; 'metarl {command} --help' shows the options") from None
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_message(errors.getvalue())}; 'metarl {command} --help' shows the options") from None
    return plugins.checked_options(found)


def made_with(prefix: str, options: Sequence[str], command: str) -> Callable[[type], Any]:
    """Return a function that makes an object of a class by its defaults, and options without one by the command line.

    Those stand there after ``--PREFIX.``; the others are read later. The function raises PluginError where one is
    missing.
    """

    def make(kind: type) -> Any:
        if not (dataclasses.is_dataclass(kind) and any(map(_is_required, dataclasses.fields(kind)))):
            return kind()
        words = [word for word in options if word not in ("-h", "--help")]
        joined = dataclasses.make_dataclass("Required", [(prefix, kind)])
        try:
            return getattr(parse(joined, words, command, "", partial=True), prefix)
        except ValueError as error:
            raise plugins.PluginError(f"{kind.__qualname__} cannot be made by its defaults alone: {error}") from None

    return make


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is field.default_factory is dataclasses.MISSING


def task_parameters(words: Sequence[str], expected: str) -> dict[str, float | list[float]]:
    """Parse ``name=number`` and ``name=number,number``, the values of --task. Raises ValueError for anything else."""
    parameters: dict[str, float | list[float]] = {}
    for word in words:
        name, _, values = word.partition("=")
        try:
            numbers = [float(number) for number in values.split(",")]
        except ValueError:
            raise ValueError(f"--task {word}: expected {expected}") from None
        parameters[name] = numbers[0] if len(numbers) == 1 else numbers
    return parameters


def _message(box: str) -> str:
    """Return the message in tyro's box, without frame, title and advice, but with a suggestion for unknown options.

    In terminals that cannot draw the box, lines of hyphens separate title, message and advice.
    """
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))):
        if line.strip("─-"):
            sections[-1].append(line)
        elif line:
            sections.append([])
    framed = "╭" in box
    message = " ".join(sections[0] if framed or len(sections) == 1 else sections[1]) or box.strip()
    message = re.sub(r"^Error parsing (?!--)[\w.]+: ", "", message)  # a dataclass's own error needs no prefix
    return message + _suggestion(message, "\n".join(line for section in sections for line in section))


def _suggestion(message: str, box: str) -> str:
    """Suggest one of the options that tyro finds similar to an unknown one: that with the most similar last word."""
    unknown = re.match(r"Unrecognized options: (--[\w.-]+)", message)
    if not unknown:
        return ""
    if unknown[1].rpartition(".")[2] in _hidden:
        return f"; {unknown[1]}: this cannot be given on the command line; bind a family to a name, pass 'module:name'"
    similar = {option.rpartition(".")[2].removeprefix("--"): option for option in re.findall(r"^--[\w.-]+", box, re.M)}
    nearest = difflib.get_close_matches(unknown[1].rpartition(".")[2].removeprefix("--"), similar, n=1, cutoff=0.0)
    return f"; did you mean {similar[nearest[0]]}?" if nearest else ""
