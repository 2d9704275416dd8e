"""What the environment variables of torchrun, or a process group that is there, say of this process."""

import os

import torch.distributed as dist

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Return how many processes there are by the variables. Raises ValueError for some that cannot be used."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(f"WORLD_SIZE={size} without {', '.join(missing)}: start the ranks with torchrun, or set them")
    numbers = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    if wrong := [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]:
        raise ValueError(f"{wrong[0]}: expected a number, as torchrun sets it")
    if not int(numbers["RANK"]) < int(size):
        raise ValueError(f"RANK={numbers['RANK']} with WORLD_SIZE={size}: ranks are numbered from 0")
    return int(size)


def are_many() -> bool:
    """Return whether this process is to work with others: ``join`` would meet them."""
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size()) > 1
    return world_size() > 1


def restarts() -> int:
    """Return how often torchrun has started the ranks again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_first() -> bool:
    """Return whether this process is the one that writes and prints: rank 0, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_rank()) == 0
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
