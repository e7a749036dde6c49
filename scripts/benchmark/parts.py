"""Where a worker's CPU time goes: perf's samples, sorted by what the sampled code is for, share out the time that the kernel accounts to the process."""

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

# In this order: the first that any frame of a sample matches, from the innermost outwards.
KERNEL = [
    ("copy, out of the socket", re.compile(r"recvmsg|recvfrom|tcp_|sock_read|skb_")),
    ("write, into the page cache", re.compile(r"vfs_write|ksys_write|pwrite|vfs_writev|fallocate|sync_file_range|fsync|fdatasync")),
]
USER = [
    ("TLS", re.compile(r"aes|gcm|ghash|aws_lc|rustls|chacha|poly1305", re.IGNORECASE)),
    ("hash (SHA-256)", re.compile(r"sha2|sha256|sha512|compress256", re.IGNORECASE)),
    ("copy, in memory", re.compile(r"mem(cpy|move|set)|copy_from_slice|ptr::copy", re.IGNORECASE)),
]
REST = "the rest"
PARTS = [name for name, _ in USER + KERNEL] + [REST]


class Parts:
    def __init__(self, rig):
        self.rig = rig
        self.seconds = {}

    @contextlib.contextmanager
    def meanwhile(self, _, worker):
        """Looks at the worker while what is measured runs."""
        before = cpu_seconds(worker)
        with self.rig.scratch() as folder:
            perf = None
            if shutil.which("perf"):
                command = ["perf", "record", "-q", "-g", "-F", "997", "-o", f"{folder}/data", "-p", str(worker)]
                perf = subprocess.Popen(command, stderr=subprocess.PIPE)
                # It does not say when it has begun.
                time.sleep(0.5)
            yield
            spent = cpu_seconds(worker) - before
            shares = {}
            if perf:
                perf.send_signal(signal.SIGINT)
                perf.communicate()
                shares = sort(f"{folder}/data")
                self.rig.note(f"  samples by part: {dict(shares)}")
            else:
                print("perf is missing (apt-get install linux-perf): no CPU time by part", file=sys.stderr)
            total = sum(shares.values())
            self.seconds = {part: spent * shares[part] / total for part in PARTS} if total else {}
            self.seconds["in all"] = spent

    def per_gigabyte(self, size):
        return {part: seconds * 1e9 / size for part, seconds in self.seconds.items()}


def cpu_seconds(process):
    """Of all threads, those that have ended too."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sort(data):
    """Counts the samples of a recording by part."""
    text = subprocess.run(["perf", "script", "-i", data, "-F", "comm,ip,sym"], capture_output=True, text=True, errors="replace", check=True).stdout
    counts = collections.Counter()
    for sample in text.split("\n\n"):
        frames = [line.split(None, 1) for line in sample.splitlines()[1:]]
        frames = [(address, symbol) for address, symbol in (frame for frame in frames if len(frame) == 2)]
        if frames:
            counts[part_of(frames)] += 1
    return counts


def part_of(frames):
    if len(frames[0][0]) >= 16 and frames[0][0].startswith("ffff"):
        symbols = " ".join(symbol for address, symbol in frames if address.startswith("ffff"))
        return next((part for part, pattern in KERNEL if pattern.search(symbols)), REST)
    for _, symbol in frames:
        for part, pattern in USER:
            if pattern.search(symbol):
                return part
    return REST
