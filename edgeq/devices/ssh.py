"""Linux boards and other machines over ssh: ``ssh:HOST``, ``ssh:USER@HOST:PORT``."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.device_report import DeviceInfo
from edgeq.devices.linux import describe_linux
from edgeq.devices.native import Programs, run_native
from edgeq.devices.programs import find_runner
from edgeq.devices.protocol import Job, Outcome
from edgeq.devices.runtimes import board_runtime
from edgeq.devices.ssh_client import Host, parse_host
from edgeq.devices.ssh_transport import SshTransport, connected
from edgeq.errors import EdgeqError, ProviderError
from edgeq.progress import Progress

__all__ = ["SshDevice"]

_ABIS = ("linux-aarch64", "linux-x86_64")


@dataclass(frozen=True)
class SshDevice:
    """One host, as ssh knows it: its configuration, keys and agent are used, and nothing is asked."""

    host: Host

    @classmethod
    def parse(cls, value: str) -> SshDevice:
        """Raises ConfigError if ``value`` is no host."""
        return cls(parse_host(value))

    @property
    def spelling(self) -> str:
        return f"ssh:{self.host}"

    @property
    def machine(self) -> str:
        return f"ssh:{self.host.name}"

    def missing(self) -> str | None:
        try:
            with connected(self.host) as board:
                board.run(["true"])
        except EdgeqError as error:
            return f"{error.what}; {error.remedy}" if error.remedy else error.what
        return None

    def describe(self) -> DeviceInfo:
        with connected(self.host) as board:
            return self._describe(board)

    def _describe(self, board: SshTransport) -> DeviceInfo:
        return describe_linux(board, self.spelling, "ssh")

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        del progress  # the runner does not tell how far it is
        with connected(self.host) as board:
            info = self._describe(board)
            if info.abi not in _ABIS:
                raise ProviderError(
                    f"{self.spelling} is {info.abi or 'of an unknown kind'} ({info.os or 'no Linux'}): edgeq's runner "
                    f"and ONNX Runtime exist for {' and '.join(_ABIS)}",
                    remedy="use a board with a 64-bit Linux",
                )
            machine = info.abi.removeprefix("linux-")
            return run_native(board, job, Programs(find_runner(info.abi), board_runtime(machine)), info)
