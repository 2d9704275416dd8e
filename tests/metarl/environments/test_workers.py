import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from support import worker_envs

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.environments import workers
from metarl.environments.lanes import LaneError, LaneOptions, Lanes, lane_seeds
from metarl.environments.worker import WorkerError
from metarl.environments.workers import WorkerLanes, usable_cpus
from metarl.safety import time_limit
from metarl.testing.batches import tensors
from metarl.types import Learner, Spec, policy_of

CPU = torch.device("cpu")
LENGTH = spaces.Dict(length=spaces.Discrete(9, start=2))
FAULT = spaces.Dict(fault=spaces.Discrete(6))
PATIENCE = 1800
"""Seconds after which something hangs: a busy machine is many times slower than a quiet one."""


def family(processes: int | None = 2, **options: Any) -> GymnasiumFamily:
    """A family whose environments go through cloudpickle as a closure."""
    defaults = {"env": worker_envs.Fragile, "parameters": FAULT, "apply": "attribute", "sampling": Sampling(horizon=6)}
    told: Any = {**defaults, **options}
    make = told.pop("env")
    return GymnasiumFamily(lambda **keywords: make(**keywords), **told, workers=processes)


@pytest.fixture
def lanes() -> Iterator[WorkerLanes]:
    """Five lanes, dealt out to two workers: 0 and 1, and 2 to 4."""
    made = family().environment(5, CPU)
    assert isinstance(made, WorkerLanes)
    yield made
    made.close()


