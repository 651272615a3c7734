"""The examples of docs/format.md go through the real readers, and say what the text beside them says."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest

from pfsd import hashing, packs
from pfsd.errors import RegistryDamaged
from pfsd.journal import Journal
from pfsd.registry import Registry
from pfsd.work import PartRow

TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
STORE = bytes(range(16))


def block(kind: str) -> str:
    found = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def example_pack() -> bytes:
    return b"".join(bytes.fromhex(line[6:55]) for line in block("hexdump").splitlines())


def open_example(directory: Path, text: str) -> tuple[Journal, Registry]:
    path = directory / "journal.jsonl"
    path.write_text(text)
    registry = Registry()
    return Journal.open(path, registry.replay, sync=False), registry


def test_the_journal_example_is_read(tmp_path: Path) -> None:
    journal, registry = open_example(tmp_path, block("jsonl"))
    assert journal.store_id == STORE
    assert journal.records == 5
    (file,) = registry.files_after(0, 10)
    assert (file.id, file.name, file.size, file.parts) == (1, b"notes.txt", 4108, 2)
    assert (registry.next_file, registry.next_part, registry.next_pack) == (3, 3, 3)


def test_every_line_of_the_journal_example_matters(tmp_path: Path) -> None:
    lines = block("jsonl").splitlines(keepends=True)
    for at in range(len(lines) - 1):
        with pytest.raises(RegistryDamaged):
            open_example(tmp_path, "".join(lines[:at] + lines[at + 1 :]))


def test_the_checksum_is_what_the_text_says() -> None:
    crc = 0
    for line in block("jsonl").encode().splitlines():
        body, _, tail = line.partition(b',"crc":"')
        crc = zlib.crc32(body, crc)
        assert tail == b'%08x"}' % crc


def test_the_pack_example_holds_the_file_of_the_journal_example(tmp_path: Path) -> None:
    pack = example_pack()
    _, registry = open_example(tmp_path, block("jsonl"))
    content = b""
    for part in registry.parts(1):
        assert part.pack == 1
        encoded = pack[part.pack_offset : part.pack_offset + part.head + part.stored]
        row = PartRow(part.pack_offset, part.head, part.size, part.stored, part.codec, part.md5)
        data = bytes(packs.decode_part(encoded, STORE, 1, part.seq, row))
        assert hashing.md5(data) == part.md5
        content += data
        assert f"| {part.pack_offset} | {part.seq} | {part.head} bytes | {part.stored} bytes, {part.codec}" in TEXT
    assert content == b"pfsd keeps parts.\n" * 227 + b"0123456789" + b"the last one"


def test_the_pack_example_is_read_without_a_journal() -> None:
    pack = example_pack()
    found = list(packs.scan(lambda offset, length: pack[offset : offset + length], len(pack)))
    assert [part.header.seq for part in found if isinstance(part, packs.Found)] == [0, 1]
    assert len(found) == 2
    assert all(part.header.origin.name == b"notes.txt" for part in found if isinstance(part, packs.Found))


def test_the_table_of_fields_is_the_header_that_is_written() -> None:
    """Each row of the table, cut out of the example at its offset, holds what the reader finds."""
    pack = example_pack()
    rows = {
        name.split(",")[0].split(":")[0].strip(): (int(offset), int(size))
        for offset, size, name in re.findall(r"^\| (\d+) \| (\d+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
    }

    def number(field: str) -> int:
        offset, size = rows[field]
        return int.from_bytes(pack[offset : offset + size], "little")

    header, head = packs.read_header(pack)
    assert pack[: rows["magic"][1]] == packs.MAGIC
    assert number("version of this format") == packs.VERSION
    assert number("length of the header") == head
    assert number("id of the file") == header.origin.file
    assert number("created") == header.origin.created
    assert number("sequence number of the part in its file") == header.seq
    assert number("part size of the file") == header.origin.part_size
    assert number("size of the part before compression") == header.size
    assert number("size of the payload") == header.stored
    assert number("size of the file; all ones when it was not known yet as the part was written") == 4108
    assert number("length of the name") == len(header.origin.name)
