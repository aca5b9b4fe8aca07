"""A load tool that runs inside a pod, as a process of its own, and writes what each request took, a JSON object a line.

It looks a name up by the C library, as the pod's resolv.conf says, then asks it for bytes by HTTP, again and again.

    python load_tool.py '[{"name": "checkout", "size": 30000, "every": 0.5, "first": 0, "last": 50, "start": 1.7e9}]'
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import Any

PATIENCE = 10.0
_lock = threading.Lock()


def request(name: str, port: int, size: int) -> dict[str, Any]:
    """One GET on a connection of its own; times in ns, `lookup_ns` and `connect_ns` are parts of `total_ns`."""
    begun, clock = time.time_ns(), time.monotonic_ns()
    done: dict[str, Any] = {"begun": begun, "name": name}
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        done["lookup_ns"] = time.monotonic_ns() - clock
        with socket.socket(found[0][0], socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            asked = time.monotonic_ns()
            connection.connect(found[0][4])
            done["connect_ns"] = time.monotonic_ns() - asked
            done |= {"local": connection.getsockname()[:2], "remote": connection.getpeername()[:2]}
            connection.sendall(f"GET /{size} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            received = 0
            while data := connection.recv(1 << 16):
                received += len(data)
            done["received"] = received
    except OSError as error:
        done["error"] = f"{type(error).__name__}: {error}"
    return done | {"total_ns": time.monotonic_ns() - clock}


def repeat(name: str, size: int, every: float, first: float, last: float, start: float, port: int = 80) -> None:
    """At start + first, and then every so many seconds until start + last; late ones are left out."""
    due = start + first
    while due <= start + last:
        time.sleep(max(due - time.time(), 0))
        line = json.dumps(request(name, port, size))
        with _lock:
            print(line, flush=True)
        while due <= time.time():
            due += every


def main() -> None:
    threads = [threading.Thread(target=repeat, kwargs=target) for target in json.loads(sys.argv[1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
