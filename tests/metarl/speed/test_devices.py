import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import evaluation
from metarl.algorithms.maml import MAML
from metarl.cli import main
from metarl.control import rollouts
from metarl.control.sampling import Sampling
from metarl.evaluation import adaptation, scores
from metarl.sb3 import policies
from metarl.speed.devices import fastest_convolutions, float32, resolve_device, send, without_cudnn
from metarl.training import loop
from metarl.training.settings import Settings
from metarl.training.start import recorded, train
from metarl.types import Learner
from metarl_envs.bandit import Bandit
from metarl_plugins.sinusoid import Sinusoid

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def settings() -> dict[str, Any]:
    """All that decides how float32 is computed; None where PyTorch refuses to tell."""
    backends = torch.backends
    asked = {
        "convolutions": lambda: backends.cudnn.conv.fp32_precision,
        "recurrent": lambda: backends.cudnn.rnn.fp32_precision,
        "products": lambda: backends.cuda.matmul.fp32_precision,
        "products on the CPU": lambda: backends.mkldnn.matmul.fp32_precision,
        "all of cuDNN": lambda: backends.cudnn.fp32_precision,
        "all": lambda: backends.fp32_precision,
        "deprecated convolutions": lambda: backends.cudnn.allow_tf32,
        "deprecated products": lambda: backends.cuda.matmul.allow_tf32,
        "deprecated precision": torch.get_float32_matmul_precision,
        "cudnn": lambda: backends.cudnn.enabled,
    }
    return {name: told(function) for name, function in asked.items()}


def told(function: Any) -> Any:
    try:
        return function()
    except RuntimeError:
        return None


def assign(setting: str, value: Any) -> None:
    *path, name = setting.split(".")
    target = torch.backends
    for part in path:
        target = getattr(target, part)
    setattr(target, name, value)


@pytest.fixture(autouse=True)
def as_before():
    """PyTorch's defaults, set again."""
    yield
    for setting in ("fp32_precision", "cuda.matmul.fp32_precision", "mkldnn.matmul.fp32_precision"):
        assign(setting, "none")
    torch.set_float32_matmul_precision("highest")
    for setting in ("cuda.matmul.fp32_precision", "mkldnn.matmul.fp32_precision"):
        assign(setting, "none")
    assign("cudnn.allow_tf32", True)
    assign("cudnn.enabled", True)


USERS = [
    {},
    {"cudnn.allow_tf32": False},
    {"cuda.matmul.allow_tf32": True},
    {"cudnn.conv.fp32_precision": "ieee"},
    {"cudnn.conv.fp32_precision": "ieee", "cudnn.rnn.fp32_precision": "ieee"},
    {"cuda.matmul.fp32_precision": "tf32"},
    {"fp32_precision": "tf32"},
    {"precision": "high"},
    {"precision": "medium"},
    {"precision": "medium", "cudnn.allow_tf32": False},
    {"fp32_precision": "tf32", "cudnn.allow_tf32": False},
]


@pytest.mark.parametrize("user", USERS, ids=str)
def test_float32_is_float32_whatever_was_set_and_leaves_it_so(user: dict[str, Any]) -> None:
    for setting, value in user.items():
        if setting == "precision":
            torch.set_float32_matmul_precision(value)
        else:
            assign(setting, value)
    before = settings()
    with float32(CUDA), float32(CUDA):
        during = settings()
    assert "tf32" not in (during["convolutions"], during["recurrent"], during["products"])
    assert during["deprecated convolutions"] in (False, None)
    assert settings() == before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_nothing_in_float32_disagrees_with_what_pytorch_asks(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    with float32(CUDA):
        with torch.backends.cudnn.flags(enabled=False):  # which reads the deprecated settings
            pass
        assert None not in settings().values()
        assert settings()["deprecated precision"] == "highest"


def test_settings_come_back_after_errors_and_after_the_last_user_only() -> None:
    with pytest.raises(KeyError), float32(CUDA):
        raise KeyError
    assert settings()["convolutions"] == "tf32"
    with float32(CUDA):
        with float32(CUDA):
            pass
        assert settings()["convolutions"] != "tf32"
    assert settings()["convolutions"] == "tf32"


@pytest.mark.parametrize(
    ("device", "iterations", "deterministic", "searched"),
    [(CUDA, 100, False, True), (CUDA, 99, False, False), (CUDA, 100, True, False), (CPU, 1000, False, False)],
)
def test_convolutions_are_searched_for_in_long_work_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, iterations: int, deterministic: bool, searched: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), fastest_convolutions(device, iterations):
        assert torch.backends.cudnn.benchmark == searched
        raise KeyError
    assert not torch.backends.cudnn.benchmark


def test_training_searches_for_as_long_as_it_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[torch.device, int]]()

    def noted(device: torch.device, iterations: int) -> Any:
        asked.append((device, iterations))
        return fastest_convolutions(device, iterations)

    monkeypatch.setattr(loop, "fastest_convolutions", noted)
    train(MAML(), Sinusoid(), "adam", Settings(iterations=3, meta_batch_size=2, device="cpu"))
    assert asked == [(CPU, 3)]


def test_the_cpu_is_left_alone() -> None:
    torch.set_float32_matmul_precision("high")
    before = settings()
    with float32(CPU), without_cudnn(CPU):
        assert settings() == before


