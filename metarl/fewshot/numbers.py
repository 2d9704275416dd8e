"""Convert a user's tensors to network inputs: scale images, and check what the cast to floats would lose."""

import hashlib
import warnings

import torch
from torch import Tensor

BYTE = 255.0
"""White in images of uint8."""
DARK = 32
"""If no pixel of uint8 images is brighter, a warning asks whether 255 is white."""
COMPARED = 2**21
"""Most numbers that are compared to find out whether a cast makes distinct ones equal."""

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
    """Return values in torch's default dtype, divided by ``scale``: by default 255 for uint8, else 1."""
    converted = values.to(torch.get_default_dtype())
    divisor = scale if scale is not None else BYTE if values.dtype == torch.uint8 else 1.0
    if divisor == 1:
        return converted
    # In place only in a copy: ``to`` returns the user's own tensor if the dtype is right already.
    return converted / divisor if converted is values else converted.div_(divisor)


def image_scale(inputs: Tensor, warn: bool = True) -> float:
    """Return the default divisor of inputs ``[item, *shape]``. With ``warn``, warn if it is doubtful.

    Only images of uint8 are scaled: inputs with at least two axes, and values above 1.
    """
    if inputs.dtype != torch.uint8:
        return 1.0
    brightest = int(inputs.max()) if inputs.ndim > 2 and inputs.numel() else 0
    scale = 1.0 if inputs.ndim < 3 or brightest == 1 else BYTE
    if warn and (inputs.ndim < 3 or 0 < brightest < DARK):
        warnings.warn(_doubt(tuple(inputs.shape[1:]), brightest), stacklevel=4)
    return scale


def _doubt(shape: tuple[int, ...], brightest: int) -> str:
    if len(shape) < 2:
        return f"inputs of uint8 and shape {shape} are not images and are not scaled; scale=255 would divide them"
    if brightest == 1:
        return "images of uint8 with values 0 and 1 are not scaled; scale=1 silences this warning"
    return (
        f"images of uint8 are divided by 255, but no pixel exceeds {brightest}: if that is white, set scale={brightest}"
    )


def check_numbers(values: Tensor, what: str) -> None:
    """Raise ValueError for values ``[item, *shape]`` that are not finite, before or after the cast to torch's default.

    Warn if the cast makes distinct values equal, as it does with timestamps.
    """
    if values.is_complex():
        raise ValueError(f"{what} are {values.dtype}: expected real numbers")
    if values.is_floating_point() and not values.isfinite().all():
        raise ValueError(f"{what} contain numbers that are not finite")
    dtype = torch.get_default_dtype()
    if values.numel() == 0 or _exact(values.dtype, dtype):
        return
    ends = torch.stack(torch.aminmax(values.long() if values.dtype in _UNSIGNED else values))
    if not ends.to(dtype).isfinite().all():
        raise ValueError(f"{what} range from {ends[0]:g} to {ends[1]:g}, which {dtype} cannot represent: scale them")
    # A float with p bits of precision represents all integers up to 2^p = 2 / eps.
    if values.is_floating_point() or ends.abs().max() > 2 / torch.finfo(dtype).eps:
        _warn_of_equal(values, what, dtype)


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def _exact(dtype: torch.dtype, default: torch.dtype) -> bool:
    """Return whether the default dtype represents every number of a dtype."""
    if dtype.is_floating_point:
        return torch.finfo(dtype).bits <= torch.finfo(default).bits
    return dtype == torch.bool or torch.iinfo(dtype).max <= 2 / torch.finfo(default).eps


def _warn_of_equal(values: Tensor, what: str, dtype: torch.dtype) -> None:
    columns = values.reshape(len(values), -1)
    columns = columns[: max(2, COMPARED // columns.shape[1]), :COMPARED].cpu()
    if columns.dtype in _UNSIGNED:
        columns = columns.long()
    middle = columns.median(0).values
    exact, cast, shifted = (_distinct(one) for one in (columns, columns.to(dtype), (columns - middle).to(dtype)))
    # More than 1 %: some of many random numbers become equal by chance, whatever is subtracted.
    helped = (shifted - cast > exact // 100).nonzero().flatten().tolist()
    if helped:
        worst = max(helped, key=lambda column: int(shifted[column] - cast[column]))
        loss = f"{int(exact[worst])} distinct values of {what}, column {worst}, become {int(cast[worst])} in {dtype}"
        others = f" ({len(helped)} columns in all)" if len(helped) > 1 else ""
        warnings.warn(f"{loss}{others}: subtract {middle[worst].item():.17g} first", stacklevel=5)


def _distinct(columns: Tensor) -> Tensor:
    """Count the distinct numbers of each column."""
    return (columns.sort(0).values.diff(dim=0) != 0).sum(0) + 1
