"""Small training runs, alone or in several processes that torch.distributed joins; what they end with, as bytes."""

import dataclasses
import errno
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from gymnasium import spaces

from metarl.algorithms import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.control import GymnasiumFamily, Sampling
from metarl.networks import Network
from metarl.numerics import flatten, unflatten
from metarl.outer import SGD, TRPO, Adam, ProMP
from metarl.runs import claim
from metarl.testing import small_family
from metarl.training import Settings
from metarl.training.start import resume, train
from metarl.types import Buffers, Experience, Learner, Params, Spec, Update, rollout_of
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahDirection
from metarl_plugins.sinusoid import Sinusoid

NET = Network(hidden=(8,))
SHORT = Sampling(episodes=2, horizon=6)
POINT = PointNavigation(sampling=SHORT)


def settings(**options: Any) -> Settings:
    return Settings(**({"iterations": 3, "meta_batch_size": 3, "device": "cpu", "log_every": 1} | options))


@dataclass(frozen=True)
class Alone:
    """An outer update that forgets the tasks of other ranks."""

    def init(self, params: Any) -> dict[str, Any]:
        return {}

    def update(self, learner: Any, params: Any, state: Any, experience: Any) -> Update:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            loss = learner.meta_loss(leaves, experience)[0].mean()
            gradient = flatten(torch.autograd.grad(loss, list(leaves.values())))
        return Update(unflatten(flatten(params.values()) - 0.1 * gradient, params), {}, {})


@dataclass(frozen=True)
class Late(Adam):
    """Adam that does something else on rank 1, in the middle of the second update."""

    harm: str = "raise"

    def update(self, learner: Any, params: Any, state: Any, experience: Any) -> Update:
        if int(state["count"]) == 1 and second():
            if self.harm == "raise":
                raise KeyError("a plugin")
            if self.harm == "hang":
                store().wait(["others have given up"], timedelta(seconds=120))
            if self.harm == "stop":
                signal.raise_signal(signal.SIGTERM)
        return super().update(learner, params, state, experience)


@dataclass(frozen=True)
class Keeping:
    """MAML that keeps the returns of the last meta-batch: a buffer that needs the episodes of all ranks."""

    def build(self, spec: Spec) -> Learner:
        learner = MAML(network=NET).build(spec)

        def own(params: Params) -> Params:
            return {name: value for name, value in params.items() if name != "returns"}

        def move(held: Params, experience: Experience) -> Params:
            return {"returns": rollout_of(experience.query).rewards.sum((1, 2))}

        return learner._replace(
            begin=lambda params, descriptors: learner.begin(own(params), descriptors),
            meta_loss=lambda params, experience: learner.meta_loss(own(params), experience),
            buffers=Buffers(lambda: {"returns": torch.zeros(3)}, move),
        )


def store() -> Any:
    return dist.distributed_c10d._get_default_store()


def second() -> bool:
    return dist.is_initialized() and dist.get_rank() == 1


class Raising(PointNavigation):
    """Tasks that cannot be sampled on rank 1 from the second iteration on."""

    def sample(self, num_tasks: int, split: Any, generator: Any) -> Any:
        if num_tasks > 1 and second():
            raise OSError("the simulator of this machine is gone")
        return super().sample(num_tasks, split, generator)


class Spoilt(Sinusoid):
    """Examples of which those of the last task, another rank's than the first, are not finite."""

    def sample(self, num_tasks: int, split: Any, generator: Any) -> Any:
        tasks = super().sample(num_tasks, split, generator)
        if num_tasks > 1:
            tasks.parameters["amplitude"][-1] = torch.nan
        return tasks


