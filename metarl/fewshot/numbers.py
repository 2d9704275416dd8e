"""Tensors of a user's as the numbers that a network reads: what is scaled, and what the cast to floats would lose."""

import hashlib
import warnings

import torch
from torch import Tensor

BYTE = 255.0
"""White, in images of uint8."""
DARK = 32
"""Images of uint8 that hold nothing brighter may not be scaled by 255."""
LOOKED_AT = 2**21
"""How many numbers are compared at most, to find out whether a cast makes distinct ones equal."""

HASHED = 2**26
"""Bytes of a tensor that tell it apart from others: of a larger one, evenly spaced items are taken."""


def fingerprint(*tensors: Tensor) -> str:
    """Return a digest of what tensors ``[item, ...]`` hold: equal for equal data, on any machine."""
    told = hashlib.sha256()
    for values in tensors:
        every = max(1, values.numel() * values.element_size() // HASHED)
        some = values.detach()[::every].cpu().contiguous()
        told.update(f"{values.dtype} {tuple(values.shape)}".encode())
        told.update(some.reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()


def numbers(values: Tensor, scale: float | None = None) -> Tensor:
    """Return values in torch's default dtype, divided by ``scale``: by default 255 for uint8, and 1 for others."""
    converted = values.to(torch.get_default_dtype())
    divisor = scale if scale is not None else BYTE if values.dtype == torch.uint8 else 1.0
    if divisor == 1:
        return converted
    return converted / divisor if converted is values else converted.div_(divisor)  # a copy is nobody else's


def image_scale(inputs: Tensor, told: bool = True) -> float:
    """Return what inputs ``[item, *shape]`` are divided by where nobody says, and say so where it is not plain.

    Only images of uint8, which have two axes at least, are scaled, and only if they hold more than 0 and 1.
    """
    if inputs.dtype != torch.uint8:
        return 1.0
    brightest = int(inputs.max()) if inputs.ndim > 2 and inputs.numel() else 0
    scale = 1.0 if inputs.ndim < 3 or brightest == 1 else BYTE
    if told and (inputs.ndim < 3 or 0 < brightest < DARK):
        warnings.warn(_word(tuple(inputs.shape[1:]), brightest), stacklevel=4)
    return scale


def _word(shape: tuple[int, ...], brightest: int) -> str:
    if len(shape) < 2:
        return f"inputs of uint8 {shape} are no images and stay as they are; scale=255 divides"
    if brightest == 1:
        return "images of uint8 that hold 0 and 1 stay as they are; scale=1 says so"
    told = f"images of uint8 are divided by 255, and none is brighter than {brightest}"
    return f"{told}: if that is white, give scale={brightest}"


def check_numbers(values: Tensor, what: str) -> None:
    """Raise ValueError for values ``[item, *shape]`` that are not finite, also when cast to torch's default dtype.

    A warning tells of distinct values that the cast makes equal, such as timestamps.
    """
    if values.is_complex():
        raise ValueError(f"{what} are {values.dtype}: expected real numbers")
    if values.is_floating_point() and not values.isfinite().all():
        raise ValueError(f"{what} hold numbers that are not finite")
    dtype = torch.get_default_dtype()
    if values.numel() == 0 or _exact(values.dtype, dtype):
        return
    ends = torch.stack(torch.aminmax(values.long() if values.dtype in _UNSIGNED else values))
    if not ends.to(dtype).isfinite().all():
        raise ValueError(f"{what} reach from {ends[0]:g} to {ends[1]:g}, which {dtype} cannot hold: scale them")
    if values.is_floating_point() or ends.abs().max() > 2 / torch.finfo(dtype).eps:
        _warn_of_equal(values, what, dtype)


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def _exact(dtype: torch.dtype, default: torch.dtype) -> bool:
    """Whether every number of a dtype is one of the default dtype too."""
    if dtype.is_floating_point:
        return torch.finfo(dtype).bits <= torch.finfo(default).bits
    return dtype == torch.bool or torch.iinfo(dtype).max <= 2 / torch.finfo(default).eps


def _warn_of_equal(values: Tensor, what: str, dtype: torch.dtype) -> None:
    columns = values.reshape(len(values), -1)
    columns = columns[: max(2, LOOKED_AT // columns.shape[1]), :LOOKED_AT].cpu()
    if columns.dtype in _UNSIGNED:
        columns = columns.long()
    middle = columns.median(0).values
    exact, cast, shifted = (_distinct(one) for one in (columns, columns.to(dtype), (columns - middle).to(dtype)))
    # Chance makes some of many random numbers equal, whatever is subtracted.
    helped = (shifted - cast > exact // 100).nonzero().flatten().tolist()
    if helped:
        worst = max(helped, key=lambda column: int(shifted[column] - cast[column]))
        told = f"{int(exact[worst])} distinct values of {what}, column {worst}, become {int(cast[worst])} in {dtype}"
        more = f" ({len(helped)} columns are so)" if len(helped) > 1 else ""
        warnings.warn(f"{told}{more}: subtract {middle[worst].item():.17g} first", stacklevel=5)


def _distinct(columns: Tensor) -> Tensor:
    """Count the distinct numbers of each column."""
    return (columns.sort(0).values.diff(dim=0) != 0).sum(0) + 1
