"""Starts the daemon: `python server.py [--config FILE]`. Worker processes import this too, which must do nothing."""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    from pfsd.cli import server_main

    sys.exit(server_main(program="python server.py", config=Path(__file__).resolve().with_name("config.yaml")))
