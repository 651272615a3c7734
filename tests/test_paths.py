"""paths: nothing outside the roots is opened, whatever a path is made of and whoever changes it meanwhile."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsd import paths
from pfsd.errors import Busy, Denied, Exists, IoError, NoSpace, NotFound, RequestError, UsageError
from pfsd.paths import Roots, TargetFile


class Tree:
    """Two roots, a forbidden directory in the first, and an outside that nobody may see."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root, self.second, self.outside = top / "root", top / "second", top / "outside"
        self.store = self.root / "store"
        for directory in (self.root, self.second, self.outside, self.store, self.root / "sub"):
            directory.mkdir()
        (self.root / "file").write_bytes(b"in root")
        (self.root / "sub/file").write_bytes(b"in sub")
        (self.second / "file").write_bytes(b"in second")
        (self.outside / "file").write_bytes(b"secret")
        (self.store / "file").write_bytes(b"a pack")
        self.roots = Roots([self.root, self.second], forbidden=[self.store])

    def read(self, path: bytes | str | Path) -> bytes:
        fd = self.roots.open_source(os.fsencode(path))
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)

    def names(self) -> set[str]:
        return {str(path.relative_to(self.top)) for path in self.top.rglob("*")}


@pytest.fixture
def tree(tmp_path) -> Iterator[Tree]:
    fds = len(os.listdir("/proc/self/fd"))
    yield Tree(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == fds, "a file descriptor stayed open"


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("file", b"in root"),
        ("./sub//file", b"in sub"),
        ("sub/../file", b"in root"),
        ("sub/../../second/file", b"in second"),
        ("{top}/second/file", b"in second"),
        ("{top}/root/sub/../../root/file", b"in root"),
        ("//{top}/root/file", b"in root"),
    ],
)
def test_what_may_be_read(tree, path, content):
    assert tree.read(path.format(top=tree.top)) == content


@pytest.mark.parametrize(
    "path",
    ["../outside/file", "{top}/outside/file", "/etc/passwd", "..", "/", "{top}", "{top}/root2/file", "../rootfile"],
)
def test_what_lies_outside_is_denied_whether_it_exists_or_not(tree, path):
    (tree.top / "root2").mkdir()
    (tree.top / "rootfile").write_bytes(b"its name begins like a root's")
    for ending in ("", "/not-there", "/not/there"):
        with pytest.raises(Denied, match="outside"):
            tree.read(path.format(top=tree.top) + ending)


@pytest.mark.parametrize("path", ["store/file", "store", "store/not-there", "sub/../store/file", "alias/file"])
def test_the_store_is_out_of_bounds(tree, path):
    (tree.root / "alias").symlink_to("store")
    with pytest.raises(Denied, match="store of this daemon"):
        tree.read(path)


def test_a_root_that_is_a_symlink_is_what_it_leads_to(tree):
    (tree.top / "link").symlink_to("root")
    roots = Roots([tree.top / "link"], forbidden=[tree.top / "link/store"])
    os.close(roots.open_source(b"file"))
    os.close(roots.open_source(os.fsencode(tree.root / "file")))
    with pytest.raises(Denied, match="store"):
        roots.open_source(b"store/file")


def test_the_root_directory_as_root(tree):
    os.close(Roots([Path("/")], forbidden=[]).open_source(os.fsencode(tree.outside / "file")))


def test_symlinks_inside_are_followed_and_those_that_lead_outside_denied(tree):
    (tree.root / "good").symlink_to("sub/file")
    (tree.root / "good-dir").symlink_to(tree.second)
    (tree.root / "bad").symlink_to("../outside/file")
    (tree.root / "bad-dir").symlink_to(tree.outside)
    (tree.root / "over-bad").symlink_to("bad-dir/file")
    assert tree.read("good") == b"in sub"
    assert tree.read("good-dir/file") == b"in second"
    for path in ("bad", "bad-dir/file", "over-bad", "bad-dir/../outside/file"):
        with pytest.raises(Denied, match="outside") as caught:
            tree.read(path)
        assert "secret" not in caught.value.message
        assert str(tree.outside) not in caught.value.message


def test_a_symlink_that_runs_in_circles_is_denied(tree):
    (tree.root / "loop").symlink_to("loop")
    for path in ("loop", "loop/file"):
        with pytest.raises(Denied, match="nowhere"):
            tree.read(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(Path.mkdir, "a directory"), (os.mkfifo, "a FIFO"), (make_socket, "a socket")],
    ids=["directory", "fifo", "socket"],
)
def test_only_regular_files_are_sources_and_targets(tree, make: Callable[[Path], None], kind):
    make(tree.root / "thing")
    for use in (
        lambda: tree.read("thing"),
        lambda: tree.roots.open_parent(b"thing"),
        lambda: TargetFile.create(tree.roots, b"thing", replace=True),
        lambda: TargetFile.create(tree.roots, b"thing", replace=False),
    ):
        with pytest.raises(Denied, match=f"'thing' is {kind}, not a regular file"):
            use()


