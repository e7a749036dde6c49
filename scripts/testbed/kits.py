"""Layers and kits: how they are packed, and what a manifest and a config say of them. What is in them is the affair of whoever packs."""

import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
MIB = 1 << 20
#: From here on a size does not fit into its field of a header.
LARGEST_FIELD = 8 << 30
#: Where the config lists layers of a kind, but for the model and its parts.
LISTS = {"dataset": "datasets", "code": "code", "docs": "docs"}


@dataclass
class Layer:
    """A file with a layer's bytes, and what a manifest and a config say of it."""

    file: Path
    kind: str
    path: str
    digest: str
    diff_id: str
    coding: str = ""
    raw: bool = False
    size: int = field(init=False)

    def __post_init__(self):
        self.size = self.file.stat().st_size

    @property
    def media_type(self):
        return f"application/vnd.kitops.modelkit.{self.kind}.v1.{'raw' if self.raw else 'tar'}{self.coding and '+' + self.coding}"

    def descriptor(self):
        annotations = {"org.cncf.model.filepath": self.path} if self.raw else {}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, "annotations": annotations}

    def entry(self):
        return {"name": self.path.replace("/", "-"), "path": self.path, "digest": self.digest, "diffId": self.diff_id}


@dataclass
class Kit:
    """A kit in a registry."""

    host: str
    name: str
    tag: str
    manifest: bytes
    layers: list

    @property
    def digest(self):
        return digest_of(self.manifest)

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

    def at(self, host, tag=None):
        """The same kit by way of another address of its registry."""
        return f"{host}/{self.name}:{tag or self.tag}"

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
            config.setdefault(LISTS[layer.kind], []).append(layer.entry())
    config = json.dumps(config).encode()
    about = {
        "schemaVersion": 2,
        "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [layer.descriptor() for layer in layers],
        "annotations": {"ml.kitops.modelkit.cli-version": "1.15.0"},
    }
    return json.dumps(about).encode(), config


def layout(folder, name, layers):
    """Writes a kit as an OCI layout; the files of its layers move there."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    place = lambda digest: blobs / digest.split(":")[1]
    about, config = manifest(name, layers)
    for layer in layers:
        layer.file.rename(place(layer.digest))
    for content in (about, config):
        place(digest_of(content)).write_bytes(content)
    entry = {"mediaType": MANIFEST, "digest": digest_of(about), "size": len(about)}
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}), encoding="utf-8")


def digest_of(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of_file(path):
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


# ---- layers


def tar(file, kind, path, entries):
    """A plain tar layer of `path`, which is a folder, of (name, size, pieces); without pieces it is a folder."""
    with open(file, "wb", buffering=MIB) as out:
        out.write(header(f"{path}/", 0, b"5"))
        for name, size, pieces in entries:
            out.write(header(f"{path}/{name}", size, b"5" if pieces is None else b"0"))
            write(out, pieces or ())
            out.write(bytes(-size % 512))
        out.write(bytes(1024))
    digest = digest_of_file(file)
    return Layer(file, kind, path, digest, digest)


def raw(file, kind, path, pieces):
    """A layer that is one file, `path`."""
    with open(file, "wb", buffering=MIB) as out:
        write(out, pieces)
    digest = digest_of_file(file)
    return Layer(file, kind, path, digest, digest, raw=True)


def write(out, pieces):
    """A piece that is a number is so many zeros, which take no disk; some bytes have to come after them."""
    for piece in pieces:
        if isinstance(piece, int):
            out.seek(piece, 1)
        else:
            out.write(piece)


def compressed(layer, coding, *options):
    """The same layer, compressed by the tool of that name at its own default level unless options say otherwise."""
    file = layer.file.with_suffix(f".{coding}")
    with open(file, "wb") as out:
        subprocess.run([coding, "-c", *options, str(layer.file)], stdout=out, check=True)
    return Layer(file, layer.kind, layer.path, digest_of_file(file), layer.diff_id, coding, layer.raw)


def header(name, size, kind=b"0"):
    """By hand: `tarfile` takes a minute for the million of them that some kits have."""
    name = name.encode()
    if len(name) > 100:
        raise ValueError(f"a header has no room for the name {name}")
    field = b"%011o\0" % (size if size < LARGEST_FIELD else 0)
    mode = b"0000755\0" if kind == b"5" else b"0000644\0"
    block = name.ljust(100, b"\0") + mode + b"0000000\0" * 2 + field + b"00000000000\0" + b" " * 8 + kind
    block = (block.ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
    if size >= LARGEST_FIELD:
        # As Go writes it: the size stands in a PAX record alone.
        record = b"size=%d\n" % size
        record = b"%d %s" % (len(record) + 3, record)
        return header("PaxHeaders.0/x", len(record), b"x") + record.ljust(512, b"\0") + block
    return block
