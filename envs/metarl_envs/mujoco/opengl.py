"""OpenGL, which MuJoCo loads as the environment variable MUJOCO_GL says: when it is imported, and when it renders."""

import ctypes.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ADVICE = (
    "a machine without a screen needs EGL (on Debian: libegl1 and libgl1-mesa-dri, and MUJOCO_GL=egl) or OSMesa "
    "(libosmesa6, and MUJOCO_GL=osmesa)"
)

try:
    import mujoco  # noqa: F401
except Exception as error:  # whatever PyOpenGL raises where a library is missing
    absent = isinstance(error, ModuleNotFoundError) and error.name == "mujoco"
    if absent or "MUJOCO_GL" not in os.environ:
        raise
    raise ImportError(
        f"MuJoCo cannot be imported with MUJOCO_GL={os.environ['MUJOCO_GL']} ({type(error).__name__}: {error}): unset "
        f"MUJOCO_GL, or install the library; {ADVICE}"
    ) from error


@contextmanager
def opengl(render_mode: str | None) -> Iterator[None]:
    """Choose an off-screen OpenGL on a machine without a screen. Raises RuntimeError, with advice, if OpenGL fails."""
    screen = sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if not screen and render_mode == "human":  # otherwise GLFW would end the process
        raise RuntimeError("render_mode 'human' needs a screen: neither DISPLAY nor WAYLAND_DISPLAY is set")
    if not screen and "MUJOCO_GL" not in os.environ:
        os.environ["MUJOCO_GL"] = "osmesa" if ctypes.util.find_library("EGL") is None else "egl"
    try:
        yield
    except Exception as error:  # whatever PyOpenGL and the driver raise
        raise RuntimeError(
            f"MuJoCo cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')} "
            f"({type(error).__name__}: {error}); {ADVICE}"
        ) from error
