"""The command `lightning-mpq-verify`: what `export_for` wrote, loaded in its own runtime and compared."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from ..targets import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify files and folders, a line each; a file that is not what was exported gives exit code 1."""
    parser = ArgumentParser("lightning-mpq-verify", description="Check what export_for wrote, in its own runtime.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file or folder that was exported")
    code = 0
    for path in parser.parse_args(arguments).paths:
        try:
            print(f"{path}: {verify(path)}")
        except (ImportError, OSError, TypeError, ValueError) as error:
            print(f"lightning-mpq-verify: {error}", file=sys.stderr)
            code = 1
    return code
