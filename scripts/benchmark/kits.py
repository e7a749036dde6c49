"""Contents, layers and kits: what is measured, made here so that anybody gets the same."""

import hashlib
import itertools
import json
import os
import random
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
MIB = 1 << 20


@dataclass
class Layer:
    """A file with a layer's bytes, and what a manifest and a config say of it."""

    file: Path
    kind: str
    path: str
    digest: str
    diff_id: str
    coding: str = ""
    size: int = 0

    def __post_init__(self):
        self.size = self.file.stat().st_size

    @property
    def media_type(self):
        return f"application/vnd.kitops.modelkit.{self.kind}.v1.tar{self.coding and '+' + self.coding}"

    def descriptor(self):
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}

    def entry(self):
        return {"name": self.path.replace("/", "-"), "path": self.path, "digest": self.digest, "diffId": self.diff_id}


@dataclass
class Kit:
    """A kit in a registry."""

    host: str
    name: str
    digest: str
    layers: list

    @property
    def size(self):
        return sum(layer.size for layer in self.layers)

    @property
    def reference(self):
        return self.at(self.host)

    @property
    def by_digest(self):
        return f"{self.host}/{self.name}@{self.digest}"

    @property
    def layer(self):
        return self.layers[0]

    def at(self, host):
        """The same kit by way of another address of its registry."""
        return f"{host}/{self.name}:v1"

    def blob(self, layer=None, host=None, scheme="http"):
        return f"{scheme}://{host or self.host}/v2/{self.name}/blobs/{(layer or self.layer).digest}"


def manifest(name, layers):
    """Manifest and config of a kit of these layers."""
    config = {"manifestVersion": "1.0.0", "package": {"name": name}}
    for layer in layers:
        if layer.kind == "model":
            config["model"] = layer.entry()
        elif layer.kind == "modelpart":
            config["model"].setdefault("parts", []).append(layer.entry())
        else:
            config.setdefault("datasets", []).append(layer.entry())
    config = json.dumps(config).encode()
    about = {
        "schemaVersion": 2,
        "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [layer.descriptor() for layer in layers],
        "annotations": {"ml.kitops.modelkit.cli-version": "1.7.0"},
    }
    return json.dumps(about).encode(), config


def digest_of(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of_file(path):
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


# ---- layers


def tar(file, kind, path, entries):
    """A plain tar layer of `path`, which is a folder, of (name, size, pieces)."""
    with open(file, "wb", buffering=MIB) as out:
        out.write(header(f"{path}/", 0, True))
        for name, size, pieces in entries:
            out.write(header(f"{path}/{name}", size, pieces is None))
            for piece in pieces or ():
                out.write(piece)
            out.write(bytes(-size % 512))
        out.write(bytes(1024))
    digest = digest_of_file(file)
    return Layer(file, kind, path, digest, digest)


def compressed(layer, coding):
    """The same layer, compressed by the tool of that name at its own default level."""
    file = layer.file.with_suffix(f".{coding}")
    with open(file, "wb") as out:
        subprocess.run([coding, "-c", str(layer.file)], stdout=out, check=True)
    return Layer(file, layer.kind, layer.path, digest_of_file(file), layer.diff_id, coding)


def one_file(file, mib, kind="model", path="model"):
    """One file of random bytes, which is what weights look like to all that is measured with it."""
    return tar(file, kind, path, [("weights.bin", mib * MIB, different(os.urandom(min(mib, 16) * MIB), mib * MIB))])


def different(block, size):
    """The same block again and again, numbered, so that no two are the same."""
    for number in range(size // len(block)):
        yield number.to_bytes(8, "little") + block[8:]


def small_files(file, count, a_folder=100):
    """Files of 0.5 to 16 KiB, so many to a folder."""

    def entries():
        for number in range(count):
            folder = f"{number // a_folder:03}"
            if number % a_folder == 0:
                yield f"{folder}/", 0, None
            content = os.urandom(512 + number * 7919 % 15872)
            yield f"{folder}/{number:06}.txt", len(content), [content]

    return tar(file, "dataset", "data", entries())


def text_and_weights(file, mib):
    """Half lines of JSON with words by Zipf's law, half numbers as bfloat16 weights are: what compresses, and what hardly does."""
    chance = random.Random(6)
    half = mib * MIB // 2
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(chance.choices(letters, range(26, 0, -1), k=chance.randint(2, 9))) for _ in range(20000)]
    zipf = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    text, size, block = [], 0, 8 * MIB
    while size < block:
        line = json.dumps({"id": chance.getrandbits(40), "text": " ".join(chance.choices(words, cum_weights=zipf, k=60)), "score": chance.random()}) + "\n"
        text.append(line)
        size += len(line)
    text = "".join(text).encode()[:block]
    # The low byte of a bfloat16 is noise; the high one has the sign and most of the exponent, which for weights around 0.02 are few values.
    exponents = random.Random(7).choices([0x3B, 0x3C, 0x3D, 0xBB, 0xBC, 0xBD, 0x3A, 0xBA], [10, 24, 9, 10, 24, 9, 7, 7], k=block // 2)

    def weights():
        for number in range(half // block):
            piece = bytearray(block)
            piece[0::2] = os.urandom(block // 2)
            piece[1::2] = bytes(exponents[number:] + exponents[:number])
            yield bytes(piece)

    return tar(file, "dataset", "data", [("lines.jsonl", half, different(text, half)), ("weights.bf16", half, weights())])


def tiny_files(file, number, count):
    """Many files of 24 bytes: what is measured with them are names. The headers are written by hand, since there are a million."""
    path = f"data/{number:03}"
    start = header(f"{path}/00000.txt", 24)
    name, checksum = start.index(b"00000.txt"), 148
    base = sum(start[:checksum]) + sum(start[checksum + 8 :]) + 8 * 32 - 5 * 48
    with open(file, "wb", buffering=MIB) as out:
        out.write(header(f"{path}/", 0, True))
        for entry in range(count):
            digits = b"%05d" % entry
            out.write(start[:name] + digits + start[name + 5 : checksum] + b"%06o\0 " % (base + sum(digits)) + start[checksum + 8 :])
            out.write((b"%d %d" % (number, entry)).ljust(24) + bytes(488))
        out.write(bytes(1024))
    digest = digest_of_file(file)
    return Layer(file, "dataset", path, digest, digest)


def header(name, size, folder=False):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, 0o755 if folder else 0o644, tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.USTAR_FORMAT)
