"""The client's commands, from parsed words to what people see.

The one-shot command line and the interactive one share all of it. Paths are on this side of the connection. Nothing
here starts or stops anything but a command: connections, signals and processes belong to the callers.
"""
