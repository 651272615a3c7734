"""The interactive command line: each command runs beside the others, on a connection of its own.

On a terminal with `prompt_toolkit` there are history and completion; otherwise lines are read as they come, so
commands can be piped in. What a command shows appears in one block when it is over, between `[N] started` and
`[N] done`. `wait` is the way to have one command begin after another has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pfsd import syntax
from pfsd.client import Client, UnderWay
from pfsd.console import output
from pfsd.console.run import run as run_command
from pfsd.errors import PfsdError, UsageError
from pfsd.progress import Meter, What, described
from pfsd.transfer import in_thread

Connect = Callable[[], Awaitable[Client]]
#: Asks the user; returns None at the end of input.
Ask = Callable[[str], Awaitable[str | None]]

PROMPT = "pfsd> "
#: Names offered when completing; more would not be read.
MOST_COMPLETIONS = 200
#: A daemon that is slow to list names must not hold up typing.
COMPLETE_SECONDS = 1.0

#: Commands whose output cannot be mixed with that of others.
SINGLE_ONLY = {"cat"}
BUILTINS = {
    "jobs": "show the running commands",
    "cancel": "cancel N: give a running command up",
    "wait": "wait [N]: go on when all commands, or that one, are done",
    "help": "help [COMMAND]: this list, or one command",
    "quit": "leave when the running commands are done (as the end of input does)",
}


class _Transfer:
    """How far one transfer of a job is: a `Meter` that only remembers."""

    def __init__(self, what: What) -> None:
        self._what = what
        self.text = ""

    def __call__(self, done: int, total: int | None, /) -> None:
        # A function counts files; a name says no more than the command does.
        self.text = (f"{described(self._what)}, " if callable(self._what) else "") + _share(done, total)

    def under_way(self, files: Sequence[UnderWay], /) -> None:
        """The whole is enough for one line."""


class Job:
    """A command that runs, and how far it is."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.task: asyncio.Task[int]
        self._transfers: list[_Transfer] = []

    @contextmanager
    def _transfer(self, what: What) -> Iterator[Meter]:
        transfer = _Transfer(what)
        self._transfers.append(transfer)
        try:
            yield transfer
        finally:
            self._transfers.remove(transfer)

    def watch(self, what: What, /) -> AbstractContextManager[Meter]:
        """A `Watch` that only counts."""
        return self._transfer(what)

    def progress(self) -> str:
        """How far it is, for people; empty when nothing is being transferred."""
        return ", ".join(transfer.text for transfer in self._transfers if transfer.text)


def _share(done: int, total: int | None) -> str:
    if not total:
        return output.show_size(done)
    return f"{output.show_size(done)} of {output.show_size(total)} ({100 * done // total} %)"


