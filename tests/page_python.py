"""Runs the Python of a page: code comes as JSON lines, all of it in one namespace, what it printed goes back.

Code with prompts is run statement by statement, as a person at the prompt would; other code as a whole, where `await`
may stand outside of functions.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    """Answer each request with what was printed and whether it failed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    loop = asyncio.new_event_loop()
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["directory"])
        printed, failed = io.StringIO(), False
        with contextlib.redirect_stdout(printed):
            try:
                flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                result = eval(compile(request["code"], request["place"], request["mode"], flags), namespace)
                if inspect.iscoroutine(result):
                    loop.run_until_complete(result)
            except Exception:
                failed = True
                printed.write(traceback.format_exc())
        print(json.dumps({"printed": printed.getvalue(), "failed": failed}), file=answers, flush=True)


if __name__ == "__main__":
    main()
