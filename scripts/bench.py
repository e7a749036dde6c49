"""Measures kitfs beside what it replaces: started by scripts/bench, which builds what is measured.

Everything that is compared runs in one go, in turns, and the minimum of each counts: other work on the machine only ever adds time. Data,
registry, caches and mounts are made here, and removed at the end.
"""

import argparse
import contextlib
import datetime
import hashlib
import http.client
import io
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
SMALL_FILES = 5000
MIB = 1 << 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kitfs", type=Path, required=True, help="the release binary")
    parser.add_argument("--reader", type=Path, required=True, help="bench-reader, built")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the cold comparison; the others have more")
    parser.add_argument("--mib", type=int, default=2048, help="size of the big file")
    parser.add_argument("--only", default="warm,cold,start,decision,small", help="which parts, by comma")
    parser.add_argument("--verbose", action="store_true", help="every single figure, to stderr")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with contextlib.ExitStack() as stack:
        bench = Bench(options, stack)
        for part in options.only.split(","):
            getattr(bench, part)()
        bench.print()


class Bench:
    def __init__(self, options, stack):
        self.options = options
        self.stack = stack
        self.kitfs = options.kitfs.resolve()
        self.reader = options.reader.resolve()
        self.rows = []
        self.folder = Path(tempfile.mkdtemp(prefix="kitfs-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("KITFS_") and "proxy" not in name.lower()}
        # Nobody's logins.
        self.environment.update(HOME=str(self.folder), DOCKER_CONFIG=str(self.folder), OTEL_TRACES_EXPORTER="none")
        self.registry = self.start_registry()
        self.note("data")
        self.big = self.push("big", self.pack_big())
        self.small_kit = self.push("small", self.pack_small())

    # ---- what is measured

    def cold(self):
        """From nothing to the last byte of one plain layer."""
        url = f"http://{self.registry}/v2/big/blobs/{self.big['layer']}"
        piece = self.folder / "unpacked"
        times = {"kitfs": [], "tar": [], "sum": [], "curl": []}
        supervisor, worker = Peak(), Peak()

        def by_kitfs():
            cache = self.folder / "cold-cache"
            start = time.monotonic()
            with self.mount(self.big["reference"], cache) as mountpoint:
                with watched(self.processes(mountpoint), supervisor, worker):
                    # Asking for the processes is no part of it.
                    start += self.asked
                    self.read("sequential", mountpoint / "model/weights.bin")
                    elapsed = time.monotonic() - start
            shutil.rmtree(cache)
            return elapsed

        def by_tar():
            piece.mkdir()
            start = time.monotonic()
            self.shell(f"curl -sf {url} | tar x -C {piece}")
            self.read("sequential", piece / "model/weights.bin")
            elapsed = time.monotonic() - start
            shutil.rmtree(piece)
            return elapsed

        def by_sum():
            start = time.monotonic()
            self.shell(f"curl -sf {url} | sha256sum")
            return time.monotonic() - start

        def by_curl():
            start = time.monotonic()
            self.shell(f"curl -sf {url} -o /dev/null")
            return time.monotonic() - start

        by_curl()  # the registry's own file comes into the page cache
        for _ in range(self.options.rounds):
            for name, way in [("kitfs", by_kitfs), ("tar", by_tar), ("sum", by_sum), ("curl", by_curl)]:
                os.sync()
                times[name].append(way())
                self.note(f"cold {name}: {times[name][-1]:.3f} s")
        best = {name: min(all_times) for name, all_times in times.items()}
        size = f"{self.options.mib / 1024:g} GiB"
        self.row(f"cold mount + read of {size} / `curl \\| tar x` + read", f"{best['kitfs']:.2f} s / {best['tar']:.2f} s", best["kitfs"] / best["tar"], 1.0, "< 1")
        self.row(f"the same, later goal", "", best["kitfs"] / best["tar"], 0.75)
        self.row(f"cold mount + read of {size} / `curl \\| sha256sum`, later goal", f"{best['kitfs']:.2f} s / {best['sum']:.2f} s", best["kitfs"] / best["sum"], 1.15)
        self.row("`curl -o /dev/null`, for comparison", f"{best['curl']:.2f} s", best["kitfs"] / best["curl"])
        self.size_row(f"worker while it fetches {size}: anonymous memory", worker.anonymous, 150)
        self.size_row(f"worker while it fetches {size}: resident in all", worker.resident, 150)
        self.size_row("supervisor: resident in all", supervisor.resident, 10)

    def warm(self):
        """A big file that is in the page cache."""
        cache = self.cache("warm-cache", self.big)
        plain = self.folder / "plain"
        plain.mkdir()
        self.shell(f"curl -sf http://{self.registry}/v2/big/blobs/{self.big['layer']} | tar x -C {plain}")
        with self.mount(self.big["reference"], cache) as direct, self.mount(self.big["reference"], cache, "--no-passthrough") as cached:
            files = {name: folder / "model/weights.bin" for name, folder in [("plain", plain), ("direct", direct), ("cached", cached)]}
            passes_through = self.status(direct)["passthrough"]
            os.sync()
            # Where a file's pages lie in memory, and in which sizes, is decided when they are read, and by chance: it is worth up to 1.6 times. So they are
            # dropped and read anew for each set, in turns, and the best of all sets counts for each file. In cached mode the file is there twice.
            sets = [self.warm_set(files, turn) for turn in range(6)]
            for how in ["sequential", "random"]:
                times = {name: [time for one in sets for time in one[how][name]] for name in files}
                best = {name: min(all_times) for name, all_times in times.items()}
                self.note(f"warm {how}: {best}")
                what = "read" if how == "sequential" else "mmap, 200,000 random places of 4 KiB"
                for name, goal in [("direct", 1.03), ("cached", None)]:
                    mode = "passthrough" if name == "direct" and passes_through else "cached mode"
                    ratio = best[name] / best["plain"]
                    if name == "direct" and not passes_through:
                        goal = None
                    self.row(f"warm {what}, {mode} / plain folder", f"{best[name] * 1e3:.1f} ms / {best['plain'] * 1e3:.1f} ms", ratio, goal)
        shutil.rmtree(plain)
        shutil.rmtree(cache)

    def warm_set(self, files, turn):
        names = list(files)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        drop_caches()
        for name in names:
            self.read("sequential", files[name])
        times = {how: {name: [] for name in names} for how in ["sequential", "random"]}
        for _ in range(3):
            for how, of in times.items():
                for name in names:
                    of[name].append(self.read(how, files[name]))
        self.note(f"warm set {turn}: {({how: {name: round(min(each) * 1e3, 1) for name, each in of.items()} for how, of in times.items()})}")
        return times

    def start(self):
        """A mount of what is in the cache, until its first byte."""
        cache = self.cache("start-cache", self.small_kit)
        by_digest = self.small_kit["reference"].rsplit(":", 1)[0] + "@" + self.small_kit["digest"]
        times = {"tag": [], "digest": []}
        for _ in range(15):
            for how, reference in [("tag", self.small_kit["reference"]), ("digest", by_digest)]:
                start = time.monotonic()
                with self.mount(reference, cache) as mountpoint:
                    with open(mountpoint / "data/00/00000.txt", "rb") as file:
                        file.read(1)
                    times[how].append(time.monotonic() - start)
        for how, all_times in times.items():
            best, median = min(all_times) * 1e3, statistics.median(all_times) * 1e3
            self.row(f"`kitfs mount` of a cached kit by {how}, to the first byte", f"{best:.1f} ms (median {median:.1f})", None, None, "< 50 ms", best < 50)
        shutil.rmtree(cache)

    def decision(self):
        """What it costs to decide on a kit of which everything is in the cache already."""
        signed = Path(__file__).resolve().parent.parent / "tests/fixtures/signed"
        for case, what in [("key-p256-bundle", "signed by a key"), ("keyless-rekor2", "signed by an identity, logged in Rekor v2")]:
            layout = self.folder / case
            layout.mkdir()
            self.shell(f"tar x -C {layout} -f {signed / case / 'layout.tar'}")
            reference = json.loads((signed / case / "case.json").read_text())["reference"]
            cache = self.folder / f"{case}-cache"
            policy = ["--policy", str(signed / case / "policy.yaml"), "--trusted-root", str(signed / case / "trusted_root.json")]
            times = {"with": [], "without": []}
            for turn in range(31):
                for how, options in [("with", policy), ("without", [])]:
                    start = time.monotonic()
                    with self.mount(f"oci:{layout}:{reference}", cache, *options):
                        # The first brings it into the cache.
                        if turn > 0:
                            times[how].append(time.monotonic() - start)
            cost = {f: f(times["with"]) - f(times["without"]) for f in [min, statistics.median]}
            best, median = cost[min] * 1e3, cost[statistics.median] * 1e3
            self.row(f"what the decision adds to the mount of a cached kit {what}", f"{best:.1f} ms (median {median:.1f})", None, None, "< 30 ms", median < 30)
            shutil.rmtree(cache)

    def small(self):
        """Many small files: names and contents, beside a plain folder."""
        cache = self.cache("small-cache", self.small_kit)
        plain = self.folder / "plain-small"
        plain.mkdir()
        self.shell(f"curl -sf http://{self.registry}/v2/small/blobs/{self.small_kit['layer']} | tar x -C {plain}")
        os.sync()
        commands = {
            "find -printf '%s'": "find {} -type f -printf '%s'",
            "cat": "find {} -type f -print0 | xargs -0 cat",
        }
        times = {}
        for _ in range(5):
            for what, command in commands.items():
                with self.mount(self.small_kit["reference"], cache) as mounted:
                    folders = [("mounted", mounted / "data"), ("plain", plain / "data")]
                    for name, folder in folders:
                        drop_caches()
                        for turn in ["first", "second", "third"]:
                            start = time.monotonic()
                            self.shell(command.format(folder))
                            # The third is a second one too.
                            times.setdefault((what, min(turn, "second"), name), []).append(time.monotonic() - start)
        for what in commands:
            for turn in ["first", "second"]:
                mounted, plain_time = min(times[what, turn, "mounted"]), min(times[what, turn, "plain"])
                title = "first pass, nothing in memory" if turn == "first" else "again"
                self.row(f"`{what}` of {SMALL_FILES} small files, {title} / plain folder", f"{mounted * 1e3:.1f} ms / {plain_time * 1e3:.1f} ms", mounted / plain_time)
        shutil.rmtree(plain)
        shutil.rmtree(cache)

    # ---- the table

    def row(self, what, figure, ratio, goal=None, goal_text=None, met=None):
        if met is None and goal is not None:
            met = ratio < goal if goal_text == "< 1" else ratio <= goal
        goal_text = goal_text or (f"≤ {goal}" if goal is not None else "—")
        self.rows.append((what, goal_text, figure, "—" if ratio is None else f"{ratio:.2f}", {None: "—", True: "met", False: "not met"}[met]))

    def size_row(self, what, size, goal):
        self.row(what, f"{size / MIB:.1f} MiB", None, None, f"< {goal} MiB", size < goal * MIB)

    def print(self):
        memory = next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal"))
        models = {line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")}
        filesystem = self.output(["stat", "-f", "-c", "%T", str(self.folder)])
        version = lambda command: subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
        print(
            f"{datetime.date.today()}, {os.cpu_count()} × {', '.join(models) or platform.machine()}, {int(memory) >> 20} GiB, {filesystem}, Linux {platform.release()}; "
            f"{version([str(self.kitfs), '--version'])} ({commit or 'no commit'}), {version(['rustc', '--version'])}, {version(['curl', '--version']).split(' (')[0]}, "
            f"{version(['tar', '--version'])}, {version(['docker-registry', '--version'])}; load {os.getloadavg()[0]:.1f}.\n"
        )
        print("| measured | goal | figure | ratio | |\n|---|---|---|---|---|")
        for cells in self.rows:
            print("| " + " | ".join(cells) + " |")

    def note(self, text):
        if self.options.verbose:
            print(text, file=sys.stderr, flush=True)

    # ---- running things

    def output(self, command):
        return subprocess.run(command, capture_output=True, text=True, check=True, env=self.environment).stdout.strip()

    def shell(self, command):
        subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL, env=self.environment)

    def read(self, how, path):
        return int(self.output([str(self.reader), how, str(path)])) / 1e9

    def cache(self, name, kit):
        """A cache with the kit in it, safe on disk."""
        cache = self.folder / name
        self.output([str(self.kitfs), "pull", "--plain-http", "--cache-dir", str(cache), kit["reference"]])
        return cache

    @contextlib.contextmanager
    def mount(self, reference, cache, *more):
        mountpoint = Path(tempfile.mkdtemp(prefix="mount-", dir=self.folder))
        command = [str(self.kitfs), "mount", "--plain-http", "--cache-dir", str(cache), *more, reference, str(mountpoint)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        try:
            yield mountpoint
        finally:
            self.output([str(self.kitfs), "umount", str(mountpoint)])
            mountpoint.rmdir()

    def status(self, mountpoint):
        return json.loads(self.output([str(self.kitfs), "status", "--json", str(mountpoint)]))["mounts"][0]

    def processes(self, mountpoint):
        start = time.monotonic()
        status = self.status(mountpoint)
        self.asked = time.monotonic() - start
        return status["supervisor_pid"], status["worker_pid"]

    # ---- kits and the registry

    def start_registry(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{free.getsockname()[1]}"
        config = self.folder / "registry.yml"
        storage = self.folder / "registry"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{host}'}}\n"
        )
        log = self.stack.enter_context(open(self.folder / "registry.log", "w", encoding="utf-8"))
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log, env=self.environment)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        until = time.monotonic() + 30
        while True:
            try:
                connection = http.client.HTTPConnection(host, timeout=5)
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                return host
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit("docker-registry does not start: " + (self.folder / "registry.log").read_text())
                time.sleep(0.02)

    def pack_big(self):
        path = self.folder / "big.tar"
        size = self.options.mib * MIB
        block = os.urandom(16 * MIB)
        with open(path, "wb") as out:
            out.write(header("model/", 0, True) + header("model/weights.bin", size))
            for number in range(size // len(block)):
                out.write(number.to_bytes(8, "little") + block[8:])
            out.write(bytes(1024))
        return path, "model", {"model": {"name": "big", "path": "model"}}

    def pack_small(self):
        path = self.folder / "small.tar"
        with open(path, "wb") as out:
            out.write(header("data/", 0, True))
            for number in range(SMALL_FILES):
                if number % 100 == 0:
                    out.write(header(f"data/{number // 100:02}/", 0, True))
                # 0.5 to 16 KiB.
                content = os.urandom(512 + number * 7919 % 15872)
                out.write(header(f"data/{number // 100:02}/{number:05}.txt", len(content)) + content + bytes(-len(content) % 512))
            out.write(bytes(1024))
        return path, "dataset", {"datasets": [{"name": "small", "path": "data"}]}

    def push(self, name, packed):
        path, kind, config = packed
        with open(path, "rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        entry = config["model"] if "model" in config else config["datasets"][0]
        entry.update(digest=digest, diffId=digest)
        config = json.dumps({"manifestVersion": "1.0.0", "package": {"name": name}, **config}).encode()
        layer = {"mediaType": f"application/vnd.kitops.modelkit.{kind}.v1.tar", "digest": digest, "size": path.stat().st_size}
        config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
        manifest = {
            "schemaVersion": 2,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": len(config)},
            "layers": [layer],
            "annotations": {"ml.kitops.modelkit.cli-version": "1.7.0"},
        }
        manifest = json.dumps(manifest).encode()
        with open(path, "rb") as file:
            self.upload(name, digest, file, layer["size"])
        path.unlink()
        self.upload(name, config_digest, io.BytesIO(config), len(config))
        self.send("PUT", f"/v2/{name}/manifests/v1", manifest, len(manifest), MANIFEST)
        digest_of_all = "sha256:" + hashlib.sha256(manifest).hexdigest()
        return {"reference": f"{self.registry}/{name}:v1", "digest": digest_of_all, "layer": digest}

    def upload(self, name, digest, body, size):
        place = self.send("POST", f"/v2/{name}/blobs/uploads/", b"", 0)
        place = place[place.index("/v2/") :]
        self.send("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", body, size, "application/octet-stream")

    def send(self, method, path, body, size, kind="application/octet-stream"):
        connection = http.client.HTTPConnection(self.registry, timeout=120, blocksize=MIB)
        connection.request(method, path, body, {"Content-Length": str(size), "Content-Type": kind})
        response = connection.getresponse()
        said = response.read()
        if response.status not in (201, 202):
            sys.exit(f"{method} {path}: {response.status} {said!r}")
        return response.headers.get("Location", "")


class Peak:
    """The most memory that a process was seen with, in bytes."""

    anonymous = 0
    resident = 0

    def look(self, process):
        with contextlib.suppress(OSError):
            for line in open(f"/proc/{process}/status", encoding="utf-8"):
                if line.startswith("RssAnon:"):
                    self.anonymous = max(self.anonymous, int(line.split()[1]) * 1024)
                if line.startswith("VmRSS:"):
                    self.resident = max(self.resident, int(line.split()[1]) * 1024)


@contextlib.contextmanager
def watched(processes, *peaks):
    done = threading.Event()

    def watch():
        while True:
            for process, peak in zip(processes, peaks):
                peak.look(process)
            if done.wait(0.025):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def header(name, size, folder=False):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, 0o755 if folder else 0o644, tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.USTAR_FORMAT)


def drop_caches():
    # Dentries and inodes too: what is left is what a freshly started machine has.
    Path("/proc/sys/vm/drop_caches").write_text("3")


if __name__ == "__main__":
    main()
