"""`python -m pfsd` is `pfsd`."""

if __name__ == "__main__":
    import sys

    from pfsd.cli import server_main

    sys.exit(server_main(program="python -m pfsd"))