def test_devices_are_no_sources():
    roots = Roots([Path("/dev")], forbidden=[])
    for path in (b"zero", b"null", b"/dev/full"):
        with pytest.raises(Denied, match="a device"):
            roots.open_source(path)


def test_missing_files_are_not_found_and_named_as_written(tree):
    for path in ("not-there", "sub/../sub/not-there", "not/there", "file/not-there"):
        with pytest.raises(NotFound) as caught:
            tree.read(path)
        assert repr(path) in caught.value.message
        assert str(tree.top) not in caught.value.message


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"", UsageError),
        (b"fi\0le", UsageError),
        (b"\0", UsageError),
        (b"x" * 256, IoError),
        (b"sub/" * 2000 + b"file", IoError),
        (b"./" * 30_000, IoError),
    ],
)
def test_paths_that_cannot_be(tree, path, error):
    for use in (tree.roots.open_source, lambda path: TargetFile.create(tree.roots, path + b"/x", False)):
        if path:
            with pytest.raises(error):
                use(path)
    for use in (tree.roots.open_source, tree.roots.open_parent):
        with pytest.raises((error, Denied)):
            use(path)


def test_an_overlong_name_says_so(tree):
    with pytest.raises(IoError) as caught:
        tree.read(b"x" * 256)
    assert caught.value.fields == {"errno": "ENAMETOOLONG"}
    with pytest.raises(IoError, match="6000 bytes") as caught:
        tree.read(b"x/" * 3000)
    assert caught.value.fields == {"errno": "ENAMETOOLONG"}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"a b'\"", b"-rf", "e\u0301\u202e".encode(), b"\x1b[31m"])
def test_names_of_any_bytes_are_opened_and_shown_on_one_line(tree, name):
    with pytest.raises(NotFound) as caught:
        tree.read(name)
    assert caught.value.message.isprintable()
    (tree.root / os.fsdecode(name)).write_bytes(b"odd")
    assert tree.read(name) == b"odd"


def test_a_source_without_permission_is_io(tree, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **named):
        if flags & os.O_PATH:
            return real(path, flags, *rest, **named)
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(IoError) as caught:
        tree.read("file")
    assert caught.value.fields == {"errno": "EACCES"}


def test_a_source_is_opened_for_reading_without_blocking_and_not_inherited(tree):
    fd = tree.roots.open_source(b"file")
    with pytest.raises(OSError):
        os.write(fd, b"x")
    assert not os.get_inheritable(fd)
    os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(steps=st.lists(st.sampled_from(["..", ".", "", "sub", "up", "out", "file", "store", "root"]), max_size=8))
def test_no_path_reads_the_outside(tree, steps):
    for name, target in (("up", ".."), ("out", "../outside")):
        if not (tree.root / name).is_symlink():
            (tree.root / name).symlink_to(target)
    try:
        content = tree.read("/".join(steps))
    except RequestError:
        return
    assert content in (b"in root", b"in sub", b"in second")


# --- races --------------------------------------------------------------------------------------


class Swapper:
    """Swaps a directory for a symlink to the outside and back, as fast as it can."""

    def __init__(self, tree: Tree, name: str, kept: str, link: str) -> None:
        self._tree, self._name, self._kept, self._link = tree, tree.root / name, tree.root / kept, link
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.swaps = 0

    def _run(self) -> None:
        evil = self._tree.root / "evil"
        while not self._stop.is_set():
            self._name.rename(self._kept)
            evil.symlink_to(self._link)
            evil.rename(self._name)
            self._name.unlink()
            self._kept.rename(self._name)
            self.swaps += 1

    def __enter__(self) -> Swapper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_race_with_a_directory_never_reads_the_outside(tree):
    outcomes: dict[str, int] = {}
    with Swapper(tree, "sub", "aside", "../outside") as swapper:
        while sum(outcomes.values()) < 2000 or swapper.swaps < 200:
            try:
                outcome = tree.read("sub/file").decode()
            except (Denied, NotFound) as error:
                outcome = error.code
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert set(outcomes) <= {"in sub", "denied", "not-found"}


def test_a_race_with_the_file_itself_never_reads_the_outside(tree):
    outcomes: dict[str, int] = {}
    with Swapper(tree, "file", "aside", "../outside/file") as swapper:
        while sum(outcomes.values()) < 2000 or swapper.swaps < 200:
            try:
                outcome = tree.read("file").decode()
            except (Denied, NotFound) as error:
                outcome = error.code
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert set(outcomes) <= {"in root", "denied", "not-found"}


