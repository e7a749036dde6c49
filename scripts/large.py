#!/usr/bin/env python3
"""Mounts a kit of a million small files, and one with a layer of 20 GiB in which one file has more than 8: lists, reads at random, measures.

    scripts/large.py --kitfs target/release/kitfs [--only files,bytes]

As root. The layouts are sparse; the cache is not: `bytes` needs 21 GiB in LARGE_DIR (/var/tmp). Everything is removed at the end. It fails if a byte
is wrong or the worker has more anonymous memory than 150 MiB.
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

# Nothing is left in the tree.
sys.dont_write_bytecode = True

from testbed.kitfs import KitfsApart  # noqa: E402
from testbed.kits import MIB, layout, tar  # noqa: E402
from testbed.processes import Most, environment, watched  # noqa: E402

GIB = 1 << 30
ANONYMOUS_MIB = 150


class Large:
    """A kit of one layer, in a layout and mounted, and a look at the worker's memory."""

    def __init__(self, program, folder):
        self.folder, self.layout, self.point = folder, folder / "layout", folder / "mnt"
        self.kitfs = KitfsApart(program, folder, environment(folder))

    def pack(self, entries):
        layer = tar(self.folder / "layer.tar", "dataset", "data", entries)
        layout(self.layout, "large", [layer])
        print(f"  layer: {layer.size / MIB:.0f} MiB")

    @contextlib.contextmanager
    def mounted(self):
        """Mounts it and looks; it fails if the worker had too much memory, or is another one at the end."""
        self.point.mkdir()
        with Timed("mount"):
            self.kitfs.must("mount", f"oci:{self.layout}", self.point)
        worker, most = self.worker(), Most()
        with watched([worker], [most]):
            yield self.point
            assert self.worker() == worker, "the worker died on the way"
        self.kitfs.must("umount", self.point)
        print(f"  anonymous memory of the worker: {most.anon // MIB} MiB at most")
        assert most.anon // MIB < ANONYMOUS_MIB, f"more than {ANONYMOUS_MIB} MiB"

    def worker(self):
        return self.kitfs.status(self.point)[0]["worker_pid"]


class Timed:
    def __init__(self, what):
        self.what = what

    def __enter__(self):
        self.began = time.monotonic()

    def __exit__(self, *_):
        print(f"  {self.what}: {time.monotonic() - self.began:.1f} s", flush=True)


def files(large):
    count = 1_000_000
    print(f"{count} files in one layer")
    name = lambda number: f"{number % 1000:03}/{number:07}.txt"
    content = lambda number: f"this is file {number}\n".encode()
    large.pack((name(number), len(content(number)), [content(number)]) for number in range(count))
    with large.mounted() as point:
        data = point / "data"
        with Timed("first read, with all of the ingest"):
            assert (data / name(7)).read_bytes() == content(7)
        with Timed("list everything"):
            seen = sum(len(entries) for _, _, entries in os.walk(data))
        assert seen == count, seen
        with Timed("read 20000 at random"):
            for number in random.Random(1).sample(range(count), 20_000):
                assert (data / name(number)).read_bytes() == content(number), number


def bytes_(large):
    print("20 GiB in one layer, 9 GiB in one file")
    sizes = {"large.bin": 9 * GIB + 12_345, "other.bin": 11 * GIB}
    numbers = random.Random(2)
    marks = {}
    for name, size in sizes.items():
        offsets = sorted(numbers.sample(range(0, size - 64, 4099), 300))
        marks[name] = [(offset, f"mark data/{name} {offset}".encode()) for offset in offsets]
    with Timed("hashing it"):
        large.pack([*((name, size, sparse(size, marks[name])) for name, size in sizes.items()), ("small.txt", 7, [b"the end"])])
    with large.mounted() as point:
        data = point / "data"
        with Timed("first read, with all of the ingest"):
            assert (data / "small.txt").read_bytes() == b"the end"
        with Timed("600 reads at random"):
            for name, size in sizes.items():
                assert (data / name).stat().st_size == size
                with open(data / name, "rb") as file:
                    for offset, content in numbers.sample(marks[name], len(marks[name])):
                        assert os.pread(file.fileno(), len(content), offset) == content, (name, offset)
                    assert os.pread(file.fileno(), 100, size - 50) == b"\0" * 50


def sparse(size, marks):
    """The pieces of a file of zeros but for a few marks, which are (offset, bytes)."""
    at = 0
    for offset, content in marks:
        yield offset - at
        yield content
        at = offset + len(content)
    yield size - at


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kitfs", type=Path, required=True)
    parser.add_argument("--only", default="files,bytes")
    options = parser.parse_args()
    for part in options.only.split(","):
        folder = Path(tempfile.mkdtemp(prefix="kitfs-large-", dir=os.environ.get("LARGE_DIR", "/var/tmp")))
        large = Large(options.kitfs.resolve(), folder)
        try:
            {"files": files, "bytes": bytes_}[part](large)
        finally:
            # Only if something went wrong is it still there.
            large.kitfs.clear()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