def pids(lanes: Any) -> list[int]:
    return [worker.process.pid for worker in lanes._workers]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is killed for closing slowly, but where a test says so."""
    monkeypatch.setattr(workers, "GRACE", PATIENCE)


def wait_until_gone(found: list[int], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in found if alive(pid)]:
        assert time.monotonic() < deadline, f"{left} are left of {found}"
        time.sleep(0.02)


def told(lanes: Any) -> Iterator[Any]:
    """Yield all that lanes say in an eventful life."""
    lengths = np.array([2, 3, 4, 5, 9, 10, 7])
    yield lanes.reset(seed=11, options={"length": lengths})
    rng = np.random.default_rng(0)
    for _ in range(4):
        yield lanes.step(rng.normal(size=(7, 1)))
    mask = np.array([True, False, True, False, False, True, False])
    yield lanes.reset(seed=[5] * 7, options={"reset_mask": mask, "length": lengths[::-1]})
    for _ in range(4):
        yield lanes.step(torch.from_numpy(rng.normal(size=(7, 1))))
    yield lanes.reset()


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("apply", ["keyword", "attribute"])
def test_no_result_depends_on_the_workers(processes: int, apply: str) -> None:
    alone, shared = (family(count, parameters=LENGTH, apply=apply).environment(7, CPU) for count in (1, processes))
    assert isinstance(alone, Lanes) and len(pids(shared)) == processes
    assert shared.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert (shared.observation_space, shared.action_space) == (alone.observation_space, alone.action_space)
    for step, (found, expected) in enumerate(zip(told(shared), told(alone), strict=True)):
        assert found[-1].keys() == expected[-1].keys()
        for one, other in zip(
            [*found[:-1], *found[-1].values()], [*expected[:-1], *expected[-1].values()], strict=True
        ):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, f"step {step}")
    shared.close()


def test_draws_do_not_depend_on_the_workers() -> None:
    rollouts = []
    for processes in (1, 2):
        chosen = family(processes, parameters=LENGTH, sampling=Sampling(episodes=2, horizon=6))
        tasks = chosen.sample(3, "train", torch.Generator().manual_seed(0))
        indifferent = Learner(
            chosen.spec, 1, *[lambda *_: None] * 3, lambda state, seen: (0 * seen, state), None
        )  # mean 0, standard deviation 1
        rollouts.append(tasks.rollout(policy_of(indifferent, None), torch.Generator().manual_seed(1)))
        chosen.environment(6, CPU).close()
    for one, other in zip(*map(tensors, rollouts), strict=True):
        assert torch.equal(one, other)


def test_float64(float64: None) -> None:
    lanes = family().environment(4, CPU)
    observations, _ = lanes.reset(seed=0)
    start = np.random.Generator(np.random.PCG64(lane_seeds(0, 4)[3])).random(2)
    assert observations[3].tolist() == start.tolist()
    lanes.close()


def test_where_there_is_no_anonymous_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    lanes = family().environment(3, CPU)
    assert lanes.reset()[0].shape == (3, 2)
    assert lanes.step(np.zeros((3, 1)))[1].all()
    lanes.close()


def test_how_many_workers() -> None:
    assert isinstance(family(4).environment(1, CPU), Lanes)
    lanes = family(4).environment(3, CPU)
    assert [worker.lanes for worker in lanes._workers] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    lanes.close()
    lanes = family(None).environment(64, CPU)
    assert len(getattr(lanes, "_workers", [0])) == min(64, usable_cpus())
    lanes.close()
    with pytest.raises(ValueError, match="workers=0: expected at least 1, or None for one on each CPU"):
        family(0)
    with pytest.raises(ValueError, match="from one worker to one for each of the 2 lanes, not 3"):
        WorkerLanes(LaneOptions(worker_envs.Fragile, FAULT, "attribute", Spec((2,), 1, "continuous", 1), 2), workers=3)


def test_workers_are_small() -> None:
    lanes = family(env=worker_envs.Asked).environment(2, CPU)
    observations, _ = lanes.reset()
    lanes.close()
    has_torch, has_one_thread = observations.T.tolist()
    assert has_torch == [0, 0]
    assert has_one_thread == [1, 1]


def test_environments_that_only_this_process_has_registered() -> None:
    gymnasium.register("Fragile-v7", worker_envs.Fragile, max_episode_steps=2)
    try:
        lanes = GymnasiumFamily("Fragile-v7", FAULT, "attribute", workers=2).environment(2, CPU)
        lanes.reset()
        assert [lanes.step(np.zeros((2, 1)))[3].tolist() for _ in range(2)] == [[False] * 2, [True] * 2]
        lanes.close()
    finally:
        gymnasium.registry.pop("Fragile-v7")


def test_wrong_requests_are_refused(lanes: WorkerLanes) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded, match="before the first step"):
        lanes.step(np.zeros((5, 1)))
    with pytest.raises(ValueError, match=r"unknown options \['x'\]: expected some of \['fault', 'reset_mask'\]"):
        lanes.reset(options={"x": 1})
    with pytest.raises(ValueError, match=r"fault is int64 \(3,\) where int64 \(5,\) was expected"):
        lanes.reset(options={"fault": [1, 2, 3]})
    lanes.reset()
    with pytest.raises(ValueError, match=r"actions of shape \(4, 1\): expected finite numbers of \(5, 1\)"):
        lanes.step(np.zeros((4, 1)))
    assert lanes.step(np.zeros((5, 1)))[0].shape == (5, 2)


def broken(lanes: WorkerLanes, lane: int, fault: int) -> None:
    """Bring lanes to where the next step meets a fault in one of them."""
    faults = np.zeros(5, dtype=int)
    faults[lane] = fault
    lanes.reset(options={"fault": faults})
    lanes.step(np.zeros((5, 1)))


def test_a_broken_environment_is_named(lanes: WorkerLanes) -> None:
    before = pids(lanes)
    broken(lanes, 3, worker_envs.RAISES)
    with pytest.raises(
        LaneError, match=r"^lane 3, step 2: KeyError: 'no key' \(family.<lambda>, task \{'fault': 1\}\)$"
    ) as caught:
        lanes.step(np.zeros((5, 1)))
    assert caught.value.lanes == [3]
    assert isinstance(caught.value.__cause__, WorkerError)
    assert 'raise KeyError("no key")' in str(caught.value.__cause__)
    # The same workers serve the next task.
    lanes.reset(options={"fault": np.zeros(5, dtype=int)})
    for _ in range(3):
        lanes.step(np.zeros((5, 1)))
    assert pids(lanes) == before


def test_of_two_broken_environments_the_first_is_named(lanes: WorkerLanes) -> None:
    lanes.reset(options={"fault": [0, 1, 0, 0, 1]})
    lanes.step(np.zeros((5, 1)))
    with pytest.raises(LaneError, match="lane 1, step 2"):
        lanes.step(np.zeros((5, 1)))
    assert lanes.reset(options={"fault": [0] * 5})[0].shape == (5, 2)


@pytest.mark.parametrize(
    ("fault", "how"),
    [(worker_envs.CRASHES, "was ended by SIGSEGV"), (worker_envs.EXITS, "ended with exit code 3")],
)
def test_a_simulator_that_takes_its_process_along(lanes: WorkerLanes, fault: int, how: str) -> None:
    broken(lanes, 2, fault)
    with pytest.raises(LaneError, match=f"^the worker process of lanes 2 to 4 {how}$") as caught:
        lanes.step(np.zeros((5, 1)))
    assert caught.value.lanes == [2, 3, 4]
    wait_until_gone(pids(lanes), 0)
    with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="the workers were closed; make new lanes"):
        lanes.reset()


def drawn(chosen: GymnasiumFamily, seed: int = 0) -> Any:
    tasks = chosen.sample(3, "train", torch.Generator().manual_seed(0))
    indifferent = Learner(chosen.spec, 1, *[lambda *_: None] * 3, lambda state, seen: (0 * seen, state), None)
    return tasks.rollout(policy_of(indifferent, None), torch.Generator().manual_seed(seed))


def test_a_worker_that_somebody_killed_is_replaced_with_the_same_result() -> None:
    options: dict[str, Any] = {"parameters": LENGTH, "sampling": Sampling(episodes=2, horizon=4)}
    chosen, expected = family(**options), drawn(family(processes=1, **options))
    with chosen._pool.lent(6, CPU) as lanes:  # the next draw borrows the same
        pass
    os.kill(pids(lanes)[0], signal.SIGKILL)
    told = r"task 0, lane 0 .*step 0: .*lanes 0 to 2 was ended by SIGKILL.*memory runs out.* run again from their reset"
    with pytest.warns(UserWarning, match=told):
        found = drawn(chosen)
    wait_until_gone(pids(lanes), 0)
    for name, values in vars(expected).items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(values, getattr(found, name)), name


@pytest.mark.filterwarnings("ignore:an environment raised")
def test_workers_that_always_die_are_replaced_only_so_often(tmp_path: Path) -> None:
    made = tmp_path / "made"
    here = os.getpid()

    def make(fault: int = 0) -> gymnasium.Env:
        if os.getpid() != here:
            with made.open("a") as file:
                file.write("x")
        return worker_envs.Fragile(fault=fault)

    chosen = family(env=make, parameters=spaces.Dict(fault=spaces.Discrete(1, start=worker_envs.EXITS)))
    with pytest.raises(RolloutError, match=r"step 2: WorkerDied: .* ended with exit code 3"):
        drawn(chosen)
    assert len(made.read_text()) == 3 * 3 * chosen.sampling.episodes  # three tasks, three times


def test_a_hung_step_is_named(lanes: WorkerLanes) -> None:
    broken(lanes, 3, worker_envs.HANGS)
    with time_limit(1.0), pytest.raises(LaneError) as raised:
        lanes.step(np.zeros((5, 1)))
    told = r"lane 3: a step took longer than 1 s, the limit of --step-timeout \(family.*, task {'fault': .*4.*}\)"
    assert re.search(told, str(raised.value))
    assert raised.value.lanes == [3]
    assert lanes.closed
    wait_until_gone(pids(lanes), 60)


def test_an_environment_that_is_never_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.2)  # the second worker hangs, too
    here = os.getpid()

    def make(fault: int = 0) -> gymnasium.Env:
        if os.getpid() != here:
            worker_envs.hang()
        return worker_envs.Fragile(fault=fault)

    lanes = family(env=make).environment(4, CPU)
    with time_limit(1.0), pytest.raises(LaneError, match="lane 0: a reset took longer than 1 s"):
        lanes.reset()


def test_a_hung_step_in_this_process_is_named() -> None:
    chosen = family(processes=1, parameters=spaces.Dict(fault=spaces.Discrete(1, start=worker_envs.HANGS)))
    told = r"task 0, lane 0 .*step 2: LaneError: lane 0, step 2: TimeLimitError: a step took longer than 0.5 s"
    with time_limit(0.5), pytest.raises(RolloutError, match=told):
        drawn(chosen)


def test_an_environment_that_workers_cannot_import() -> None:
    here = os.getpid()

    def make(fault: int = 0) -> gymnasium.Env:
        return worker_envs.Fragile(fault=fault)

    class Missing:
        def __reduce__(self) -> Any:
            return _only_here, (here,)

        def __call__(self, **keywords: Any) -> gymnasium.Env:
            return make(**keywords)

    with pytest.raises(WorkerError, match="a worker process could not start: RuntimeError: not here"):
        family(env=Missing()).environment(2, CPU)


def _only_here(pid: int) -> None:
    if os.getpid() != pid:
        raise RuntimeError("not here")


def test_closing(lanes: WorkerLanes) -> None:
    found = pids(lanes)
    assert all(map(alive, found))
    lanes.close()
    wait_until_gone(found, 0)
    assert [worker.process.returncode for worker in lanes._workers] == [0, 0]
    lanes.close()


def test_workers_that_do_not_close_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.2)
    lanes = family(env=worker_envs.Unwilling).environment(2, CPU)
    lanes.reset()
    lanes.step(np.zeros((2, 1)))
    lanes.close()
    wait_until_gone(pids(lanes), 0)
    assert [worker.process.returncode for worker in lanes._workers] == [-signal.SIGKILL] * 2


def test_interrupted_while_waiting(lanes: WorkerLanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Ctrl-C of a training, or the first of a script: a worker may hang just then."""
    monkeypatch.setattr(workers, "GRACE", 0.2)
    broken(lanes, 0, worker_envs.INTERRUPTS)
    with pytest.raises(KeyboardInterrupt):
        lanes.step(np.zeros((5, 1)))
    assert lanes.closed
    wait_until_gone(pids(lanes), 0)


