"""Kits, a registry that has them, a relay before it that can be told to misbehave, and kitfs beside them: what scripts/soak loads.

Everything lives below one folder, and every process is ended by its id.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
MIB = 1 << 20
#: Files from this size on repeat themselves, but for a number in each piece; making gigabytes by chance would take longer than what is measured.
LARGE = 256 * MIB


class Layer:
    """One layer to be packed: a tar of files, or one raw file."""

    def __init__(self, kind, path, files, coding="", raw=False):
        self.kind, self.path, self.files, self.coding, self.raw = kind, path, files, coding, raw

    @property
    def media_type(self):
        return f"application/vnd.kitops.modelkit.{self.kind}.v1.{'raw' if self.raw else 'tar'}{self.coding and '+' + self.coding}"

    def write(self, target, blob):
        """Writes the blob, and what a reader has to see below `target`. Returns digest, diffId, size of the blob and {path: [size, SHA-256]}."""
        shown = {}
        plain = blob.with_suffix(".plain")
        with open(plain, "wb") as out:
            if not self.raw:
                out.write(header(f"{self.path}/", 0, True))
            folders = {self.path}
            for name, (seed, size, dull) in self.files.items():
                path = self.path if self.raw else f"{self.path}/{name}"
                folder = path.rpartition("/")[0]
                if not self.raw and folder not in folders:
                    folders.add(folder)
                    out.write(header(f"{folder}/", 0, True))
                if not self.raw:
                    out.write(header(path, size))
                place = target / path
                place.parent.mkdir(parents=True, exist_ok=True)
                check = hashlib.sha256()
                # Of very large ones the digest has to do.
                with open(place if size < LARGE else os.devnull, "wb") as copy:
                    for piece in content(seed, size, dull):
                        copy.write(piece)
                        out.write(piece)
                        check.update(piece)
                shown[path] = [size, check.hexdigest()]
                if not self.raw:
                    out.write(bytes(-size % 512))
            if not self.raw:
                out.write(bytes(1024))
        diff_id = digest_of(plain)
        if self.coding:
            with open(plain, "rb") as source, open(blob, "wb") as out:
                command = {"gzip": ["gzip", "-1c"], "zstd": ["zstd", "-1cq"]}[self.coding]
                subprocess.run(command, stdin=source, stdout=out, check=True)
            plain.unlink()
        else:
            plain.rename(blob)
        return digest_of(blob), diff_id, blob.stat().st_size, shown


class Kit:
    """What was pushed, and what a mount of it has to show."""

    def __init__(self, name, digest, table, truth, size, layers):
        self.name, self.digest, self.table, self.truth, self.size, self.layers = name, digest, table, truth, size, layers
        self.tag = "v1"


class Registry:
    """Debian's docker-registry on loopback."""

    def __init__(self, folder, environment, stack):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        config = folder / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )
        log = stack.enter_context(open(folder / "registry.log", "w", encoding="utf-8"))
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log, env=environment, start_new_session=True)
        stack.callback(end, process)
        until = time.monotonic() + 30
        while True:
            try:
                connection = http.client.HTTPConnection(self.host, timeout=5)
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit("docker-registry does not start: " + (folder / "registry.log").read_text())
                time.sleep(0.02)

    def push(self, name, layers, tag="v1"):
        """Packs and pushes a kit."""
        truth = self.folder / "truth" / f"{name}-{tag}"
        blob = self.folder / "blob"
        table, described = {}, []
        config = {"manifestVersion": "1.0.0", "package": {"name": name}}
        for number, layer in enumerate(layers):
            digest, diff_id, size, shown = layer.write(truth, blob)
            table.update(shown)
            with open(blob, "rb") as file:
                self.upload(name, digest, file, size)
            blob.unlink()
            entry = {"name": f"{name}-{number}", "path": layer.path, "digest": digest, "diffId": diff_id}
            if layer.kind == "model":
                config["model"] = entry
            else:
                config.setdefault({"dataset": "datasets", "code": "code", "docs": "docs"}[layer.kind], []).append(entry)
            annotations = {}
            if layer.raw:
                annotations["org.cncf.model.filepath"] = layer.path
            described.append({"mediaType": layer.media_type, "digest": digest, "size": size, "annotations": annotations})
        config = json.dumps(config).encode()
        config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
        self.upload(name, config_digest, io.BytesIO(config), len(config))
        manifest = {
            "schemaVersion": 2,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": len(config)},
            "layers": described,
            "annotations": {"ml.kitops.modelkit.cli-version": "1.15.0"},
        }
        manifest = json.dumps(manifest).encode()
        self.tag(name, tag, manifest)
        place = self.folder / "truth" / f"{name}-{tag}.json"
        place.write_text(json.dumps({"truth": str(truth), "files": table}))
        kit = Kit(name, "sha256:" + hashlib.sha256(manifest).hexdigest(), place, truth, sum(each["size"] for each in described), len(described))
        kit.manifest, kit.tag = manifest, tag
        return kit

    def tag(self, name, tag, manifest):
        self.send("PUT", f"/v2/{name}/manifests/{tag}", manifest, len(manifest), MANIFEST)

    def upload(self, name, digest, body, size):
        place = self.send("POST", f"/v2/{name}/blobs/uploads/", b"", 0)
        place = place[place.index("/v2/") :]
        self.send("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", body, size, "application/octet-stream")

    def send(self, method, path, body, size, kind="application/octet-stream"):
        connection = http.client.HTTPConnection(self.host, timeout=120, blocksize=MIB)
        connection.request(method, path, body, {"Content-Length": str(size), "Content-Type": kind})
        response = connection.getresponse()
        said = response.read()
        if response.status not in (201, 202):
            sys.exit(f"{method} {path}: {response.status} {said!r}")
        return response.headers.get("Location", "")


