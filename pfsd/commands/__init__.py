"""The commands: one coroutine each. They return values and raise `RequestError`; they format nothing.

`engine` is what all of them work on; `put`, `get`, `verify` and `files` are the commands themselves.
"""
