"""Paths of the daemon's machine that clients name: kept inside the configured directories.

Knows directories and file descriptors; never the store, or what is read and written. A path is resolved once,
and the result must lie below a root and outside what is forbidden. It is then walked again, component by
component from / on, without following any symlink: whatever was swapped in between, a root and what is above it
too, is refused, not followed. From there on only file descriptors count. Messages name paths as the client wrote
them.

Not covered, as no look at a path can: a hard link in a root is a file of that root, whatever other names it has
(the kernel lets only owners and writers make one, `protected_hardlinks`; a target is replaced, never written
through); what is mounted below a root belongs to it; a directory that is moved out of a root while a target is
written in it takes the target along. Magic links (/proc/PID/fd) are symlinks here, and not followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pfsd.errors import Busy, Denied, Exists, NoSpace, RequestError, UsageError, from_os_error

#: The kernel takes no longer paths (PATH_MAX of Linux, less the NUL at the end).
MAX_PATH_BYTES = 4095
#: Of a target's name, this much goes into the name of its temporary file, which may have 255 bytes.
TEMPORARY_NAME_BYTES = 200

_KINDS = {
    stat.S_IFLNK: "a symlink",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: link() is answered so by file systems that have no hard links.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


#: open() for writing is answered so by symlinks that are not to be followed, directories and sockets.
_NO_FILES = {errno.ELOOP, errno.EISDIR, errno.ENXIO}
_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Roots:
    """The directories that clients may name files in.

    Relative paths count from the first root. `forbidden` directories and all below them are out of bounds.
    """

    def __init__(self, roots: Sequence[Path], forbidden: Sequence[Path]) -> None:
        self._base = os.path.abspath(os.fsencode(roots[0]))
        self._roots = [os.path.realpath(os.fsencode(root)) for root in roots]
        self._forbidden = [os.path.realpath(os.fsencode(path)) for path in forbidden]

    def open_source(self, path: bytes) -> int:
        """Open a regular file for reading; the caller closes the fd. Symlinks that stay inside are followed.

        Denied outside the roots and for anything but a regular file, NotFound, UsageError, IoError.
        """
        components = self._resolve(path)
        try:
            fd = _walk(components, path)
            try:
                _check_regular(os.fstat(fd).st_mode, path)
                # By way of the fd in hand: the file that was checked is the file that is opened.
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                return os.open(f"/proc/self/fd/{fd}", flags)
            finally:
                os.close(fd)
        except OSError as error:
            raise from_os_error(error, f"opening {shown(path)}") from error

    def open_parent(self, path: bytes) -> tuple[int, bytes]:
        """Open the directory of a file to be written (O_PATH; the caller closes the fd); also the file's name.

        The file itself may be missing or a regular file. Denied outside the roots and when it is anything
        else, NotFound without the directory, UsageError, IoError.
        """
        parent, name = os.path.split(path)
        if name in (b"", b".", b".."):
            _check(path)
            raise Denied(f"{shown(path)} names a directory, not a file")
        components = self._resolve(path, parent or b".")
        try:
            fd = _walk(components, path)
            try:
                _check_parent(fd, name, path)
            except BaseException:
                os.close(fd)
                raise
            return fd, name
        except OSError as error:
            raise from_os_error(error, f"opening the directory of {shown(path)}") from error

    def _resolve(self, path: bytes, part: bytes | None = None) -> list[bytes]:
        """The way from / to where `part` of `path` (all of it, unless given) leads, which is in a root."""
        _check(path)
        try:
            real = os.path.realpath(os.path.join(self._base, path if part is None else part))
        except OSError as error:
            if error.errno == errno.EINVAL:  # what was a symlink is none any more when it is read
                raise Denied(f"{shown(path)} was changed while it was opened") from error
            raise from_os_error(error, f"opening {shown(path)}") from error
        if not any(_is_within(real, root) for root in self._roots):
            raise Denied(f"{shown(path)} lies outside the directories that clients may use (roots)")
        if any(_is_within(real, forbidden) for forbidden in self._forbidden):
            raise Denied(f"{shown(path)} lies in the store of this daemon")
        return [component for component in real.split(b"/") if component]


def shown(path: bytes) -> str:
    """A path for a message: in quotes, on one line, whatever bytes it has."""
    return repr(path.decode("utf-8", "backslashreplace"))


def _check(path: bytes) -> None:
    if not path:
        raise UsageError("a path is needed, this one is empty")
    if b"\0" in path:
        raise UsageError(f"{shown(path)}: a path cannot hold a NUL byte")
    if len(path) > MAX_PATH_BYTES:
        raise from_os_error(OSError(errno.ENAMETOOLONG, ""), f"a path of {len(path)} bytes")


def _is_within(real: bytes, directory: bytes) -> bool:
    return real == directory or real.startswith(directory.rstrip(b"/") + b"/")


def _walk(components: Sequence[bytes], path: bytes) -> int:
    """Open (O_PATH) what lies at the end of `components`, following no symlink on the way."""
    fd = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for component in components:
        try:
            deeper = os.open(component, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
        # There are no symlinks in a resolved path, unless they run in circles or somebody is making them now.
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise Denied(f"{shown(path)} has a symlink that leads nowhere, or was changed while it was opened")
    return fd


def _check_regular(mode: int, path: bytes) -> None:
    if not stat.S_ISREG(mode):
        raise Denied(f"{shown(path)} is {_KINDS.get(stat.S_IFMT(mode), 'of no known kind')}, not a regular file")


def _check_parent(fd: int, name: bytes, path: bytes) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "")
    mode = _mode_of(fd, name)
    if mode is not None:
        _check_regular(mode, path)


def _mode_of(directory: int, name: bytes) -> int | None:
    """The mode of what has this name, without following it; None when nothing has."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


