"""The code that a run folder would import: installed plugins, or anything else."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from metarl import plugins
from metarl.safety.signing import SIGNATURE, is_signed, key_problem

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d].*", re.DOTALL)
"""``module:attribute``, or an environment's ``module:id``. ``cuda:0``, ``C:\\data`` and ``https://x`` are none."""


class UnknownCode(ValueError):
    """A run names code outside of the installed plugins, and was not trained here by this user."""


def check_code(where: object, record: Mapping[str, Any], groups: Mapping[str, plugins.Group], allowed: bool) -> None:
    """Raise UnknownCode if rebuilding a run would import what nobody has vouched for. Nothing is imported here.

    ``record`` is a configuration as it was read, ``groups`` says which of its parts are plugins of which group, and
    ``where`` names it in the message. With ``allowed``, the user vouches for everything.
    """
    if allowed:
        return
    named = [told for part, group in groups.items() for told in _outside(part, record.get(part), group)]
    if not named or is_signed(record):
        return
    raise UnknownCode(
        f"{where} was not trained here by you ({_why(record)}), and opening it would import and run "
        f"{', '.join(dict.fromkeys(named))}, which no installed plugin offers; if you trust whoever made it, allow "
        "that with --allow-code (in Python: allow_code=True)"
    )


def _why(record: Mapping[str, Any]) -> str:
    if SIGNATURE not in record:
        return "it has no signature"
    return key_problem() or "its signature is not by your key, or it has changed since"


def _outside(part: str, described: Any, group: plugins.Group) -> Iterator[str]:
    """Yield the code that one part names, outside of installed plugins."""
    if not isinstance(described, Mapping):
        return
    reference = described.get("reference")
    if isinstance(reference, str) and re.search(".:.", reference) and not _is_known(group, reference):
        yield f"{reference} ({part})"
    for name, value in _texts(described.get("options"), part):
        if _REFERENCE.fullmatch(value):
            yield f"{value} ({name})"


def _is_known(group: plugins.Group, reference: str) -> bool:
    """Return whether a reference is an installed plugin's, or nothing, which is told where it is looked for."""
    return plugins.home(group, reference) is not None or plugins.is_nowhere(group, reference)


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield every text in plain data, keys too, with its dotted name. The depth of records is limited when read."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield name, str(key)
            yield from _texts(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name)
