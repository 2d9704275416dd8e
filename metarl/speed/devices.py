"""Device settings: the choice of device, true float32 on a GPU, and copies that do not block."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A copy to a GPU does not block; later work on the GPU runs after it."""
    # CUDA takes up to some tens of kilobytes of pageable memory along with the copy command, so it need not wait for
    # earlier work. A copy to main memory must block: without waiting, one would read data that has not arrived yet.
    return tensor.to(device, non_blocking=device.type != "cpu")


LONG = 100
"""Iterations from which cuDNN's search for the fastest convolutions pays off."""


class _Switch:
    """Changes a setting of the whole process while any thread needs it: the first user sets, the last restores it."""

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
    """Use true float32 on a GPU, whatever PyTorch's settings. By default, PyTorch uses TF32 in convolutions.

    TF32 rounds factors to 10 bits of mantissa. The setting applies to the whole process while the context lasts, and is
    restored at its end. On the CPU this does nothing.
    """
    return _FLOAT32 if device.type == "cuda" else nullcontext()


@contextmanager
def usual_modes() -> Iterator[None]:
    """Undo what may be set around a call: no gradients, inference mode, a default device that is not the CPU.

    Also a decorator. It costs a few microseconds, or more where there is such a default device.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu") if elsewhere else nullcontext():
        yield


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
    """Disable cuDNN on a GPU, because its recurrent layers cannot be differentiated twice."""
    return _WITHOUT_CUDNN if device.type == "cuda" else nullcontext()


def fastest_convolutions(device: torch.device, iterations: int) -> AbstractContextManager[None]:
    """Let cuDNN try its algorithms once for each shape and keep the fastest, in long work with few shapes on a GPU.

    Trying takes seconds, so nothing is tried for less than 100 iterations, as in tests; nor where PyTorch is told to be
    deterministic, which the choice is not.
    """
    deterministic = torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    return _FASTEST if device.type == "cuda" and iterations >= LONG and not deterministic else nullcontext()


def _without_tf32() -> Callable[[], None]:
    # PyTorch has two sets of settings, and raises when a setting is read that disagrees with the other set. Its own
    # torch.backends.cudnn.flags and its compiler read both. So both are set, the deprecated ones first: setting them
    # changes the others too.
    convolutions = _readable(lambda: torch.backends.cudnn.allow_tf32)
    products = _readable(_products)
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
    """Return the kinds of operations with a precision setting of their own; none before PyTorch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul]


def _products() -> str:
    precision: str = torch.get_float32_matmul_precision()
    return precision


def _readable(setting: Callable[[], Any]) -> Any:
    """Return a deprecated setting, or None if the new settings disagree with it: then the new ones hold."""
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


def _searching() -> Callable[[], None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True

    def back() -> None:
        torch.backends.cudnn.benchmark = before

    return back


_FLOAT32, _WITHOUT_CUDNN = _Switch(_without_tf32), _Switch(_disabled_cudnn)
_FASTEST = _Switch(_searching)


Device = Literal["auto", "cpu", "cuda"] | str  # which are told apart in the help
"""auto, cpu, cuda, or one CUDA device of several: cuda:0, cuda:1, ..."""
DEVICES = "auto, cpu, cuda or cuda:N"


def check_device(name: Device) -> None:
    """Raise ValueError for what is no device's name."""
    if not (isinstance(name, str) and re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]*))?", name)):
        raise ValueError(f"device={name!r}: expected {DEVICES}, such as cuda:0")


def resolve_device(name: Device) -> torch.device:
    """Return the device to use; "auto" is cuda where there is one. Raises ValueError for one that is not there.

    Of several CUDA devices, "auto" and "cuda" are that of the process's LOCAL_RANK, as torchrun sets it.
    """
    check_device(name)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise ValueError(f"device {name} was requested, but torch finds no CUDA device; use --device cpu or auto")
    device = torch.device(_of_this_rank(there) if name in ("auto", "cuda") else name)
    if device.index is not None and device.index >= there:
        found = "only cuda:0" if there == 1 else f"only cuda:0 to cuda:{there - 1}"
        raise ValueError(f"device {name} was requested, but torch finds {found}; use one of them, or --device cpu")
    return device


def _of_this_rank(there: int) -> str:
    """Return the name of the CUDA device of this process, one of several on this machine."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or there == 1:  # a scheduler may show each process its own device only
        return "cuda"
    if not rank.isdecimal():
        raise ValueError(
            f"LOCAL_RANK={rank!r}: expected the number of this process on this machine, as torchrun sets it"
        )
    return f"cuda:{int(rank)}"
