"""In a network of its own, from which only this machine is reached, run a command; then print, as JSON, its exit code and what was sent.

`unshare -rn python tests/alone.py COMMAND…`
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40


def counted() -> dict[str, int]:
    """What this network has sent, or could not send for want of a way out."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    found = {
        names[0] + name: int(n)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, n in zip(names[1:], values[1:], strict=True)
    }
    wanted = {"lost": "Ip:OutNoRoutes", "datagrams": "Udp:OutDatagrams", "connections": "Tcp:ActiveOpens"}
    return {name: found[key] for name, key in wanted.items()}


if __name__ == "__main__":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING))
    done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
    print(json.dumps(dict(counted(), code=done.returncode, out=done.stdout, err=done.stderr)))
