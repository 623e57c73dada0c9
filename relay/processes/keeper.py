"""Ends a child with its parent: when the parent is gone, the child's process group is killed.

The parent holds the writing end of a pipe, the *lifeline*, and closes it only when the child has ended. The child is
started as `python -I -S keeper.py become LIFELINE argv…`. This starts a *keeper* process and then executes argv: same
process id, same exit code, no Python in between. The keeper reads the lifeline. End of file means that the parent is
gone, for whatever reason (after SIGKILL no code of the parent can run), and the keeper sends SIGKILL to the child's
group. A byte means that the parent has seen the child end and has killed the rest of its group. The keeper then
exits, and kills no other process that may have got the number.

The platform has no replacement: `PR_SET_PDEATHSIG` exists on Linux only, reaches the child but not the processes of
its pool, and fires when the *thread* that started the child ends. The keeper costs about 25 ms at the start, and one
idle process a child.

Not promised: a grandchild that moves to a session or group of its own survives. A process that the parent forked
without exec also holds the lifeline, so the child lives until that one has ended too. SIGKILL allows no clean-up.

As a script this file imports no other module of the relay, and few at all, because it delays the start of each child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

#: Exit code of a shell for a command that cannot be run.
CANNOT_RUN = 127

#: Signals that Python ignores from its start. An ignored signal stays ignored after exec, and argv must not inherit
#: that.
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

#: `-I -S`: nothing from the environment, the working directory or site-packages; 10 ms instead of 25.
_THIS_FILE = (sys.executable, "-I", "-S", __file__)


def command(argv: list[str], *, lifeline: int) -> list[str]:
    """Return the command to start instead of `argv`, as the leader of a new session or process group.

    `lifeline` is the pipe's reading end, inherited under this number. The keeper kills the group with the child's
    process id. If `argv` cannot be run, the command prints the reason on standard error and exits with `CANNOT_RUN`.
    """
    return [*_THIS_FILE, "become", str(lifeline), *argv]


def become(lifeline: int, argv: list[str]) -> int:
    """Start a keeper for this process's group, then execute `argv`; return only if that is impossible."""
    os.set_inheritable(lifeline, False)  # noqa: FBT003 - takes no keyword; argv must not inherit it
    _start_keeper(lifeline, group=os.getpid())
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell and no process in between
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
    return CANNOT_RUN


def keep(group: int) -> None:
    """Read the lifeline, which is standard input; kill the group at its end, and do nothing after a byte."""
    if not os.read(0, 1):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(group, signal.SIGKILL)


def _start_keeper(lifeline: int, *, group: int) -> None:
    """Fork twice, so that the keeper is no child of argv, which must not find a child that it did not start."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    try:
        os.setsid()  # out of the group that it kills, and off the terminal
        if not os.fork():
            _become_keeper(lifeline, group)
    finally:
        os._exit(0)


def _become_keeper(lifeline: int, group: int) -> None:
    """Exec again, so that `ps` and `pkill -f` do not show the keeper with the argv of the child."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(lifeline, 0)
    os.dup2(nowhere, 1)  # so that a pipe on the child's output ends with the child
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
