"""``metarl show``: ``command`` is the command, ``summary`` says what a run is, how far it is, and its scores."""

from metarl.commands.show.command import prepare

__all__ = ["prepare"]