def test_forgotten_lanes_end_their_workers() -> None:
    lanes = family().environment(2, CPU)
    found = pids(lanes)
    del lanes
    gc.collect()
    wait_until_gone(found, 0)


SCRIPT = """
    import os, signal, sys, time
    import numpy as np
    from support import worker_envs
    from gymnasium import spaces
    from metarl.spec import Spec
    from metarl.environments.lanes import LaneOptions
    from metarl.environments.workers import WorkerLanes

    class Own(worker_envs.Fragile):
        pass  # as a user would write it: in the script, without a guard around what follows

    def make(fault):
        return Own(fault=fault)

    faults = spaces.Dict(fault=spaces.Discrete(6))
    lanes = WorkerLanes(LaneOptions(make, faults, "keyword", Spec((2,), 1, "continuous", 1), num_envs=4), workers=2)
    lanes.reset()
    lanes.step(np.zeros((4, 1)))
    print(*(worker.process.pid for worker in lanes._workers), flush=True)
"""


def started(end: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a script with workers in a process group of its own, and return it with their process ids."""
    source = textwrap.dedent(SCRIPT) + end
    script = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert script.stdout is not None
    return script, [int(pid) for pid in script.stdout.readline().split()]


def ended(script: subprocess.Popen[str], found: list[int]) -> str:
    assert len(found) == 2
    _, said = script.communicate(timeout=PATIENCE)
    wait_until_gone(found)
    return said


@pytest.mark.parametrize("end", ["", "del lanes"])
def test_a_script_that_ends_leaves_no_process(end: str) -> None:
    script, found = started(end)
    assert ended(script, found) == ""
    assert script.returncode == 0


def test_an_error_leaves_no_process() -> None:
    script, found = started("lanes.reset(options={'fault': [0, 0, 0, 1]})\nfor _ in '12': lanes.step(np.zeros((4, 1)))")
    said = ended(script, found)
    last = "lane 3, step 2: KeyError: 'no key' (make, task {'fault': 1})"
    assert said.splitlines()[-1] == f"metarl.environments.lanes.LaneError: {last}"
    assert script.returncode == 1


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_script_that_is_killed_leaves_no_process(sent: signal.Signals) -> None:
    script, found = started(f"time.sleep({worker_envs.LONG})")
    os.kill(script.pid, sent)
    ended(script, found)
    assert script.returncode == -sent


def test_ctrl_c_reaches_the_parent_only() -> None:
    script, found = started(
        f"try:\n print('waits', flush=True); time.sleep({worker_envs.LONG})\n"
        "except KeyboardInterrupt:\n lanes.step(np.zeros((4, 1))); print('goes on')"
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "waits\n"  # or the signal might come before it is caught
    os.killpg(script.pid, signal.SIGINT)
    for pid in found:
        os.kill(pid, signal.SIGINT)  # as a job scheduler may do
    said, _ = script.communicate(timeout=PATIENCE)
    assert said == "goes on\n"
    assert script.returncode == 0
    wait_until_gone(found)


def test_a_fork_that_ends_leaves_the_workers_alone() -> None:
    script, found = started(
        "pid = os.fork()\nif pid: os.waitpid(pid, 0); print(lanes.step(np.zeros((4, 1)))[1].shape)\n"
    )
    said, error = script.communicate(timeout=PATIENCE)
    assert (said, error) == ("(4,)\n", "")
    wait_until_gone(found)


@pytest.mark.slow
def test_no_orphan_is_left_where_a_step_hangs() -> None:
    script, found = started("lanes.reset(options={'fault': [4] * 4})\nfor _ in '12': lanes.step(np.zeros((4, 1)))")
    assert script.stdout is not None
    assert script.stdout.readline() == "hangs\n"
    script.kill()
    ended(script, found)


def test_ctrl_c_in_a_training(tmp_path: Path) -> None:
    """It stops after the iteration, with a checkpoint: collection goes on until then."""
    (tmp_path / "mine.py").write_text(
        "from support import worker_envs\n"
        "from gymnasium import spaces\n"
        "from metarl import GymnasiumFamily, Sampling\n"
        "parameters = spaces.Dict(length=spaces.Discrete(9, start=2))\n"
        "sampling = Sampling(episodes=2, horizon=5)\n"
        "tasks = GymnasiumFamily(worker_envs.Fragile, parameters, sampling=sampling, workers=2)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "metarl", "train", "maml", "mine:tasks", "--iterations", "100000"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    progress = tmp_path / "runs" / "maml-mine.tasks-0" / "progress.csv"
    deadline = time.monotonic() + PATIENCE
    while not progress.exists() or progress.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, said
    assert "the checkpoint is saved" in said
    assert (progress.parent / "checkpoint.pt").exists()
    wait_until_gone([int(pid) for pid in children])


def test_seeds_of_lanes() -> None:
    seeds = lane_seeds(7, 5000)
    assert seeds[:3] == [1372871774, 1832481693, 144607965]
    assert len(set(seeds)) == 5000
    assert min(seeds) >= 0 and max(seeds) < 2**31 - 1
    assert lane_seeds(7, 10) == seeds[:10]
    # Seeds in a row, which seed + lane would give nearly the same lanes.
    assert len({seed for start in range(100) for seed in lane_seeds(start, 800)}) >= 100 * 800 - 10
