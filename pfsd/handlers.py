"""What each verb does: its words and options go to a command, the result comes back as reply lines.

A handler is a coroutine on a `Call`, and `HANDLERS` is the table of them. When handlers run, and in which order,
is the session's business; what a command does is in `commands`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

import pfsd
from pfsd import facts, protocol
from pfsd.calls import Answer, Call, Feed, Handler, current_task
from pfsd.commands import files, get, put, resume, verify
from pfsd.commands.engine import FileRef, Progress
from pfsd.connection import ConnectionLost
from pfsd.errors import AuthError, Busy, Cancelled, Denied, UnknownCommand, UsageError
from pfsd.fair import Flow
from pfsd.protocol import Request, Value, Word
from pfsd.registry import File
from pfsd.verbs import VERBS

log = logging.getLogger(__name__)

#: So many wrong tokens end a connection.
MAX_WRONG_TOKENS = 3
#: Rows are sent in blocks of about this size.
ROW_BLOCK = 32 << 10


# --- the verbs ---------------------------------------------------------------------------------


class _Progress:
    """A progress, shown in rows while the body of `async with` runs if the request wants them."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._shower: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Progress:
        progress = self._call.command.progress
        seconds = self._call.request.number("progress")
        if seconds is not None:
            if not 1 <= seconds <= 3600:
                raise UsageError("progress= takes 1 to 3600 seconds")
            shown = _show_progress(progress, self._call.request.verb, seconds, self._call.answer)
            self._shower = asyncio.create_task(shown)
        return progress

    async def __aexit__(self, *_: object) -> None:
        if self._shower is not None:
            self._shower.cancel()
            with suppress(asyncio.CancelledError, ConnectionLost):
                await self._shower


async def _put(call: Call) -> None:
    replace = call.request.flag("replace")
    name = call.request.options.get("name")
    async with _Progress(call) as progress:
        if call.content is not None:
            assert name is not None
            try:
                _upload_key(call.request)  # which none of a known size has
                stored = await put.put_content(call.engine, name, replace, call.content.extents, progress, Flow())
            finally:
                call.content.free()
        elif call.feed is not None:
            assert name is not None
            stored = await _put_content(call, name, replace, call.feed, progress)
        else:
            if "size" in call.request.options:
                raise UsageError("size= goes with put -, whose content follows the line")
            source, resumable = call.request.words[0].value, call.request.flag("resume")
            stored = await put.put_path(call.engine, source, name, replace, progress, Flow(), resumable)
    await call.answer.ok(
        "put",
        id=stored.id,
        size=stored.size,
        stored=stored.stored,
        parts=stored.parts,
        etag=stored.etag,
        **_resumed(call, stored.resumed),
        name=stored.name,
    )


def _upload_key(request: Request) -> str:
    """What an upload that can be resumed is known by; empty for others."""
    key = request.options.get("resume", b"no")
    if key.lower() == b"no":
        return ""
    if request.options["size"].lower() != b"chunked":
        raise UsageError("resume=KEY goes with size=chunked: its sender is told where to begin")
    return resume.key_of_upload(key)


async def _put_content(call: Call, name: bytes, replace: bool, feed: Feed, progress: Progress) -> put.Stored:
    try:
        size, key = content_size(call.request), _upload_key(call.request)
        async with put.Upload(call.engine, name, replace, size, progress, Flow(), key) as upload:
            if key:
                await call.answer.row("RESUME", offset=upload.offset)
            feed.upload.set_result(upload)
            try:
                await upload.complete(feed.complete)
                return await upload.commit()
            finally:
                # Before the upload gives its memory back: the connection may be receiving into it.
                feed.fail(Cancelled("the upload is over"))
                if feed.filling:
                    call.connection.stop_filling()
                if feed.aborted:
                    upload.give_up()
    finally:
        feed.fail(Cancelled("the upload is over"))


async def _get(call: Call) -> None:
    on_error = call.request.options.get("on_error", b"fail")
    if on_error not in (b"fail", b"zero"):
        raise UsageError(f"on_error= is fail or zero, not {protocol.show(on_error)}")
    ref, target = _file_ref(call.request.words[0]), call.request.words[1]
    offset, length = call.request.number("offset"), call.request.number("length")
    async with _Progress(call) as progress:
        if target == Word(b"-"):
            if stray := {"replace", "sync", "resume"} & call.request.options.keys():
                raise UsageError(f"{min(stray)}= goes with a TARGET path, not with -")
            fetched = await get.stream(
                call.engine, ref, offset, length, call.answer.frame, on_error == b"zero", progress, Flow()
            )
        else:
            fetched = await get.get_path(
                call.engine,
                ref,
                target.value,
                offset,
                length,
                call.request.flag("replace"),
                on_error == b"zero",
                call.request.flag("sync"),
                progress,
                Flow(),
                resume=call.request.flag("resume"),
            )
    for lost in fetched.damage:
        await call.answer.row("DAMAGE", offset=lost.offset, length=lost.length, seq=lost.seq)
    if error := fetched.error():
        raise error
    await call.answer.ok(
        "get",
        id=fetched.id,
        size=fetched.size,
        bytes=fetched.bytes,
        etag=fetched.etag,
        **_resumed(call, fetched.resumed),
        name=fetched.name,
    )