class Shell:
    """Runs command lines. `ask` is set when a person can be asked."""

    def __init__(self, connect: Connect, *, as_json: bool = False, quiet: bool = False, ask: Ask | None = None) -> None:
        self._connect = connect
        self._as_json = as_json
        self._quiet = quiet
        self._ask = ask
        self._parser = syntax.Parser(prog="", add_help=False)
        self._commands: dict[str, syntax.Parser] = syntax.add_commands(self._parser, []).choices
        self._jobs: dict[int, Job] = {}
        self._count = 0
        self._no_output: OSError | None = None
        self.failed = False

    # --- lines ---

    async def handle(self, line: str) -> bool:
        """Act on one line; False when the user wants to leave. OSError when output cannot be written any more."""
        self.check()
        if not line.strip() or line.lstrip().startswith("#"):
            return True
        try:
            words = _split(line)
            if words[0] == "quit":
                return False
            if words[0] == "exit":
                return await self._exit(line)
            if words[0] in BUILTINS:
                await self._builtin(words[0], words[1:])
            else:
                self._start(line, self._parse(words))
        except SystemExit:  # --help was shown
            pass
        except UsageError as error:
            self.failed = True
            output.Output(as_json=self._as_json).error(error)
        return True

    def _parse(self, words: list[str]) -> argparse.Namespace:
        if words[0] not in self._commands:
            raise UsageError(f"there is no command {words[0]}; {self._nearest(words[0])}")
        arguments = self._parser.parse_args(words)
        if arguments.command in SINGLE_ONLY:
            raise UsageError(f"{arguments.command} is for single commands; the command line shows no content")
        if "-" in (*getattr(arguments, "files", ()), getattr(arguments, "target", None)):
            raise UsageError("- is for single commands; standard input and output are taken by the command line")
        return arguments

    async def _builtin(self, name: str, words: list[str]) -> None:
        if len(words) > 1 or (name == "jobs" and words) or (name == "cancel" and not words):
            raise UsageError(BUILTINS[name])
        match name:
            case "jobs":
                for job in self._jobs.values():
                    self._say("running", job, job.progress(), always=True)
            case "cancel":
                self._job(words[0]).task.cancel()
            case "wait":
                await self.wait([self._job(words[0])] if words else None)
            case "help":
                self._help(words)

    def _nearest(self, word: str) -> str:
        return syntax.nearest(word, self._names(), "try help")

    def _names(self) -> list[str]:
        return [*(name for name in self._commands if name not in SINGLE_ONLY), *BUILTINS]

    def _help(self, words: list[str]) -> None:
        if not words:
            does = {name: parser.description for name, parser in self._commands.items()} | BUILTINS
            names = [name for name in self._names() if name not in syntax.ALIASES]
            text = "".join(f"{name:8} {does[name]}\n" for name in names)
            text += "help COMMAND says more; words with spaces need quotes; each command runs beside the others\n"
        elif words[0] in self._commands:
            text = self._commands[words[0]].format_help()
        elif words[0] in BUILTINS:
            text = f"{BUILTINS[words[0]]}\n"
        else:
            raise UsageError(f"there is no command {words[0]}; {self._nearest(words[0])}")
        sys.stdout.write(text)
        sys.stdout.flush()

    async def _exit(self, line: str) -> bool:
        """Shut the daemon down and leave."""
        arguments = self._parse(_split(line))
        if self._jobs and self._ask is not None:
            answer = await self._ask(f"{len(self._jobs)} commands are running; stop the daemon after them? [y/N] ")
            if (answer or "").strip().lower() not in ("y", "yes"):
                return True
        # The daemon would let running requests finish, but a command may be between two of its requests.
        if not await self.wait():
            return True
        job = self._start(line, arguments)
        await self.wait()
        return job.task.cancelled() or job.task.result() != output.DONE

    # --- jobs ---

    def _start(self, line: str, arguments: argparse.Namespace) -> Job:
        self._count += 1
        job = Job(self._count, line.strip())
        self._jobs[job.number] = job
        self._say("started", job)
        job.task = asyncio.create_task(self._run(job, arguments))
        job.task.add_done_callback(self._ended)
        return job

    def _ended(self, task: asyncio.Task[int]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), OSError):
            self._no_output = self._no_output or error

    def check(self) -> None:
        """Raise the OSError that kept a command from showing what it did."""
        if self._no_output is not None:
            raise self._no_output

    async def _run(self, job: Job, arguments: argparse.Namespace) -> int:
        out = output.Output(as_json=self._as_json, quiet=self._quiet, job=job.number)
        block: list[tuple[bool, str]] = []
        out.print_with(lambda text: block.append((False, text)), lambda text: block.append((True, text)))
        code: int | None = None
        try:
            code = await self._run_connected(job, arguments, out)
            return code
        finally:
            del self._jobs[job.number]
            self.failed |= code != output.DONE
            for is_error, text in block:
                (sys.stderr if is_error else sys.stdout).write(text)
            sys.stderr.flush()
            sys.stdout.flush()
            how = "cancelled" if code is None else "done" if code == output.DONE else "failed"
            self._say(how, job)

    async def _run_connected(self, job: Job, arguments: argparse.Namespace, out: output.Output) -> int:
        try:
            async with await self._connect() as client:
                return await run_command(client, arguments, out, job.watch)
        except PfsdError as error:
            out.error(error)
            return output.exit_code(error)

    async def wait(self, jobs: Collection[Job] | None = None) -> bool:
        """Wait for jobs, or for all; False when the user interrupted the wait."""
        tasks = {job.task for job in (self._jobs.values() if jobs is None else jobs)}
        if not tasks:
            return True
        waiting = asyncio.ensure_future(asyncio.wait(tasks))
        with _on_interrupt(waiting) if self._ask is not None else _nothing():
            try:
                await waiting
            except asyncio.CancelledError:
                if (current := asyncio.current_task()) and current.cancelling():
                    raise
                return False
        return True

    async def give_up(self) -> None:
        """Cancel what runs and wait for its end."""
        tasks = [job.task for job in self._jobs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def jobs(self) -> list[Job]:
        """The running commands."""
        return list(self._jobs.values())

    def _job(self, word: str) -> Job:
        job = self._jobs.get(int(word)) if word.isascii() and word.isdigit() and len(word) < 10 else None
        if job is None:
            raise UsageError(f"no command with the number {word} is running; try jobs")
        return job

    def _say(self, state: str, job: Job, detail: str = "", always: bool = False) -> None:
        """A line about a command as a whole."""
        if self._as_json:
            facts: dict[str, Any] = {"type": state, "job": job.number, "command": job.text}
            if detail:
                facts["progress"] = detail
            text = json.dumps(facts, ensure_ascii=False)
        else:
            text = f"[{job.number}] {state}: {job.text}" + (f" - {detail}" if detail else "")
        if self._as_json or always or not self._quiet:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    # --- completion ---

    async def complete(self, text: str) -> tuple[int, list[str]]:
        """What may stand where `text` ends: where its last word begins, and words to put there."""
        words, start, current = split_unfinished(text)
        found = sorted(await self._candidates(words, current))
        return start, [shlex.quote(word) for word in found[:MOST_COMPLETIONS]]

    async def _candidates(self, words: list[str], current: str) -> set[str]:
        if not words:
            return _beginning(current, self._names())
        command, place = (
            syntax.ALIASES.get(words[0], words[0]),
            len([word for word in words[1:] if not word.startswith("-")]),
        )
        if current.startswith("-") and command in self._commands:
            return _beginning(current, re.findall(r"\[(--?[a-z-]+)", self._commands[command].format_usage()))
        match command, place:
            case "help", 0:
                return _beginning(current, self._names())
            case (("cancel" | "wait"), 0):
                return _beginning(current, map(str, self._jobs))
            case ("put", _) | ("get", 1):
                return local_paths(current)
            case (("get" | "rename"), 0) | (("stat" | "delete" | "verify"), _):
                return await self._stored_names(current)
        return set()

    async def _stored_names(self, current: str) -> set[str]:
        names: set[str] = set()
        pattern = re.sub(r"([*?\[])", r"[\1]", current) + "*"
        try:
            async with asyncio.timeout(COMPLETE_SECONDS), await self._connect() as client:
                async for file in client.list(os.fsencode(pattern)):
                    names.add(os.fsdecode(file.name))
                    if len(names) == MOST_COMPLETIONS:
                        break
        except (PfsdError, TimeoutError):
            pass  # completion is a service, not a command
        return names


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"the line cannot be split into words: {error}") from None


