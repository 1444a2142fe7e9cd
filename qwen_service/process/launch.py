"""Become another program that dies with its parent: `python -I -S launch.py PARENT_PID PROGRAM [ARGUMENT...]`.

It does what preexec_fn would do between fork and exec, which is unsafe in a process with threads.
On Linux the kernel then kills the program as soon as the thread that started it is gone, kill -9 included.
Exit 126: the program cannot be executed. Imports nothing of the service: it must start in milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, argv: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl
        sys.exit(1)
    # Signals that this interpreter, a shell's `&` or nohup made the child ignore.
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(argv[0], argv)  # noqa: S606  # no shell is what we want
    except OSError as error:
        sys.stderr.write(f"{argv[0]} cannot be executed: {error.strerror}\n")
        sys.exit(126)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
