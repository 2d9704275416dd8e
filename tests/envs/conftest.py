import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def backend() -> str:
    """An OpenGL that needs no screen; tests that ask for it are skipped where there is none."""
    for name in ("egl", "osmesa"):
        program = f"from mujoco.{name} import GLContext; GLContext(8, 8).make_current()"
        if subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0:
            return name
    pytest.skip("neither EGL nor OSMesa works here: on Debian, install libegl1 and libgl1-mesa-dri")