KEPT = (
    "sinusoid",
    "sinusoid:full",
    "sinusoid:busy",
    "sinusoid:unseen",
    "sinusoid:finished",
    "navigation:resumed",
    "stopped",
)
"""Runs with a folder."""
NAMED: dict[str, tuple[Any, ...]] = {
    "navigation": (MAML(network=NET), POINT, TRPO(), settings()),
    "normalised": (MAML(network=NET, normalise_observations=True), POINT, TRPO(), settings()),
    "keeping": (Keeping(), POINT, TRPO(), settings()),
    "cheetah": (MAML(network=NET), HalfCheetahDirection(sampling=SHORT), TRPO(), settings(iterations=2)),
    "gymnasium": (
        MAML(network=NET),
        GymnasiumFamily("CartPole-v1", spaces.Dict(force_mag=spaces.Box(5.0, 15.0)), apply="attribute", sampling=SHORT),
        Adam(),
        settings(iterations=2),
    ),
    "sinusoid": (MAML(network=NET), Sinusoid(), Adam(chunks=3), settings(validate_every=2, validation_tasks=5)),
    "five": (MAML(network=NET), Sinusoid(), Adam(), settings(meta_batch_size=5)),
    "promp": (MAML(network=NET), POINT, ProMP(epochs=2, inner_kl_adaptive=True), settings()),
    "rl2": (RL2(hidden=8), POINT, Adam(epochs=2), settings()),
    "reptile": (Reptile(steps=2, network=NET), Sinusoid(), SGD(), settings()),
    "few-shot": (MAML(network=NET), small_family("classification"), Adam(), settings()),
    "late": (MAML(network=NET), POINT, Late(), settings()),
    "hanging": (MAML(network=NET), Sinusoid(), Late(harm="hang"), settings(rank_timeout=10.0)),
    "stopped": (MAML(network=NET), Sinusoid(), Late(harm="stop"), settings()),
    "nan": (MAML(network=NET), Spoilt(), Adam(), settings(iterations=2)),
    "raising": (MAML(network=NET), Raising(sampling=SHORT), Adam(), settings()),
    "drifting": (MAML(network=NET), Sinusoid(), Alone(), settings()),
    "crowded": (MAML(network=NET), POINT, TRPO(), settings(meta_batch_size=1)),
    "pcgrad": (MultiTask(network=NET, condition="none", weighting="pcgrad"), Sinusoid(), Adam(), settings()),
}


@contextmanager
def _full(out: Path) -> Iterator[None]:
    """Let the disk of rank 0 be full."""
    full = OSError(errno.ENOSPC, f"could not write {out}: No space left on device")
    with nullcontext() if second() else mock.patch("metarl.runs.save_checkpoint", side_effect=full):
        yield


@contextmanager
def _busy(out: Path) -> Iterator[None]:
    """Let another job, of rank 1's process, train in the folder."""
    out.mkdir(exist_ok=True)
    held = claim(out, "training") if second() else None
    dist.barrier()
    yield
    if held is not None:
        held.release()


@contextmanager
def _versions(out: Path | None) -> Iterator[None]:
    """Let the ranks have another version of a package."""
    with mock.patch("metarl.runs.versions", lambda: {"torch": f"2.{dist.get_rank()}"}):
        yield


CHANGES: dict[str, Any] = {"full": _full, "busy": _busy, "versions": _versions}


def outcome(name: str, folder: Path | None = None) -> Any:
    """Train, and return the parameters and rows of a run, or the error that ended it."""
    out = folder / name.replace(":", "-") if folder is not None and name in KEPT else None
    name, _, change = name.partition(":")
    algorithm, family, outer, chosen = NAMED[name]
    if change == "exact":
        chosen = dataclasses.replace(chosen, exact_sums=True)
    if change == "five":
        chosen = dataclasses.replace(chosen, meta_batch_size=5)
    if change == "options" and second():
        chosen = dataclasses.replace(chosen, seed=1)
    try:
        with CHANGES[change](out) if change in CHANGES else nullcontext():
            found = train(algorithm, family, outer, chosen, out=out)
        if change in ("resumed", "unseen", "finished"):
            assert out is not None
            place = out / "elsewhere" if change == "unseen" and second() else out
            found = resume(place, iterations=None if change == "finished" else 5)
    except Exception as error:
        if name == "hanging" and not second():
            store().set("others have given up", "")
        return f"{type(error).__name__}: {error}"
    rows = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in found.rows]
    return flatten(value.double() for value in (*found.params.values(), *found.buffers.values())), rows


def _rank(rank: int, count: int, names: Sequence[str], folder: Path, variables: dict[str, str] | None) -> None:
    torch.set_num_threads(1)
    if variables is None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    else:
        os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    found = {name: outcome(name, folder) for name in names}
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def in_ranks(count: int, names: Sequence[str], folder: Path, by_variables: bool = False) -> list[dict[str, Any]]:
    """Train runs one after another in ``count`` processes, and return the outcomes by name of each."""
    variables = None
    if by_variables:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        variables = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    start: Callable[..., Any] = get_context("spawn").Process
    processes = [start(target=_rank, args=(rank, count, names, folder, variables)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(count)]
