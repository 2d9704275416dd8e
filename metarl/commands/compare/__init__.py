"""``metarl compare``: ``command`` is the command, ``records`` reads evaluations, ``table`` computes and writes it."""

from metarl.commands.compare.command import prepare

__all__ = ["prepare"]
