"""``metarl adapt``: adapt a run to one's own examples or environment, and save what comes out."""

from metarl.commands.adapt.adapting import prepare

__all__ = ["prepare"]
