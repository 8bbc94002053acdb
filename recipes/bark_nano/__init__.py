"""How bark-nano is made, from teachers to weights. Each module is a command; README.md tells their order."""

from __future__ import annotations

import sys
from collections.abc import Callable


def run(command: Callable[[], object]) -> int:
    """Call what a command line asks for; returns the exit code. What the user can mend is one line on stderr."""
    try:
        command()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
