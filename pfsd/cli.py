"""The two programs: `server_main` runs the daemon, `client_main` one command of the client or the interactive one.

They turn what happened into an exit code and, at most, one line on stderr. What either needs is imported when it
is needed, so that the client starts fast and the daemon loads nothing of the client.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pfsd.errors import FatalError

EX_USAGE = 64


def server_main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop; returns the exit code of the process."""
    import argparse
    import logging

    from pfsd import __version__

    parser = argparse.ArgumentParser(
        prog="pfsd",
        description="A parallel file storage daemon driven by lines of text over a socket.",
        epilog="Exit codes: 0 stopped; 64 bad command line; 65 registry damaged; 71 cannot listen; 73 store in use "
        "or not creatable; 74 storage failed while running; 78 bad configuration.",
    )
    default = Path(__file__).resolve().parent.parent / "config.yaml"
    parser.add_argument("--config", metavar="FILE", type=Path, default=default, help="configuration (%(default)s)")
    parser.add_argument("--version", action="version", version=f"pfsd {__version__}")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:
        return EX_USAGE if end.code else 0
    try:
        from pfsd import config

        settings = config.load(arguments.config, os.environ)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
        from pfsd import daemon

        return daemon.main(settings)
    except FatalError as error:
        print(f"pfsd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
