"""Write files whole or not at all, and tell two of them apart."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from pathlib import Path

from prunerl.errors import RunError

_MENDS = {
    errno.ENOSPC: "Free some space there, or choose another folder.",
    errno.EDQUOT: "Free some of your quota there, or choose another folder.",
    errno.ENOENT: "Create the folder first.",
    errno.ENOTDIR: "Choose a path whose parent is a folder.",
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


def digest(data: bytes | str) -> str:
    """Return the SHA-256 of ``data`` (text as ``write_atomically`` writes it) as 64 hexadecimal digits.

    >>> digest("")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(_bytes(data)).hexdigest()


def _bytes(data: bytes | str) -> bytes:
    return data.encode("utf-8", errors="backslashreplace") if isinstance(data, str) else data
