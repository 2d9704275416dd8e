import signal
from collections.abc import Iterator

import pytest
import torch

# Background jobs of a shell inherit SIGINT ignored, and their children too: tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup ignores it, which children inherit, too: tests send it and wait
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decode images into a folder of this session, and sign runs with a key of it: nothing of the user's is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("METARL_KEY", str(tmp_path_factory.mktemp("state") / "key"))
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """Run a test with torch's default dtype set to float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Give every test the same number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
