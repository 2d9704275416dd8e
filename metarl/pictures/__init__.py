"""Plots (``plotting``), drawings (``canvas``), frames, films (``video``) and a window that shows frames (``window``).

Functions take numbers and arrays, never learners or runs. Import each module explicitly, because they need matplotlib,
an encoder or pygame. Start reading in ``plotting``; ``comparing`` draws comparisons of runs, ``predictions``
pictures with the predicted classes.
"""

__all__ = [
    "canvas",
    "comparing",
    "frames",
    "parameters",
    "plotting",
    "predictions",
    "video",
    "window",
]
