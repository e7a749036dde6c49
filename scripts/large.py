#!/usr/bin/env python3
"""Mounts a kit of a million small files, and one with a layer of 20 GiB in which one file has more than 8: lists, reads at random, measures.

    scripts/large.py --kitfs target/release/kitfs [--only files,bytes]

As root. The layouts are sparse; the cache is not: `bytes` needs 21 GiB in LARGE_DIR (/var/tmp). Everything is removed at the end. It fails if a byte
is wrong or the worker has more anonymous memory than 150 MiB.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
TAR = "application/vnd.kitops.modelkit.dataset.v1.tar"
MIB = 1 << 20
GIB = 1 << 30
ANONYMOUS_MIB = 150


def header(name, size, kind=b"0"):
    field = b"%011o\0" % size if size < 8 * GIB else b"00000000000\0"
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0001750\0" + b"0000000\0" + field + b"00000000000\0" + b" " * 8 + kind
    block = (block.ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
    if size >= 8 * GIB:
        # As Go writes it: the size stands in a PAX record alone.
        record = b"size=%d\n" % size
        record = b"%d %s" % (len(record) + 3, record)
        return header(b"PaxHeaders.0/x", len(record), b"x") + record.ljust(512, b"\0") + block
    return block


class Layout:
    """An OCI layout with one layer, written entry by entry."""

    def __init__(self, folder):
        self.folder = folder
        self.blobs = folder / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        self.layer = open(self.blobs / "layer", "wb")

    def add(self, name, content):
        self.layer.write(header(name, len(content)) + content.ljust(-len(content) % 512 + len(content), b"\0"))

    def add_hole(self, name, size, marks):
        """A file of zeros but for a few marks, which are (offset, bytes)."""
        self.layer.write(header(name, size))
        start = self.layer.tell()
        for offset, content in marks:
            self.layer.seek(start + offset)
            self.layer.write(content)
        self.layer.seek(start + size + -size % 512)

    def finish(self):
        self.layer.write(b"\0" * 1024)
        self.layer.close()
        with open(self.blobs / "layer", "rb") as layer:
            digest = hashlib.file_digest(layer, "sha256").hexdigest()
        size = (self.blobs / "layer").stat().st_size
        (self.blobs / "layer").rename(self.blobs / digest)
        digest = f"sha256:{digest}"
        config = self.put(CONFIG, {"manifestVersion": "1.0.0", "datasets": [{"path": "data", "digest": digest}]})
        layers = [{"mediaType": TAR, "digest": digest, "size": size}]
        manifest = self.put(MANIFEST, {"schemaVersion": 2, "config": config, "layers": layers})
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
        return size

    def put(self, media_type, document):
        content = json.dumps(document).encode()
        digest = hashlib.sha256(content).hexdigest()
        (self.blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


class Mount:
    def __init__(self, kitfs, layout, folder):
        self.kitfs, self.point = kitfs, folder / "mnt"
        self.point.mkdir()
        self.environment = dict(os.environ, KITFS_CACHE_DIR=str(folder / "cache"))
        self.run("mount", f"oci:{layout}", self.point)
        self.worker = self.status()["worker_pid"]
        self.peak, self.over = 0, threading.Event()
        self.watch = threading.Thread(target=self.look)
        self.watch.start()

    def run(self, *arguments):
        return subprocess.run([self.kitfs, *map(str, arguments)], env=self.environment, check=True, stdout=subprocess.PIPE).stdout

    def status(self):
        status = json.loads(self.run("status", "--json", self.point))
        return status["mounts"][0]

    def look(self):
        while not self.over.wait(0.02):
            try:
                text = Path(f"/proc/{self.worker}/status").read_text()
            except FileNotFoundError:
                return
            self.peak = max(self.peak, *(int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith("RssAnon:")))

    def umount(self):
        assert self.status()["worker_pid"] == self.worker, "the worker died on the way"
        self.over.set()
        self.watch.join()
        self.run("umount", self.point)
        print(f"  anonymous memory of the worker: {self.peak} MiB at most")
        assert self.peak < ANONYMOUS_MIB, f"more than {ANONYMOUS_MIB} MiB"


class Timed:
    def __init__(self, what):
        self.what = what

    def __enter__(self):
        self.began = time.monotonic()

    def __exit__(self, *_):
        print(f"  {self.what}: {time.monotonic() - self.began:.1f} s", flush=True)


def files(kitfs, folder):
    count = 1_000_000
    print(f"{count} files in one layer")
    layout = Layout(folder / "layout")
    name = lambda number: f"data/{number % 1000:03}/{number:07}.txt"
    content = lambda number: f"this is file {number}\n".encode()
    for number in range(count):
        layout.add(name(number).encode(), content(number))
    print(f"  layer: {layout.finish() / MIB:.0f} MiB")
    with Timed("mount"):
        mount = Mount(kitfs, folder / "layout", folder)
    with Timed("first read, with all of the ingest"):
        assert (mount.point / name(7)).read_bytes() == content(7)
    with Timed("list everything"):
        seen = sum(len(entries) for _, _, entries in os.walk(mount.point / "data"))
    assert seen == count, seen
    with Timed("read 20000 at random"):
        for number in random.Random(1).sample(range(count), 20_000):
            assert (mount.point / name(number)).read_bytes() == content(number), number
    mount.umount()


def bytes_(kitfs, folder):
    print("20 GiB in one layer, 9 GiB in one file")
    layout = Layout(folder / "layout")
    sizes = {"data/large.bin": 9 * GIB + 12_345, "data/other.bin": 11 * GIB}
    numbers = random.Random(2)
    marks = {}
    for name, size in sizes.items():
        offsets = sorted(numbers.sample(range(0, size - 64, 4099), 300))
        marks[name] = [(offset, f"mark {name} {offset}".encode()) for offset in offsets]
        layout.add_hole(name.encode(), size, marks[name])
    layout.add(b"data/small.txt", b"the end")
    with Timed("hashing it"):
        print(f"  layer: {layout.finish() / MIB:.0f} MiB")
    with Timed("mount"):
        mount = Mount(kitfs, folder / "layout", folder)
    with Timed("first read, with all of the ingest"):
        assert (mount.point / "data/small.txt").read_bytes() == b"the end"
    with Timed("600 reads at random"):
        for name, size in sizes.items():
            assert (mount.point / name).stat().st_size == size
            with open(mount.point / name, "rb") as file:
                for offset, content in numbers.sample(marks[name], len(marks[name])):
                    assert os.pread(file.fileno(), len(content), offset) == content, (name, offset)
                assert os.pread(file.fileno(), 100, size - 50) == b"\0" * 50
    mount.umount()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kitfs", type=Path, required=True)
    parser.add_argument("--only", default="files,bytes")
    options = parser.parse_args()
    for part in options.only.split(","):
        folder = Path(tempfile.mkdtemp(prefix="kitfs-large-", dir=os.environ.get("LARGE_DIR", "/var/tmp")))
        try:
            {"files": files, "bytes": bytes_}[part](options.kitfs.resolve(), folder)
        finally:
            # Only if something went wrong is it still there.
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run([options.kitfs.resolve(), "umount", "--lazy", folder / "mnt"], check=False, **quiet)
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
