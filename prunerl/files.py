"""Write files whole or not at all, and tell two of them apart."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunerl.errors import RunError

_MENDS = {
    errno.ENOSPC: "Free some space there, or choose another folder.",
    errno.EDQUOT: "Free some of your quota there, or choose another folder.",
    errno.ENOENT: "Create the folder first.",
    errno.ENOTDIR: "Choose a path whose parent is a folder.",
    errno.EEXIST: "Choose another path, or move it away.",
    errno.ENOTEMPTY: "Choose another path, or move it away.",
    errno.EISDIR: "Choose a path that is not a folder.",
    errno.EACCES: "Allow writing to the folder, or choose another one.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` to ``path``: afterwards the file is either the new one, whole, or what it was before.

    Text is written as UTF-8; what UTF-8 cannot hold (halves of surrogate pairs, from undecodable file names) is
    written as ``\\udcXX``, which JSON reads back. A link is followed.

    Raises:
        RunError: The file cannot be written, for instance because the disk is full. No other file is left behind.
    """
    target = Path(os.path.realpath(path))
    # Within one folder a rename is atomic; across file systems it would be a copy.
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        # Not tempfile: its files are readable by their owner only, and the result would be too.
        with open(temporary, "xb") as file:
            file.write(_bytes(data))
            file.flush()
            # Otherwise a power cut may leave the new name on a file whose contents never arrived.
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        mend = _MENDS.get(error.errno or 0, "Check the disk and the folder, or choose another one.")
        raise RunError(f"Cannot write {str(path)!r}: {reason}. {mend}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Fill a folder that appears at ``path`` once it is whole, and not at all where filling it fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with new_folder(Path(parent) / "new") as folder:
    ...         write_atomically(folder / "file", "text")
    ...     sorted(p.name for p in Path(parent, "new").iterdir())
    ['file']

    Raises:
        RunError: There is something at ``path`` already, or it cannot be written; what was there stays.
    """
    target = Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary.mkdir()
        yield temporary
        os.rename(temporary, target)  # fails where a folder with files in it has appeared meanwhile
    except OSError as error:
        if isinstance(error, RunError):
            raise
        reason = error.strerror or str(error) or type(error).__name__
        mend = _MENDS.get(error.errno or 0, "Check the disk and the folder, or choose another one.")
        raise RunError(f"Cannot write folder {str(path)!r}: {reason}. {mend}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def digest(data: bytes | str) -> str:
    """Return the SHA-256 of ``data`` (text as ``write_atomically`` writes it) as 64 hexadecimal digits.

    >>> digest("")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(_bytes(data)).hexdigest()


def _bytes(data: bytes | str) -> bytes:
    return data.encode("utf-8", errors="backslashreplace") if isinstance(data, str) else data
