"""Contents: what is in the layers that are loaded, packed and pushed, with a table of what a reader has to see of it."""

import hashlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

from testbed import kits
from testbed.kits import MIB

#: Files from this size on repeat themselves, but for a number in each piece; making gigabytes by chance would take longer than what is measured.
LARGE = 256 * MIB
#: How large those pieces are: more than any compressor here looks back.
APART = 16 * MIB
#: What is packed here is measured as it is read: the fastest will do. But zstd looks back 8 MiB, as in what kit packs: readers keep as much in memory, or twice.
FAST = {"gzip": ["-1"], "zstd": ["-1", "--long=23", "-q"]}


@dataclass
class Kit(kits.Kit):
    """What was pushed, and the file with the table of what a mount of it has to show."""

    table: Path


@dataclass
class Layer:
    """One layer to be packed: a tar of files, or one raw file. A file is (seed, size, whether it is dull)."""

    kind: str
    path: str
    files: dict
    coding: str = ""
    raw: bool = False

    def pack(self, file, truth, shown):
        """Packs it. What a reader has to see is written below `truth`, and {path: [size, SHA-256]} into `shown`."""
        if self.raw:
            [(seed, size, dull)] = self.files.values()
            layer = kits.raw(file, self.kind, self.path, seen(self.path, content(seed, size, dull), size, truth, shown))
        else:
            layer = kits.tar(file, self.kind, self.path, self.entries(truth, shown))
        if not self.coding:
            return layer
        coded = kits.compressed(layer, self.coding, *FAST[self.coding])
        file.unlink()
        return coded

    def entries(self, truth, shown):
        folders = set()
        for name, (seed, size, dull) in self.files.items():
            folder = name.rpartition("/")[0]
            if folder and folder not in folders:
                folders.add(folder)
                yield f"{folder}/", 0, None
            yield name, size, seen(f"{self.path}/{name}", content(seed, size, dull), size, truth, shown)


def push(registry, name, layers, tag="v1"):
    """Packs and pushes a kit, layer by layer."""
    truth, table = registry.folder / "truth" / f"{name}-{tag}", registry.folder / "truth" / f"{name}-{tag}.json"
    shown = {}
    kit = registry.push(name, (layer.pack(registry.folder / "layer.plain", truth, shown) for layer in layers), tag)
    table.write_text(json.dumps({"truth": str(truth), "files": shown}))
    return Kit(**vars(kit), table=table)


def seen(path, pieces, size, truth, shown):
    """Passes the pieces of a file on, and keeps what they are."""
    place = truth / path
    place.parent.mkdir(parents=True, exist_ok=True)
    check = hashlib.sha256()
    # Of very large ones the digest has to do.
    with open(place if size < LARGE else os.devnull, "wb") as copy:
        for piece in pieces:
            copy.write(piece)
            check.update(piece)
            yield piece
    shown[path] = [size, check.hexdigest()]


def content(seed, size, dull):
    """The bytes of a file, piece by piece; dull ones can be compressed to a quarter."""
    numbers = random.Random(seed)

    def piece(length):
        if not dull:
            return numbers.randbytes(length)
        quarter = numbers.randbytes(length // 4 + 1)
        return b"".join(quarter[at : at + 64] * 4 for at in range(0, len(quarter), 64))[:length]

    if size >= LARGE:
        whole = piece(APART)
        for number in range(size // APART):
            yield number.to_bytes(8, "little") + whole[8:]
        yield whole[: size % APART]
        return
    for at in range(0, size, MIB):
        yield piece(min(size - at, MIB))


def small_files(seed, count, low=200, high=16_000, dull=False):
    numbers = random.Random(seed)
    return {f"{number // 100:03}/{number:05}.txt": (seed * 100_000 + number, numbers.randint(low, high), dull) for number in range(count)}
