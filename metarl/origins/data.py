"""The data that a run was trained on: other data of the same name must not take its place unnoticed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from metarl import runs
from metarl.types import Family

DATA = "data"
"""The entry of a configuration that holds the fingerprint of the data; runs of earlier versions have none."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A family that holds data, or reads them from files."""

    def fingerprint(self) -> str:
        """Return a digest of the data, the same wherever they lie and however the family's options use them."""


def recorded_data(family: Family) -> dict[str, str]:
    """Return what a configuration says of a family's data; nothing for families without any."""
    return {DATA: family.fingerprint()} if isinstance(family, Fingerprinted) else {}


def check_data(config: Mapping[str, Any], family: Family, folder: Path) -> None:
    """Raise RunError where a family now holds other data than the run in a folder was trained on."""
    if DATA in config and isinstance(family, Fingerprinted) and family.fingerprint() != config[DATA]:
        root = getattr(family, "root", None)
        told = f"{folder} was trained on other data than there are now"
        if root is None:
            raise runs.RunError(f"{told}: does the family hold the same numbers in every process? Put those back")
        raise runs.RunError(
            f"{told} in {root}: put those back, or train anew; to score the run on other data, name their folder: "
            "metarl evaluate --tasks.root FOLDER"
        )
