"""Signatures of records: HMAC-SHA256 (RFC 2104) by a key of the user's, which never lies in a run folder.

The key is made when it is first needed. It tells what was written by this user, on this machine or wherever the key
was copied to. Where no key can be kept, records have no signature.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIGNATURE = "signature"
"""The entry of a record that holds its signature."""
_BYTES = 32
_PURPOSE = b"metarl record\0"


def key_path() -> Path:
    """Return where the key is kept: METARL_KEY, else ``metarl/key`` in XDG_STATE_HOME, else in ``~/.local/state``.

    Raises OSError where there is no home folder.
    """
    told, state = os.environ.get("METARL_KEY"), os.environ.get("XDG_STATE_HOME")
    try:
        return Path(told).expanduser() if told else Path(state or "~/.local/state").expanduser() / "metarl" / "key"
    except RuntimeError as error:
        raise OSError(f"there is no home folder to keep a key in ({error})") from error


def signed(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its signature, or without one where no key can be kept."""
    plain = {name: value for name, value in contents.items() if name != SIGNATURE}
    try:
        key = _read() or _made()
    except (OSError, ValueError):
        return plain
    return {**plain, SIGNATURE: _of(plain, key)}


def is_signed(contents: Mapping[str, Any]) -> bool:
    """Return whether a record has a signature by this user's key, and has not changed since."""
    plain, found = dict(contents), contents.get(SIGNATURE)
    plain.pop(SIGNATURE, None)
    try:
        key = _read()
    except (OSError, ValueError):
        return False
    return key is not None and isinstance(found, str) and hmac.compare_digest(found.encode(), _of(plain, key).encode())


def key_problem() -> str | None:
    """Return why there is no key to check signatures with; None if there is one."""
    try:
        return None if _read() is not None else f"there is no key in {key_path()}"
    except (OSError, ValueError) as error:
        return str(error)


def _of(plain: Mapping[str, Any], key: bytes) -> str:
    read_back = json.loads(json.dumps(plain))  # as it will be read: tuples become lists, and so on
    return hmac.new(key, _PURPOSE + json.dumps(read_back, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _read() -> bytes | None:
    """Return the key; None if there is none yet. Raises OSError or ValueError where it must not be used."""
    path = key_path()
    try:
        with path.open("rb") as file:
            found, text = os.fstat(file.fileno()), file.read(4 * _BYTES)
    except FileNotFoundError:
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        raise ValueError(f"the key {path} can be read by others: make it yours alone (chmod 600), or remove it")
    key = bytes.fromhex(text.decode("ascii"))
    if len(key) != _BYTES:
        raise ValueError(f"the key {path} is damaged: remove it, and a new one is made")
    return key


def _made() -> bytes:
    """Make a key, mode 0600. Of several processes that make one at once, the first one's is everybody's."""
    path = key_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_hex(_BYTES).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was first
        except OSError:  # this file system has no hard links
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    key = _read()
    if key is None:
        raise OSError(f"the key {path} could not be kept")
    return key
