"""What people look at: curves and pictures of families (``plotting``), drawings (``canvas``), films (``video``).

Numbers and arrays come in, never learners or runs. Each module is imported by its own name, because they bring in
matplotlib, an encoder or pygame. Start reading in ``plotting``.
"""

__all__ = [
    "canvas",
    "plotting",
    "video",
    "window",
]
