"""How a child dies with its parent: started through this file, its group is killed when the parent is gone.

The parent holds the writing end of a pipe, the *lifeline*, and never closes it while the child lives. The
child is started as `python -I -S keeper.py become LIFELINE argv…`, which leaves a *keeper* behind and then
becomes argv: same process id, same exit code, no Python in between. The keeper reads the lifeline. The end
of the file means that the parent is gone, however it went (SIGKILL too, when nothing in the parent can run
any more), and the keeper sends SIGKILL to the child's process group. A byte means that the parent has seen
the child end and has swept its group: the keeper leaves, and kills nobody who may have inherited the
number.

Why not `PR_SET_PDEATHSIG`: it exists on Linux only, reaches the child but not its children, and fires when
the *thread* that started the child ends. The keeper costs about 25 ms at the start and one idle process a
child.

Not promised: a grandchild that moves to a session or group of its own escapes. A process that the parent
forked without exec holds the lifeline as well, and then both must be gone. Nothing is tidied up: it is a
SIGKILL.

Run as a script this file imports nothing of the relay, and little else, because it stands before each child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

#: What a shell answers when a command cannot be run.
CANNOT_RUN = 127

#: Python ignores these at its start, and what is ignored stays so through exec: argv must not inherit that.
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

#: `-I -S`: nothing from the environment, the working directory or site-packages; 10 ms instead of 25.
_THIS_FILE = (sys.executable, "-I", "-S", __file__)


def command(argv: list[str], *, lifeline: int) -> list[str]:
    """Say what to start instead of `argv`.

    `lifeline` is the pipe's reading end, to be passed on as that very descriptor. The command must be
    started as the leader of a new session or process group: the keeper kills the group of its id. An `argv`
    that cannot be run prints why on standard error and exits with `CANNOT_RUN`.
    """
    return [*_THIS_FILE, "become", str(lifeline), *argv]


def become(lifeline: int, argv: list[str]) -> int:
    """Leave a keeper for this process's group, then be `argv`; returns only if that cannot be run."""
    os.set_inheritable(lifeline, False)  # noqa: FBT003 - takes no keyword; argv must not see it
    _leave_keeper(lifeline, group=os.getpid())
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - the point of this file: no shell, no process in between
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
    return CANNOT_RUN


def keep(group: int) -> None:
    """Wait for the end of standard input, which is the lifeline; kill the group unless a byte came first."""
    if not os.read(0, 1):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(group, signal.SIGKILL)


def _leave_keeper(lifeline: int, *, group: int) -> None:
    """Fork twice, so that the keeper is nobody's child: argv must not find one that it did not start."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    try:
        os.setsid()  # out of the group that it may have to kill, and away from the terminal
        if not os.fork():
            _become_keeper(lifeline, group)
    finally:
        os._exit(0)


def _become_keeper(lifeline: int, group: int) -> None:
    """Exec once more: `ps` and `pkill -f` must not take it for the child, whose argv it was forked with."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(lifeline, 0)
    os.dup2(nowhere, 1)  # a pipe on the child's output ends with the child
    os.dup2(nowhere, 2)
    os.chdir("/")
    os.execv(sys.executable, [*_THIS_FILE, "keep", str(group)])  # noqa: S606 - as above


def _main() -> int:
    verb, number, *argv = sys.argv[1:]
    if verb == "become":
        return become(int(number), argv)
    keep(int(number))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
