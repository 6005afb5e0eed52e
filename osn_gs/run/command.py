"""How a tool ends: 0 when done, 2 with one line on bad input, 130 when interrupted, 141 when nobody reads on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from osn_gs.errors import OsnGsError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def run_tool(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call `main` with the command-line arguments; turn what a user can cause into one line and an exit code."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        return main(arguments)
    except OsnGsError as error:
        errors.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}")
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit finds no pipe
        return EXIT_BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[bold red]error:[/] {escape(where)}{error.strerror or error}; check the path, rights and space.")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        errors.print("interrupted")
        return EXIT_INTERRUPTED
