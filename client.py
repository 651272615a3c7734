"""The client's command line: `python client.py [--server ADDRESS] [COMMAND ...]`."""

if __name__ == "__main__":
    import sys

    from pfsd.cli import client_main

    sys.exit(client_main())
