"""Kills what a launcher that was killed leaves behind: `python guard.py`.

In its input `+PID` is the group of a process that was started, `-PID` of one that ended. When the
input ends, so has the launcher, and the groups that are left are killed, grandchildren and all.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Listens until the launcher ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