def test_threads_share_the_switch() -> None:
    """Each enters before another one leaves: a setting that each saved and restored by itself would stay switched."""
    first, second = threading.Event(), threading.Event()

    def late() -> None:
        assert first.wait(10)
        with without_cudnn(CUDA):
            second.set()

    thread = threading.Thread(target=late)
    thread.start()
    with without_cudnn(CUDA):
        first.set()
        assert second.wait(10)
        assert not torch.backends.cudnn.enabled
    thread.join()
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("family", [Sinusoid(), Bandit(sampling=Sampling(episodes=2, horizon=3))])
def test_whatever_works_on_a_device_works_in_float32(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Watched(MAML):
        def build(self, spec: Any) -> Learner:
            learner = super().build(spec)

            def watch(name: str) -> Any:
                def watched(*arguments: Any) -> Any:
                    seen.append(torch.backends.cudnn.allow_tf32)
                    return getattr(learner, name)(*arguments)

                return watched

            return learner._replace(**{name: watch(name) for name in ("begin", "adapt", "predict", "meta_loss")})

    for module in (loop, scores, adaptation, rollouts, policies):
        monkeypatch.setattr(module, "float32", lambda device: float32(CUDA))
    result = train(Watched(), family, settings=Settings(iterations=2, meta_batch_size=2, device="cpu"))
    evaluation.evaluate(result.learner, result.params, family, tasks=2, steps=1)
    if family.spec.control:
        state = result.learner.begin(result.params, torch.zeros(1, family.spec.descriptor_size))
        del seen[-1]  # called here
        space = family.environment(1, CPU).single_action_space
        policies.MetaPolicy(result.learner, state, space).outputs(torch.zeros(1, *family.spec.input_shape))
    assert len(seen) > 5 and not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_tensors_are_sent_as_they_are() -> None:
    tensor = torch.arange(6).reshape(2, 3).T
    assert send(tensor, CPU) is tensor
    assert send(tensor, torch.device("meta")).shape == (3, 2)


@pytest.mark.gpu
@pytest.mark.parametrize(("filters", "size"), [(64, 28), (256, 14)])
def test_convolutions_and_products_on_a_gpu_are_float32(filters: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, filters, size, size, generator=generator)
    weight = torch.randn(filters, filters, 3, 3, generator=generator)
    rows = torch.randn(512, 1024, generator=generator)
    with float32(CUDA):
        found = torch.conv2d(images.to(CUDA), weight.to(CUDA)).cpu(), (rows.to(CUDA) @ rows.to(CUDA).T).cpu()
    expected = torch.conv2d(images.double(), weight.double()), rows.double() @ rows.double().T
    for one, other in zip(found, expected, strict=True):
        # TF32's 10 bits would leave 3e-4.
        assert (one - other).norm() / other.norm() < 5e-6


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pretend that there are so many CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (1, "auto", "cuda"),
        (1, "cpu", "cpu"),
        (1, "cuda", "cuda"),
        (1, "cuda:0", "cuda:0"),
        (12, "cuda:11", "cuda:11"),
    ],
    indirect=["gpus"],
)
def test_devices_that_are_there(gpus: int, name: str, device: str) -> None:
    assert resolve_device(name) == torch.device(device)
    assert Settings(device=name).device == name


@pytest.mark.parametrize(
    ("gpus", "name", "message"),
    [
        (0, "cuda", "device cuda was requested, but torch finds no CUDA device; use --device cpu or auto"),
        (0, "cuda:0", "device cuda:0 was requested, but torch finds no CUDA device; use --device cpu or auto"),
        (1, "cuda:1", "torch finds only cuda:0; use one of them, or --device cpu"),
        (2, "cuda:2", "torch finds only cuda:0 to cuda:1; use one of them, or --device cpu"),
    ],
    indirect=["gpus"],
)
def test_devices_that_are_not_there(gpus: int, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_device(name)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(MAML(), Bandit(), settings=Settings(device=name))


@pytest.mark.parametrize("gpus", [1, 4], indirect=True)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_process_of_several_takes_the_device_of_its_rank(
    gpus: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device(name) == torch.device("cuda:3" if gpus == 4 else "cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0") and resolve_device("cpu") == CPU


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.parametrize(
    ("rank", "told"), [("2", "only cuda:0 to cuda:1"), ("-1", "expected the number"), ("x", "expected")]
)
def test_ranks_without_a_device_are_told_so(gpus: int, rank: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(ValueError, match=told):
        resolve_device("cuda")


@pytest.mark.parametrize(
    "name", ["tpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "cuda:1,2", "cpu:0", "mps", ""]
)
def test_names_that_are_no_devices(name: str) -> None:
    for refuse in (lambda: resolve_device(name), lambda: Settings(device=name)):
        with pytest.raises(ValueError, match=re.escape(f"device={name!r}: expected auto, cpu, cuda or cuda:N")):
            refuse()


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.parametrize("command", ["train maml bandit --out X", "check bandit", "evaluate X", "resume X", "render X"])
def test_one_of_several_is_chosen_on_the_command_line(
    gpus: int, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if not command.startswith(("train", "check")):
        train(MAML(), Bandit(), settings=Settings(1, 2, device="cpu"), out="X")
    assert main([*command.split(), "--device", "cuda:2"]) == 2
    assert "torch finds only cuda:0 to cuda:1" in capsys.readouterr().err
    assert main([*command.split(), "--device", "cuda:"]) == 2
    assert "expected auto, cpu, cuda or cuda:N, such as cuda:0" in capsys.readouterr().err


def test_a_run_records_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop, "resolve_device", lambda name: CPU)
    train(MAML(), Bandit(), settings=Settings(1, 2, device="cuda:1"), out=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["device"] == "cuda:1"
    assert recorded(tmp_path / "run").settings.device == "cuda:1"
