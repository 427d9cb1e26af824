"""Commands on another system through a client such as ``adb shell`` or ``ssh``: ended with the client, in any case.

What runs there would go on when the client here is killed, or the cable is pulled. So each command is watched by a
reader of its standard input: when nobody holds the other end any more, the command and its children are killed.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from edgeq.devices.processes import tracked
from edgeq.devices.transport import Completed

__all__ = ["Attempt", "run_client", "run_watched", "watched"]

_LAST_WORDS = re.compile(r"^edgeq-ended (\d+)$", re.MULTILINE)
_GRACE_S = 3.0
_MOST_OUTPUT = 16 * 2**20

_SIGNALLED = range(129, 129 + 64)
"""Exit codes by which a shell says that a signal ended the command: 128 and its number."""


_SCRIPT = (
    "exec 3<&0; "
    "COMMAND </dev/null 3<&- & "
    "child=$!; "
    "{ while read -r line; do :; done; kill -9 -$$ || kill -9 $child $$; } <&3 >/dev/null 2>&1 & "
    "watcher=$!; "
    "exec 3<&-; "
    "wait $child; "
    "code=$?; "
    "kill -9 $watcher 2>/dev/null; "
    "echo; echo edgeq-ended $code >&2; "
    "exit $code"
)
"""For any POSIX shell; one that leads its process group, as under adbd and OpenSSH's server, takes all of it along.

The last line on standard error tells a command's own exit code from the client's. The watcher has no child (``cat``,
say): it would outlive the watcher, and adbd waits for whoever holds the socket that is standard input and output.
"""


@dataclass(frozen=True)
class Attempt:
    """``completed`` is None where the command did not come to its end: the connection broke, or never was.

    ``code`` is the client's own exit code (None: it was ended for taking too long), ``words`` what it said.
    """

    completed: Completed | None
    code: int | None
    words: str


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """``command`` as one line for a POSIX shell, ended with its standard input."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return _SCRIPT.replace("COMMAND", " ".join([*settings, *map(shlex.quote, command)]))


def run_watched(client: Sequence[str], script: str, *, timeout_s: float) -> Attempt:
    """Run what ``watched`` made; ``client`` is the program that takes it as its last argument.

    Raises:
        OSError: the client does not start.
    """
    code, out, err = run_client([*client, script], timeout_s=timeout_s)
    found = _LAST_WORDS.search(err)
    if code is None or found is None:
        return Attempt(None, code, (err or out).strip())
    ended = int(found.group(1))
    own = 128 - ended if ended in _SIGNALLED else ended
    return Attempt(Completed(own, out.removesuffix("\n"), _LAST_WORDS.sub("", err).strip()), code, err.strip())


def run_client(
    command: Sequence[str],
    *,
    timeout_s: float,
    given: IO[bytes] | None = None,
    taken: IO[bytes] | None = None,
) -> tuple[int | None, str, str]:
    """A client's exit code (None: it took too long, and was ended), output and errors.

    Its standard input is the file ``given``, else it stays open until the client ends, or is to end. Its output
    goes to the file ``taken`` and is not returned, if there is one.

    Raises:
        OSError: it does not start.
    """
    # Files, not pipes: a client may leave a process behind that keeps them open (ssh's master, adb's server).
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            list(command), stdin=given or subprocess.PIPE, stdout=taken or out, stderr=err, start_new_session=True
        )
        code: int | None = None
        with tracked(process):
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(process)
        return code, _text(out), _text(err)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let go of the command there; the client ends with it, or is ended."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _text(stream: IO[bytes]) -> str:
    """The last part of it: what it all comes to stands at the end."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _MOST_OUTPUT))
    return stream.read().decode(errors="replace").replace("\r\n", "\n")
