"""What processes leave behind on a machine: themselves, ports they listen on, shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Traces:
    """Collects what our processes hold while they run; afterwards, what is left of it.

    Args:
        mark: NAME=VALUE in the environment of every process that is ours.
    """

    mark: str
    sessions: set[int] = field(default_factory=set)
    _ports: set[tuple[str, int]] = field(default_factory=set)
    _files: set[str] = field(default_factory=set)
    _pids: set[int] = field(default_factory=set)

    def collect(self) -> None:
        """Call it while they run, before each of them ends."""
        for pid in self._ours():
            self._pids.add(pid)
            try:
                self._ports |= {
                    (str(c.laddr.ip), int(c.laddr.port))
                    for c in psutil.Process(pid).net_connections("inet")
                    if c.status == psutil.CONN_LISTEN
                }
                self._files |= {
                    line.split()[5]
                    for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
                    if str(_SHARED_MEMORY) in line
                }
            except (psutil.Error, OSError):
                continue

    @property
    def num_ports(self) -> int:
        return len(self._ports)

    def left(self) -> list[str]:
        """In words; empty if nothing is left."""
        found = [
            f"process {pid}: {' '.join(psutil.Process(pid).cmdline())[:200]}"
            for pid in self._ours()
            if psutil.pid_exists(pid)
        ]
        listening = {
            (str(c.laddr.ip), int(c.laddr.port))
            for c in psutil.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
        found += [f"port {address}:{port}" for address, port in sorted(self._ports & listening)]
        found += [f"shared memory {file}" for file in sorted(self._files) if Path(file).exists()]
        return found + [
            f"System V shared memory {segment}"
            for segment, creator in _segments()
            if creator in self._pids
        ]

    def _ours(self) -> list[int]:
        return [pid for pid in psutil.pids() if pid != os.getpid() and self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        """By session too: Ray's workers write their title over their environment."""
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
            return os.getsid(pid) in self.sessions or self.mark.encode() in Path(
                f"/proc/{pid}/environ"
            ).read_bytes().split(b"\0")
        except (psutil.Error, OSError):
            return False


def _segments() -> Iterable[tuple[int, int]]:
    """Identifier and creator of each System V segment."""
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        words = line.split()
        yield int(words[1]), int(words[4])