async def _cat(call: Call) -> None:
    begun = False

    async def send(content: memoryview) -> None:
        nonlocal begun
        begun = True
        await call.connection.write_frame(b"", content)

    offset, length = call.request.number("offset"), call.request.number("length")
    try:
        ref = _file_ref(call.request.words[0])
        await get.stream(call.engine, ref, offset, length, send, False, call.command.progress, Flow())
    except (Exception, asyncio.CancelledError):
        if not begun:
            raise
        log.warning("cat %s broke off", protocol.show(call.request.words[0].value))
        call.connection.abort()
        raise ConnectionLost("the content broke off") from None


async def _list(call: Call) -> None:
    pattern = call.request.words[0].value if call.request.words else None
    count = size = stored = 0
    block = bytearray()
    for page in files.list_files(call.engine, pattern):
        for file in page:
            block += call.answer.line("FILE", **_file_fields(file))
            count, size, stored = count + 1, size + file.size, stored + file.stored
        if len(block) >= ROW_BLOCK:
            await call.answer.rows(bytes(block))
            block.clear()
        await asyncio.sleep(0)  # a long list must not keep the others waiting
    await call.answer.rows(bytes(block))
    await call.answer.ok("list", files=count, size=size, stored=stored)


async def _stat(call: Call) -> None:
    with_parts = call.request.flag("parts")
    file = call.engine.lookup(_file_ref(call.request.words[0]))
    with call.engine.pinned(file):
        etag = call.engine.registry.etag(file.id)  # now: a file that is being deleted may be forgotten meanwhile
        await call.answer.row("FILE", **_file_fields(file))
        if with_parts:
            await _stat_parts(call, file)
        await call.answer.ok("stat", id=file.id, etag=etag)


async def _stat_parts(call: Call, file: File) -> None:
    block = bytearray()
    for part in call.engine.registry.parts(file.id):
        block += call.answer.line(
            "PART",
            id=part.id,
            seq=part.seq,
            offset=part.offset,
            size=part.size,
            stored=part.stored,
            codec=part.codec,
            md5=part.md5.hex(),
        )
        if len(block) >= ROW_BLOCK:
            await call.answer.rows(bytes(block))
            block.clear()
            await asyncio.sleep(0)
    await call.answer.rows(bytes(block))


async def _delete(call: Call) -> None:
    deleted = await files.delete(call.engine, [_file_ref(word) for word in call.request.words])
    for file in deleted:
        await call.answer.row("DELETED", id=file.id, freed=file.freed, name=file.name)
    await call.answer.ok(
        "delete",
        files=len(deleted),
        parts=sum(file.parts for file in deleted),
        freed=sum(file.freed for file in deleted),
    )


async def _rename(call: Call) -> None:
    name = call.request.words[1].value
    file = await files.rename(call.engine, _file_ref(call.request.words[0]), name, call.request.flag("replace"))
    await call.answer.ok("rename", id=file.id, name=name)


async def _verify(call: Call) -> None:
    refs = [_file_ref(word) for word in call.request.words]

    async def report(bad: verify.BadRow) -> None:
        await call.answer.row("BAD", id=bad.id, seq=bad.seq, offset=bad.offset, code=bad.code, name=bad.name)

    async with _Progress(call) as progress:
        done = await verify.verify(call.engine, refs, report, progress, Flow())
    if error := done.error():
        raise error
    await call.answer.ok("verify", files=done.files, parts=done.parts, bytes=done.bytes)


async def _stats(call: Call) -> None:
    for key, value in facts.stats(call.service).items():
        await call.answer.row("STAT", **{key: value})
    await call.answer.ok("stats")


async def _ps(call: Call) -> None:
    commands, slots = list(call.service.activity.running()), call.engine.workers.slots()
    now = time.monotonic()
    block = bytearray()
    for command in commands:
        block += call.answer.line("COMMAND", **facts.command(command, call.engine.registry, now))
        if len(block) >= ROW_BLOCK:
            await call.answer.rows(bytes(block))
            block.clear()
            await asyncio.sleep(0)  # thousands can be at work, and all of them wait
    for slot in slots:
        block += call.answer.line("WORKER", **facts.slot(slot, now))
    await call.answer.rows(bytes(block))
    await call.answer.ok("ps", commands=len(commands), workers=len(slots))


