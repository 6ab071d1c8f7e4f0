"""Files that are written whole: what was at a path stays until the new one is complete."""

import contextlib
import errno
import io
import os
import stat
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is the old one or the new one at any time.

    Only a regular file is ever replaced. A link to one stays, and what it leads to is replaced.

    Args:
        path: where.
        content: the whole of it; text is written in UTF-8.

    Raises:
        OSError: if it cannot be written, with its name, or is a folder, a device, a pipe or a
            socket; what was there stays.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "table.md"
        ...     write_atomically(path, "new")
        ...     path.read_text()
        'new'
    """
    try:
        target = replaceable(path)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            temporary.unlink(missing_ok=True)  # of a writer that was killed
            with temporary.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())  # a disk that is full may report it only now
            os.replace(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise naming(path, error) from None


def replaceable(path: Path) -> Path:
    """The regular file, there or not yet, that a path leads to.

    Raises:
        OSError: if it leads to something else.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "is a folder; only files are replaced", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is no regular file; only those are replaced", str(path))
    return target


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Draws a figure of matplotlib into a file, in the format that the path's ending names.

    Args:
        path: where.
        figure: the figure.

    Raises:
        OSError: as from `write_atomically`.
        ValueError: if matplotlib knows no such format.
    """
    path, drawn = Path(path), io.BytesIO()
    figure.savefig(drawn, dpi=max(120, figure.dpi), format=path.suffix.removeprefix(".") or "png")
    write_atomically(path, drawn.getvalue())


def naming(path: Path, error: OSError) -> OSError:
    """The same error, of the file that was to be written."""
    return OSError(error.errno, error.strerror, str(path))