def test_a_race_never_writes_outside(tree):
    done = 0
    with Swapper(tree, "sub", "aside", "../outside") as swapper:
        while done < 500 or swapper.swaps < 100:
            done += 1
            try:
                with TargetFile.create(tree.roots, b"sub/new", replace=True) as target:
                    os.write(target.fd, b"new")
                    target.commit()
            except (Denied, NotFound):
                pass
    assert sorted(os.listdir(tree.outside)) == ["file"]


@pytest.mark.parametrize("swapped", ["sub", "sub/file"])
def test_a_swap_right_behind_the_check_is_denied(tree, monkeypatch, swapped):
    """The race at its worst moment: when the path is resolved, and not yet opened."""
    real = os.path.realpath

    def resolve_then_swap(path, **named):
        resolved = real(path, **named)
        (tree.root / swapped).rename(tree.root / "aside")
        (tree.root / swapped).symlink_to(tree.outside / ("file" if swapped == "sub/file" else ""))
        return resolved

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)
    with pytest.raises(Denied, match="changed"):
        tree.roots.open_source(b"sub/file")


def test_a_directory_swapped_behind_the_check_gets_no_target(tree, monkeypatch):
    real = os.path.realpath

    def resolve_then_swap(path, **named):
        resolved = real(path, **named)
        (tree.root / "sub").rename(tree.root / "aside")
        (tree.root / "sub").symlink_to(tree.outside)
        return resolved

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)
    with pytest.raises(Denied, match="changed"):
        tree.roots.open_parent(b"sub/new")


# --- targets ------------------------------------------------------------------------------------


def write(tree: Tree, path: str | bytes, content: bytes, replace: bool = False) -> None:
    with TargetFile.create(tree.roots, os.fsencode(path), replace, len(content)) as target:
        os.write(target.fd, content)
        target.commit()


def test_a_target_appears_whole_with_the_mode_of_a_new_file(tree):
    before = tree.names()
    with TargetFile.create(tree.roots, b"sub/new", replace=False, size=7) as target:
        (hidden,) = tree.names() - before
        assert hidden.startswith("root/sub/.new.pfsd-")
        assert stat.S_IMODE((tree.top / hidden).stat().st_mode) == 0o600
        assert not os.get_inheritable(target.fd)
        os.write(target.fd, b"content")
        old = os.umask(0o027)
        try:
            target.commit()
        finally:
            os.umask(old)
    assert tree.names() - before == {"root/sub/new"}
    assert (tree.root / "sub/new").read_bytes() == b"content"
    assert stat.S_IMODE((tree.root / "sub/new").stat().st_mode) == 0o640
    assert (tree.root / "sub/new").stat().st_nlink == 1


@pytest.mark.promise("target")
def test_what_is_not_committed_leaves_nothing(tree):
    before = tree.names()
    target = TargetFile.create(tree.roots, b"new", replace=False)
    os.write(target.fd, b"half")
    target.close()
    target.close()
    assert tree.names() == before


def test_an_existing_target_stays_unless_it_is_to_be_replaced(tree):
    before = tree.names()
    with pytest.raises(Exists, match="replace=yes"):
        write(tree, "file", b"new")
    assert (tree.root / "file").read_bytes() == b"in root"
    write(tree, "file", b"new", replace=True)
    assert (tree.root / "file").read_bytes() == b"new"
    write(tree, "fresh", b"x", replace=True)
    assert tree.names() == before | {"root/fresh"}


@pytest.mark.promise("target")
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_target_taken_while_it_was_written_stays(tree, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    before = tree.names()
    with TargetFile.create(tree.roots, b"new", replace=False) as target:
        (tree.root / "new").write_bytes(b"theirs")
        with pytest.raises(Exists):
            target.commit()
    assert (tree.root / "new").read_bytes() == b"theirs"
    assert tree.names() == before | {"root/new"}


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_a_file_system_without_links_will_do(tree, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    before = tree.names()
    write(tree, "new", b"content")
    assert (tree.root / "new").read_bytes() == b"content"
    assert tree.names() == before | {"root/new"}


def test_other_errors_of_link_are_not_taken_for_missing_links(tree, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", broken)
    before = tree.names()
    with pytest.raises(IoError):
        write(tree, "new", b"content")
    assert tree.names() == before


@pytest.mark.parametrize("target", ["file", "../outside/file", "nowhere", "../outside/new"])
def test_a_symlink_is_never_a_target(tree, target):
    (tree.root / "link").symlink_to(target)
    before = tree.names()
    for replace in (True, False):
        with pytest.raises(Denied, match="a symlink"):
            write(tree, "link", b"new", replace)
    assert tree.names() == before
    assert (tree.root / "link").is_symlink()
    assert (tree.outside / "file").read_bytes() == b"secret"


@pytest.mark.promise("target")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("file")], ids=["fifo", "symlink"])
def test_what_takes_the_name_meanwhile_is_not_replaced_unless_a_file(tree, make):
    with TargetFile.create(tree.roots, b"new", replace=True) as target:
        make(tree.root / "new")
        with pytest.raises(Denied, match="not a regular file"):
            target.commit()
    assert not stat.S_ISREG(os.lstat(tree.root / "new").st_mode)


@pytest.mark.parametrize("path", ["sub/", ".", "..", "sub/.", "sub/..", "/"])
def test_a_directory_is_no_target(tree, path):
    with pytest.raises(Denied, match="directory"):
        write(tree, path, b"x")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", UsageError),
        ("sub/\0", UsageError),
        ("not-there/new", NotFound),
        ("file/new", NotFound),
        ("../new", Denied),
        ("{top}/outside/new", Denied),
        ("store/new", Denied),
        ("escape/new", Denied),
        ("loop/new", Denied),
        ("n" * 256, IoError),
    ],
)
def test_where_no_target_can_be(tree, path, error):
    (tree.root / "escape").symlink_to("../outside")
    (tree.root / "loop").symlink_to("loop")
    before = tree.names()
    with pytest.raises(error):
        write(tree, path.format(top=tree.top), b"x")
    assert tree.names() == before


