"""``metarl report``: ``command`` is the command, ``contents`` gathers what is told, ``page`` writes it as HTML."""

from metarl.commands.report.command import prepare

__all__ = ["prepare"]
