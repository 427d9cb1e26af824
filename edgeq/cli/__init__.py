"""The command line: parse, call the API, print. No logic lives here, and nothing heavy is imported for ``--help``."""

from edgeq.cli.main import main

__all__ = ["main"]
