"""The client's command line: `python client.py [--server ADDRESS] [COMMAND ...]`."""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    from pfsd.cli import client_main

    sys.exit(client_main(program="python client.py", config=Path(__file__).resolve().with_name("config.yaml")))
