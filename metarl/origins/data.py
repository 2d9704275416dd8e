"""The data that a run was trained on: other data of the same name must not take its place unnoticed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from metarl import runs
from metarl.fewshot import own_units
from metarl.types import AS_GIVEN, Family, Standard, Standardises, Units

DATA = "data"
"""The entry of a configuration that holds the fingerprint of the data; runs of earlier versions have none."""


UNITS = "units"
"""The entry that holds the standard units of the data."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A family that holds data, or reads them from files."""

    def fingerprint(self) -> str:
        """Return a digest of the data, the same wherever they lie and however the family's options use them."""


def recorded_data(family: Family) -> dict[str, str]:
    """Return what a configuration says of a family's data; nothing for families without any."""
    return {DATA: family.fingerprint()} if isinstance(family, Fingerprinted) else {}


def recorded_units(family: Family) -> dict[str, Any]:
    """Return what a configuration says of the units of a family's data; nothing for families without any."""
    units = own_units(family)
    return {UNITS: plain_units(units)} if isinstance(family, Standardises) or units != AS_GIVEN else {}


def plain_units(units: Units) -> dict[str, Any]:
    """Return units as plain data, which ``units_of`` reads under the name ``UNITS``."""
    return {name: _plain(standard) for name, standard in units._asdict().items()}


def _plain(standard: Standard | None) -> dict[str, Any] | None:
    if standard is None:
        return None
    return {"mean": standard.mean.tolist(), "std": standard.std.tolist(), "fills": standard.fills}


def units_of(record: Mapping[str, Any]) -> Units:
    """Return the units that a configuration or a model file tells of; runs of earlier versions had none."""
    told = record.get(UNITS) or {}
    return Units(*(_standard(told.get(name)) for name in Units._fields))


def _standard(told: Mapping[str, Any] | None) -> Standard | None:
    if told is None:
        return None
    mean, std = (torch.tensor(told[name], dtype=torch.float64) for name in ("mean", "std"))
    return Standard(mean, std, bool(told["fills"]))


def in_recorded_units(config: Mapping[str, Any], family: Family) -> Family:
    """Return a family in the units that a run was trained in, whatever its data are now, if it can be converted."""
    if not isinstance(family, Standardises):
        return family
    converted: Family = family.with_units(units_of(config))
    return converted


def check_units(config: Mapping[str, Any], family: Family) -> None:
    """Raise RunError where a family's tasks are in other units than those that a run was trained in."""
    if plain_units(own_units(family)) != plain_units(units_of(config)):
        raise runs.RunError(
            f"the tasks of {type(family).__name__} are in other units than those of the run: let the family that it "
            "wraps have normalise=False, or give it the methods units() and with_units(units)"
        )


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
