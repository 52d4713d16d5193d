"""SIGTERM in the midst of load."""

import socket
import threading
import time
from collections import Counter

import httpx
from loads import AT_ONCE, SECONDS, Mix
from served import Server, stop

_BROKEN = 8  # uploads whose clients go away
_STOP_SECONDS = 60.0  # in which the service must have answered what it had accepted


def sigterm(server: Server, mix: Mix, seconds: float = 3.0) -> tuple[str, bool]:
    """Stops the service under load; returns a table, and whether all that was accepted is answered.

    Every request has a connection of its own. One that was under way when the signal came was
    accepted; later ones may be refused, but what is answered must be right. Uploads that broke off
    before the signal, or do so after it, must not hold up the end.
    """
    outcomes: Counter[str] = Counter()
    signalled = threading.Event()
    end = threading.Event()

    def client(place: int) -> None:
        number = place
        while not end.is_set():
            own = mix.pictures[number % len(mix.pictures)]
            number += AT_ONCE
            when = "after" if signalled.is_set() else "before"
            try:
                answer = httpx.post(
                    f"{server.url}/segment",
                    files={"file": ("x", own.data)},
                    timeout=SECONDS,
                    trust_env=False,
                )
            except httpx.ConnectError:  # nobody accepted it
                when = "after" if signalled.is_set() else "before"
                outcomes[f"{when}, not connected"] += 1
                if signalled.is_set():
                    return
            except httpx.HTTPError as error:
                outcomes[f"{when}, lost ({type(error).__name__})"] += 1
            else:
                right = answer.status_code == 200 and own.is_answered_by(answer.json()["mask_png"])
                refused = answer.status_code == 503
                said = "answered" if right else "refused with 503" if refused else "wrong"
                outcomes[f"{when}, {said}"] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    broken = [_half_sent(server, mix.pictures[n].data) for n in range(_BROKEN)]
    time.sleep(seconds)
    for one in broken[::2]:
        one.close()
    signalled.set()
    begun = time.perf_counter()
    later = threading.Timer(0.5, lambda: [one.close() for one in broken])
    later.start()
    status = stop(server.process, _STOP_SECONDS)
    took = time.perf_counter() - begun
    end.set()
    for thread in threads:
        thread.join()
    bad = {"before, wrong", "after, wrong", "before, not connected"}
    fine = not any(name in bad or ", lost" in name for name in outcomes) and status == 0
    rows = [f"| sent {name} | {n} |" for name, n in sorted(outcomes.items())]
    rows.append(f"| uploads that broke off | {len(broken)} |")
    rows.append(f"| the service ended | after {took:.1f} s with status {status} |")
    return "\n".join(["| SIGTERM under load | |", "|---|--:|", *rows]), fine


def _half_sent(server: Server, data: bytes) -> socket.socket:
    """Begins to upload a file; returns the connection, on which the rest never comes."""
    url = httpx.URL(server.url)
    head = "POST /segment HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(head.encode() + data[: len(data) // 2])
    return connection