def split_unfinished(text: str) -> tuple[list[str], int, str]:
    """The complete words of a line being typed, where the last one begins, and its value so far."""
    words: list[str] = []
    start, current, quote, inside = 0, "", "", False
    characters = iter(enumerate(text))
    for at, char in characters:
        if not inside and not char.isspace():
            start, inside = at, True
        if quote and char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == "\\" and quote != "'":
            current += next(characters, (0, ""))[1]
        elif quote or not char.isspace():
            current += char
        elif inside:
            words.append(current)
            current, inside = "", False
    return words, start if inside else len(text), current


def _beginning(current: str, words: Any) -> set[str]:
    return {word for word in words if word.startswith(current)}


def local_paths(current: str) -> set[str]:
    """Local paths that begin with `current`; directories end in a slash."""
    folder, name = os.path.split(current)
    try:
        with os.scandir(folder or ".") as entries:
            return {
                os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            }
    except OSError:
        return set()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _on_interrupt(waiting: asyncio.Future[Any]) -> Iterator[None]:
    """Have Ctrl-C cancel a wait and not the program."""
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, waiting.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


# --- reading lines ------------------------------------------------------------------------------


async def run(connect: Connect, *, as_json: bool, quiet: bool) -> int:
    """Read and run command lines until the end; returns an exit code.

    On a terminal the exit code says nothing of the commands; of piped ones it is 1 if any failed.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal and (prompt := _prompt_toolkit(connect, as_json, quiet)) is not None:
        return await prompt
    shell = Shell(connect, as_json=as_json, quiet=quiet)
    async for line in _plain_lines(terminal):
        if not await shell.handle(line):
            break
    return await _leave(shell, piped=not terminal)


async def _leave(shell: Shell, piped: bool) -> int:
    """Let running commands finish."""
    if shell.jobs and not piped:
        print(f"waiting for {len(shell.jobs)} commands; Ctrl-C gives them up", flush=True)
    try:
        complete = await shell.wait()
    except asyncio.CancelledError:
        await shell.give_up()
        raise
    if not complete:
        await shell.give_up()
        return output.INTERRUPTED
    shell.check()
    return output.FAILED if shell.failed and piped else output.DONE


async def _plain_lines(prompted: bool) -> AsyncIterator[str]:
    # A reader of our own: the lock of sys.stdin would be held by a thread that hangs in a read.
    lines = io.BufferedReader(io.FileIO(0, closefd=False))
    while True:
        if prompted:
            print(PROMPT, end="", flush=True)
        line = await in_thread(lines.readline)
        if not line:
            return
        yield os.fsdecode(line)


def _prompt_toolkit(connect: Connect, as_json: bool, quiet: bool) -> Awaitable[int] | None:
    """The prompt of a terminal, not begun yet; None without `prompt_toolkit`."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import CompleteEvent, Completer, Completion
        from prompt_toolkit.document import Document
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.patch_stdout import patch_stdout
    except ImportError:
        return None

    class Words(Completer):
        """Offers what the shell knows."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            return iter(())

        async def get_completions_async(self, document: Document, event: CompleteEvent) -> AsyncIterator[Completion]:  # type: ignore[override]
            text = document.text_before_cursor
            start, words = await shell.complete(text)
            for word in words:
                yield Completion(word, start - len(text))

    path = history_path()
    history = InMemoryHistory() if path is None else FileHistory(str(path))
    session: PromptSession[str] = PromptSession(history=history, completer=Words(), complete_while_typing=False)
    question: PromptSession[str] = PromptSession()

    async def ask(text: str) -> str | None:
        try:
            return await question.prompt_async(text)
        except (EOFError, KeyboardInterrupt):
            return None

    shell = Shell(connect, as_json=as_json, quiet=quiet, ask=ask)

    async def loop() -> int:
        print("help lists the commands; each of them runs beside the others")
        with patch_stdout():
            while True:
                try:
                    line = await session.prompt_async(PROMPT)
                except KeyboardInterrupt:  # Ctrl-C throws the line away
                    continue
                except EOFError:
                    break
                if not await shell.handle(line):
                    break
            return await _leave(shell, piped=False)

    return loop()


def history_path() -> Path | None:
    """The history file, made readable for its user only; None if that cannot be."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    path = Path(state).expanduser() / "pfsd" / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    except (OSError, RuntimeError):
        return None
    return path
