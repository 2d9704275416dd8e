"""A pygame window that shows frames, for ``render_mode="human"``."""

from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled


class Window:
    """A window that opens at the first frame. Each frame is shown for at least 1 / fps seconds.

    Raises:
        DependencyNotInstalled: pygame is missing.
    """

    def __init__(self, title: str, fps: int):
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                'a window needs pygame: pip install "metarl-toolkit[render]", or use render_mode="rgb_array"'
            ) from error
        self._pygame, self._title, self._fps = pygame, title, fps
        self._screen: Any = None
        self._clock: Any = None

    def show(self, frame: np.ndarray[Any, Any]) -> None:
        """Show a frame, ``[height, width, 3]`` uint8."""
        height, width = frame.shape[:2]
        if self._screen is None:
            self._pygame.display.init()
            self._pygame.display.set_caption(self._title)
            self._screen, self._clock = self._pygame.display.set_mode((width, height)), self._pygame.time.Clock()
        self._pygame.event.pump()
        self._pygame.surfarray.blit_array(self._screen, frame.transpose(1, 0, 2))
        self._pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window, if it is open."""
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None