async def _ping(call: Call) -> None:
    await call.answer.ok("ping")


async def _hello(call: Call) -> None:
    proto = call.request.number("proto")
    if proto not in (None, protocol.VERSION):
        raise UsageError(f"this daemon speaks proto={protocol.VERSION}, not {proto}", max=protocol.VERSION)
    await call.answer.ok(
        "hello",
        proto=protocol.VERSION,
        version=pfsd.__version__,
        max_line=protocol.MAX_LINE,
        max_frame=protocol.MAX_FRAME,
        auth="token" if call.service.tokens.needed else "none",
        state=call.service.state(),
    )


async def _auth(call: Call) -> None:
    access = call.access
    if access.asking:
        raise Busy("a token of this connection is being looked at; wait for its answer")
    access.asking = True
    try:
        right = await call.service.tokens.is_right(call.request.words[0].value, call.connection.host)
    finally:
        access.asking = False
    if right:
        access.trusted = True
        await call.answer.ok("auth")
        return
    log.warning("the client gave a wrong token")
    access.wrong_tokens += 1
    if access.wrong_tokens >= MAX_WRONG_TOKENS:
        call.connection.end_input()
        raise AuthError("this is not the token of this daemon; the connection is closed")
    raise AuthError("this is not the token of this daemon")


async def _help(call: Call) -> None:
    if call.request.words:
        name = call.request.words[0].value.decode("utf-8", "replace").lower()
        if name not in VERBS:
            raise UnknownCommand(f"pfsd has no command {protocol.show(name.encode())}; try: help")
        verb = VERBS[name]
        for text in (verb.usage, f"    {verb.does}", f"    example: {verb.example}"):
            await call.answer.comment(text)
    else:
        for name, verb in VERBS.items():
            if call.access.allow is not None and name not in call.access.allow:
                continue
            await call.answer.comment(f"{verb.usage}  -- {verb.does}")
        await call.answer.comment("FILE is an id (plain digits) or a name; quote names with spaces or of digits")
    await call.answer.ok("help")


async def _quit(call: Call) -> None:
    await call.answer.ok("quit")


async def _exit(call: Call) -> None:
    allow = call.service.allow_exit
    if allow == "nobody" or (allow == "local" and not call.connection.is_local):
        raise Denied("this daemon is not stopped from here (allow_exit); quit ends just your session")
    call.service.running.discard(current_task())  # or the shutdown would wait for this
    await call.service.shut_down()
    await call.answer.ok("exit")


HANDLERS: dict[str, Handler] = {
    "put": _put,
    "get": _get,
    "cat": _cat,
    "list": _list,
    "stat": _stat,
    "delete": _delete,
    "rename": _rename,
    "verify": _verify,
    "stats": _stats,
    "ps": _ps,
    "ping": _ping,
    "hello": _hello,
    "auth": _auth,
    "help": _help,
    "quit": _quit,
    "exit": _exit,
}


# --- helpers ------------------------------------------------------------------------------------


def content_size(request: Request) -> int | None:
    """The size that a `put -` line announces; None when only the end of the content will tell."""
    size = request.options.get("size")
    if size is None:
        raise UsageError("content needs its size: put - name=NAME size=N|chunked|eof")
    if size.lower() in (b"chunked", b"eof"):
        return None
    return protocol.parse_number("size", size)


def _resumed(call: Call, count: int) -> dict[str, Value]:
    """What a final line tells of an earlier try, if it was to be used."""
    return {"resumed": count} if call.request.options.get("resume", b"no").lower() != b"no" else {}


def _file_ref(word: Word) -> FileRef:
    """A bare word of digits is an id, anything else a name."""
    if word.value.isdigit() and not word.quoted:
        return protocol.parse_number("FILE", word.value)
    return protocol.check_name(word.value)


def _file_fields(file: File) -> dict[str, Value]:
    return {
        "id": file.id,
        "status": file.status.value,
        "size": file.size,
        "stored": file.stored,
        "parts": file.parts,
        "created": file.created // 1_000_000_000,
        "name": file.name,
    }


async def _show_progress(progress: Progress, verb: str, seconds: int, answer: Answer) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(seconds)
        rate = int((progress.bytes - progress.skipped) / (time.monotonic() - started))
        known = progress.total is not None and rate > 0
        await answer.row(
            "PROGRESS",
            verb,
            bytes=progress.bytes,
            total="?" if progress.total is None else progress.total,
            parts=progress.parts,
            rate=rate,
            eta=-(-max(0, (progress.total or 0) - progress.bytes) // rate) if known else "?",
        )
