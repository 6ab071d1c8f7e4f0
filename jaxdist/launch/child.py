"""Becomes a command that ends when its parent does: `python child.py PARENT COMMAND ...`.

Linux then kills the process once its parent, the launcher, is gone, however that ended. A file of
its own, since it is the only safe place for it: between fork and exec of a program with threads
next to nothing may be called.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: str, *command: str) -> None:
    """Replaces this process by the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the signal was set
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"error: {command[0]!r} does not start: {error.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
