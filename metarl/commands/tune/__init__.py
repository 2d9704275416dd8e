"""``metarl tune``: ``command`` searches for options that validate best, ``telling`` prints what was found."""

from metarl.commands.tune.command import prepare

__all__ = ["prepare"]