class Relay:
    """A process between kitfs and the registry, which passes bytes on as it is told."""

    #: What it can do. `slow` has an argument: milliseconds for each 256 KiB.
    MODES = ["pass", "cut", "delay", "corrupt", "refuse", "stall"]

    def __init__(self, upstream, stack):
        command = [sys.executable, __file__, "relay", upstream]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        stack.callback(end, self.process)
        self.host = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def set(self, mode):
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


class Kitfs:
    """The program, with a cache and a run directory of its own."""

    def __init__(self, program, folder, environment, **options):
        self.program, self.folder = str(program), folder
        self.cache, self.run_dir = folder / "cache", folder / "run"
        self.environment = dict(environment, KITFS_CACHE_DIR=str(self.cache), KITFS_RUN_DIR=str(self.run_dir), KITFS_PLAIN_HTTP="1", **options)

    def start(self, *arguments):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([self.program, *map(str, arguments)], env=self.environment, text=True, start_new_session=True, **quiet)

    def run(self, *arguments, limit=300):
        """Exit code, stdout, stderr. Whoever takes longer than the limit hangs, and is ended."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return "hangs", out, err
        return process.returncode, out, err

    def must(self, *arguments):
        code, out, err = self.run(*arguments)
        if code != 0:
            raise RuntimeError(f"kitfs {' '.join(map(str, arguments))} ended with {code}: {err}")
        return out

    def status(self):
        return json.loads(self.must("status", "--json"))["mounts"]

    def processes(self):
        """{pid: command line} of everything that runs the program with this run directory."""
        wanted = f"KITFS_RUN_DIR={self.run_dir}".encode()
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                place = Path("/proc", pid)
                if wanted in (place / "environ").read_bytes().split(b"\0") and b"kitfs" in (place / "comm").read_bytes():
                    found[int(pid)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def mounts(self):
        """Mountpoints below the folder, from the kernel."""
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            points = [line.split()[4] for line in table]
        return [point for point in points if point.startswith(f"{self.folder}/")]

    def clear(self):
        """Leaves nothing behind, whatever happened."""
        with contextlib.suppress(Exception):
            self.run("umount", "--lazy", "--all", limit=20)
        for point in self.mounts():
            subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 5
        while self.processes() and time.monotonic() < until:
            time.sleep(0.1)
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, 9)


def memory(pid):
    """VmRSS, RssAnon and threads of a process, and its descriptors; None if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file)
        kib = lambda name: int(fields[name].split()[0]) * 1024
        return {"rss": kib("VmRSS"), "anon": kib("RssAnon"), "threads": int(fields["Threads"]), "fds": len(os.listdir(f"/proc/{pid}/fd"))}
    except (OSError, KeyError):
        return None


def shares(pid):
    """PSS and private bytes of a process, from smaps_rollup."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file if line.endswith("kB\n"))
    kib = lambda name: int(fields[name].split()[0]) * 1024
    return {"pss": kib("Pss"), "pss_anon": kib("Pss_Anon"), "private": kib("Private_Clean") + kib("Private_Dirty")}


def environment(folder):
    """Nobody's logins, nobody's settings."""
    names = {name: value for name, value in os.environ.items() if not name.startswith("KITFS_") and "proxy" not in name.lower()}
    names.update(HOME=str(folder), DOCKER_CONFIG=str(folder), OTEL_TRACES_EXPORTER="none")
    return names


def small_files(seed, count, low=200, high=16_000, dull=False):
    numbers = random.Random(seed)
    return {f"{number // 100:03}/{number:05}.txt": (seed * 100_000 + number, numbers.randint(low, high), dull) for number in range(count)}


def content(seed, size, dull):
    """The bytes of a file, piece by piece; dull ones can be compressed to a quarter."""
    numbers = random.Random(seed)

    def piece(length):
        if not dull:
            return numbers.randbytes(length)
        quarter = numbers.randbytes(length // 4 + 1)
        return b"".join(quarter[at : at + 64] * 4 for at in range(0, len(quarter), 64))[:length]

    if size >= LARGE:
        # Further apart than what is seen at once by a compressor that is in a hurry.
        whole = piece(MIB)
        for number in range(size // MIB):
            yield number.to_bytes(8, "little") + whole[8:]
        yield whole[: size % MIB]
        return
    for at in range(0, size, MIB):
        yield piece(min(size - at, MIB))


def digest_of(path):
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def header(name, size, folder=False):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, 0o755 if folder else 0o644, tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.USTAR_FORMAT)


def end(process):
    """Ends a child of ours, and collects it."""
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()


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


if __name__ == "__main__" and sys.argv[1:2] == ["relay"]:
    relay(sys.argv[2])
