"""What a GPU is asked for: numbers in true float32, and copies that nobody waits for."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. Nothing waits for the copy to a GPU; what uses it there comes after it."""
    # CUDA takes up to some tens of kilobytes of ordinary memory along with the command to copy them, and so has no need
    # to wait for earlier work. On the way to main memory, not to wait would be to read what has not arrived yet.
    return tensor.to(device, non_blocking=device.type != "cpu")


class _Switch:
    """Switches a setting of the whole process: on for the first who needs it, in any thread, back after the last."""

    def __init__(self, on: Callable[[], Callable[[], None]]) -> None:
        self._on, self._lock, self._users = on, Lock(), 0
        self._back: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._back = self._on()
            self._users += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._back()


def float32(device: torch.device) -> AbstractContextManager[None]:
    """Let float32 be float32 on a GPU, whatever PyTorch is set to: its default is TF32 in convolutions.

    TF32 rounds what it multiplies to 10 bits. The setting is the whole process's while the context lasts, and as it was
    before when it ends. On the CPU nothing is done.
    """
    return _FLOAT32 if device.type == "cuda" else nullcontext()


def refuse_autocast() -> None:
    """Raise ValueError where PyTorch is told to round to half precision.

    Derivatives by hand, and the threads that groups of tasks run on, would follow it in some places and not in others.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise ValueError(
            "torch.autocast is on, which adaptation and outer updates do not follow: their numbers are the "
            "parameters' own; leave it out here (torch.autocast(..., enabled=False))"
        )


def without_cudnn(device: torch.device) -> AbstractContextManager[None]:
    """Let operations on a GPU go without cuDNN, whose recurrent layers cannot be differentiated twice."""
    return _WITHOUT_CUDNN if device.type == "cuda" else nullcontext()


def _without_tf32() -> Callable[[], None]:
    # PyTorch has two sets of settings, and raises where one is read that disagrees with the other: its own
    # torch.backends.cudnn.flags and its compiler read either. So both are switched, those that are deprecated first:
    # switching them switches the others too.
    convolutions, products = _readable(lambda: torch.backends.cudnn.allow_tf32), _readable(_products)
    operations = [(operation, operation.fp32_precision) for operation in _operations()]
    with warnings.catch_warnings(action="ignore"):
        if convolutions:
            torch.backends.cudnn.allow_tf32 = False
        if products in ("high", "medium"):
            torch.set_float32_matmul_precision("highest")
    for operation, _ in operations:
        if operation.fp32_precision == "tf32":
            operation.fp32_precision = "ieee"

    def back() -> None:
        with warnings.catch_warnings(action="ignore"):
            if convolutions:
                torch.backends.cudnn.allow_tf32 = True
            if products in ("high", "medium"):
                torch.set_float32_matmul_precision(products)
        for operation, before in operations:
            if operation.fp32_precision != before:
                operation.fp32_precision = before

    return back


def _operations() -> list[Any]:
    """Return what has a precision of its own; nothing before PyTorch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul]


def _products() -> str:
    precision: str = torch.get_float32_matmul_precision()
    return precision


def _readable(setting: Callable[[], Any]) -> Any:
    """Return a deprecated setting; None where the new ones disagree with it, which then hold."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return setting()
    except RuntimeError:
        return None


def _disabled_cudnn() -> Callable[[], None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False

    def back() -> None:
        torch.backends.cudnn.enabled = before

    return back


_FLOAT32, _WITHOUT_CUDNN = _Switch(_without_tf32), _Switch(_disabled_cudnn)


Device = Literal["auto", "cpu", "cuda"]


def resolve_device(name: Device) -> torch.device:
    """Return the device to use. Raises ValueError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
