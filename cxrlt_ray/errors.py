"""The common error style: a sentence on what is wrong, where, and how to fix it."""

from __future__ import annotations


class CxrltError(Exception):
    """Something failed (exit code 1); the message is the whole sentence the user reads."""

    exit_code = 1


class UsageError(CxrltError):
    """The command, a file the user wrote or the combination of both is wrong (exit code 2)."""

    exit_code = 2


class Diverged(CxrltError):
    """A trial failed by itself: its numbers are not finite, and trying again would not help."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""