def test_a_target_by_way_of_a_symlinked_directory_inside(tree):
    (tree.root / "link").symlink_to(tree.second)
    write(tree, "link/new", b"x")
    assert (tree.second / "new").read_bytes() == b"x"


def test_the_longest_names_have_room_for_the_temporary(tree):
    name = "n" * 255
    write(tree, name, b"x")
    assert (tree.root / name).read_bytes() == b"x"


def test_two_writers_of_one_name_do_not_meet(tree):
    with (
        TargetFile.create(tree.roots, b"new", replace=False) as first,
        TargetFile.create(tree.roots, b"new", replace=False) as second,
    ):
        os.write(first.fd, b"first")
        os.write(second.fd, b"second")
        second.commit()
        with pytest.raises(Exists):
            first.commit()
    assert (tree.root / "new").read_bytes() == b"second"


@pytest.mark.promise("target")
def test_what_cannot_fit_is_refused_before_it_is_written(tree):
    before = tree.names()
    with pytest.raises(NoSpace) as caught:
        TargetFile.create(tree.roots, b"new", replace=False, size=1 << 60)
    assert int(caught.value.fields["free"]) < 1 << 60
    assert tree.names() == before


def test_commit_syncs_when_asked_to(tree, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with closing(TargetFile.create(tree.roots, b"a", replace=False)) as target:
        target.commit()
        assert synced == []
    with closing(TargetFile.create(tree.roots, b"b", replace=False)) as target:
        target.commit(sync=True)
        assert synced == [target.fd]


@pytest.mark.promise("target")
def test_a_failed_sync_publishes_nothing(tree, monkeypatch):
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", broken)
    before = tree.names()
    with closing(TargetFile.create(tree.roots, b"new", replace=False)) as target, pytest.raises(IoError):
        target.commit(sync=True)
    assert tree.names() == before


def test_the_umask_is_read_and_not_changed():
    old = os.umask(0o035)
    try:
        assert paths._umask() == 0o035
        assert os.umask(0o035) == 0o035
    finally:
        os.umask(old)


# --- partial targets ----------------------------------------------------------------------------


def partial_target(tree: Tree, size: int = 4, replace: bool = False) -> TargetFile:
    return TargetFile.create(tree.roots, b"new", replace, size, kept_as=b"key")


def test_a_partial_target_stays_until_it_is_committed(tree):
    before = tree.names()
    with partial_target(tree) as target:
        assert target.found == 0
        os.write(target.fd, b"half")
        with pytest.raises(Busy, match="resume=yes"):
            partial_target(tree)
    (hidden,) = tree.names() - before
    assert hidden.startswith("root/.new.key.") and hidden.endswith(".pfsd-partial")
    with partial_target(tree, size=3) as target:
        assert target.found == 3, "what is too long is cut"
        assert os.pread(target.fd, 10, 0) == b"hal"
        target.commit()
    assert tree.names() - before == {"root/new"}
    assert (tree.root / "new").read_bytes() == b"hal"


def test_a_partial_that_became_the_target_meanwhile_is_not_written_to(tree, monkeypatch):
    """The daemon died between giving the file its name and taking the hidden one away."""
    with partial_target(tree) as target:
        os.write(target.fd, b"done")
    (hidden,) = (name for name in tree.names() if name.endswith(".pfsd-partial"))
    os.link(tree.top / hidden, tree.root / "new")
    with partial_target(tree, replace=True) as target:
        assert target.found == 0
        os.write(target.fd, b"next")
        assert (tree.root / "new").read_bytes() == b"done"
        target.commit()
    assert (tree.root / "new").read_bytes() == b"next"