# --- targets ------------------------------------------------------------------------------------


class TargetFile:
    """A file being written: hidden in the directory of its target until `commit` gives it its name.

    `fd` is open for writing. `close` must be called in any case; without a commit it leaves nothing behind,
    unless the file is a partial one that a later try is to go on with: of that `found` bytes were there.
    """

    def __init__(
        self, fd: int, directory: int, name: bytes, temporary: bytes, path: bytes, replace: bool, kept: bool = False
    ) -> None:
        self.fd = fd
        self.found = os.fstat(fd).st_size if kept else 0
        self._directory = directory
        self._name = name
        self._temporary: bytes | None = temporary
        self._path = path
        self._replace = replace
        self._kept = kept

    @classmethod
    def create(
        cls, roots: Roots, path: bytes, replace: bool, size: int = 0, kept_as: bytes | None = None
    ) -> TargetFile:
        """Begin to write the file `path`, which will have `size` bytes.

        With `kept_as` what is written stays under a name made of it until there is a commit, and the next one
        created with it goes on from there; Busy when somebody else is just doing so. What the partial file holds
        is for the caller to check.
        Without `replace`, Exists when there is a file already. NoSpace when `size` bytes cannot fit. Errors
        of `Roots.open_parent` as well.
        """
        directory, name = roots.open_parent(path)
        try:
            if not replace and _mode_of(directory, name) is not None:
                raise _exists(path)
            if kept_as is None:
                _check_room(directory, size, path)
                temporary = b".%s.pfsd-%s" % (name[:TEMPORARY_NAME_BYTES], secrets.token_hex(8).encode())
                fd = os.open(temporary, _CREATE | os.O_EXCL, 0o600, dir_fd=directory)
            else:
                temporary = partial_name(name, kept_as)
                _check_room(directory, size - _bytes_on_disk(directory, temporary), path)
                fd = _open_partial(directory, temporary, path, size)
        except OSError as error:
            os.close(directory)
            raise _writing_failed(error, path) from error
        except BaseException:
            os.close(directory)
            raise
        return cls(fd, directory, name, temporary, path, replace, kept_as is not None)

    def commit(self, *, sync: bool = False) -> None:
        """Let the file appear under its name, all at once; `sync` makes its content durable first.

        Exists when the name was taken meanwhile, Denied when by something else than a file.
        """
        assert self._temporary is not None
        try:
            os.fchmod(self.fd, 0o666 & ~_umask())
            if sync:
                os.fdatasync(self.fd)
            if self._replace:
                self._rename()
            else:
                self._link(self._temporary)
            self._kept = False
        except OSError as error:
            raise _writing_failed(error, self._path) from error

    def close(self) -> None:
        """Remove what was not committed, unless it is kept, and close what is open. A second call does nothing."""
        if self.fd < 0:
            return
        if self._temporary is not None and not self._kept:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        os.close(self.fd)
        os.close(self._directory)
        self.fd = self._directory = -1

    def __enter__(self) -> TargetFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _link(self, temporary: bytes) -> None:
        """Publish without replacing anything; `close` removes the other name."""
        try:
            os.link(
                temporary,
                self._name,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
                follow_symlinks=False,
            )
        except FileExistsError:
            raise _exists(self._path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Two steps are the best there is: whoever takes the name between them loses it.
            if _mode_of(self._directory, self._name) is not None:
                raise _exists(self._path) from None
            self._rename()

    def _rename(self) -> None:
        assert self._temporary is not None
        _check_parent(self._directory, self._name, self._path)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = None


def partial_name(name: bytes, kept_as: bytes) -> bytes:
    """The name of the partial file for the target `name`: at most 255 bytes, and of no other target."""
    head = b".%s." % name[: TEMPORARY_NAME_BYTES - len(kept_as)]
    return head + b"%s.%08x.pfsd-partial" % (kept_as, zlib.crc32(name))


def _open_partial(directory: int, temporary: bytes, path: bytes, size: int) -> int:
    """Open the partial file of an earlier try, or begin one; locked, so that nobody else writes to it.

    Whatever else has this name is refused: only a regular file of this user is written to.
    """
    while True:
        try:
            # Nonblocking: the open must not wait for the other end of a FIFO.
            fd = os.open(temporary, _CREATE | os.O_NONBLOCK, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_FILES:
                raise
            raise Denied(f"{shown(temporary)}, which would be written, is not a regular file") from error
        try:
            _check_regular(os.fstat(fd).st_mode, temporary)
            if os.fstat(fd).st_uid != os.geteuid():
                raise Denied(f"{shown(temporary)} belongs to another user")
            _lock(fd, path)
            if _is_only_name(directory, temporary, fd):
                os.fchmod(fd, 0o600)
                os.ftruncate(fd, min(size, os.fstat(fd).st_size))
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int, path: bytes) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{shown(path)} is just being written by another get with resume=yes") from None


def _is_only_name(directory: int, name: bytes, fd: int) -> bool:
    """Whether an open, locked file has this name and no other.

    The lock may have been won from a get that has just made the file its target, or removed it. And if the
    daemon died between giving it the target's name and taking this one away, to write here would be to write
    to the target: then this name goes.
    """
    ours = os.fstat(fd)
    try:
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
        return False
    if ours.st_nlink > 1:
        os.unlink(name, dir_fd=directory)
        return False
    return True


def _bytes_on_disk(directory: int, name: bytes) -> int:
    """What a file has of the disk already; 0 when there is none."""
    try:
        return 512 * os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks
    except FileNotFoundError:
        return 0


def _check_room(directory: int, size: int, path: bytes) -> None:
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < size:  # some file systems do not count
        raise NoSpace(f"{shown(path)} needs {size} bytes, its file system has {free} left", free=free)


def _umask() -> int:
    # os.umask can only be read by setting it, which other threads would notice.
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith(b"Umask:"))


def _exists(path: bytes) -> Exists:
    return Exists(f"{shown(path)} exists; replace=yes replaces it")


def _writing_failed(error: OSError, path: bytes) -> RequestError:
    return from_os_error(error, f"writing {shown(path)}")
