"""A relay before the registry that can be told to misbehave, in a process of its own."""

import contextlib
import random
import socket
import sys
import threading
import time

from testbed.kits import MIB
from testbed.processes import end, talking


class Relay:
    """A process between kitfs and the registry, which passes bytes on as it is told."""

    #: What it can do. `slow` has an argument: milliseconds for each 256 KiB.
    MODES = ["pass", "cut", "delay", "corrupt", "refuse", "stall"]

    def __init__(self, upstream, stack):
        self.process = talking([sys.executable, "-m", "soaking.relay", upstream])
        stack.callback(end, self.process)
        self.host = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def set(self, mode):
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


# ---- the relay's process


def relay(upstream):
    host, port = upstream.split(":")
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    mode = {"is": "pass"}
    threading.Thread(target=accept, args=(listener, (host, int(port)), mode), daemon=True).start()
    for line in sys.stdin:
        mode["is"] = line.strip()
        print(flush=True)


def accept(listener, upstream, mode):
    while True:
        client, _ = listener.accept()
        if mode["is"] == "refuse":
            client.close()
            continue
        try:
            server = socket.create_connection(upstream, timeout=30)
            server.settimeout(None)
        except OSError:
            client.close()
            continue
        for one, other, spoils in [(client, server, False), (server, client, True)]:
            threading.Thread(target=pass_on, args=(one, other, mode, spoils), daemon=True).start()


def pass_on(source, target, mode, spoils):
    until_cut = random.randint(100, 3 * MIB)
    buffer = bytearray(256 << 10)
    try:
        while count := source.recv_into(buffer):
            if spoils:
                how, _, argument = mode["is"].partition(" ")
                if how == "cut":
                    until_cut -= count
                    if until_cut < 0:
                        break
                elif how == "refuse":
                    break
                elif how == "delay":
                    time.sleep(random.uniform(0.05, 0.6))
                elif how == "slow":
                    time.sleep(int(argument) / 1000 * count / len(buffer))
                elif how == "corrupt" and count > 700 and random.random() < 0.5:
                    # Behind the headers of an answer, mostly.
                    buffer[random.randrange(count * 3 // 4, count)] ^= 1 << random.randrange(8)
                while mode["is"] == "stall":
                    time.sleep(0.1)
            target.sendall(memoryview(buffer)[:count])
    except OSError:
        pass
    # They are closed when the thread of the other direction has let go of them too: a number that is free may be another connection's.
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    relay(sys.argv[1])
