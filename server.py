"""Starts the daemon: `python server.py [--config FILE]`. Worker processes import this too, which must do nothing."""

if __name__ == "__main__":
    import sys

    from pfsd.cli import server_main

    sys.exit(server_main())
