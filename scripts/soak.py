"""Loads kitfs with everything at once for a given time, and says whether it grew: started by scripts/soak, which builds what is loaded.

Readers compare each byte with what was packed, while mounts come and go, processes are killed and stopped, the way to the registry fails, and a cache
that is smaller than the kits evicts. A wrong byte, an errno that no fault explains, a hang, a worker that died by itself, growth, or anything left
behind is a failure. Everything is made below one folder in $SOAK_DIR (default /var/tmp) and removed.
"""

import argparse
import contextlib
import errno
import json
import os
import platform
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from kits import MIB, Kitfs, Layer, Registry, Relay, end, environment, memory, small_files
from soak_modes import many_mounts, memory_mode

#: Seconds after the end of a fault in which its errors may still come: three attempts a second and more apart, and after a stall what the transport waits.
AFTERMATH = {"stall": 110}
AFTERMATH_ELSE = 40
#: Seconds for which the same few kits are read. The others lie there longer than the grace in which a layer is not evicted.
PHASE = 30
#: No operation takes longer, with two stops of a worker in a row and a stalled registry.
HANGS = 300
SAMPLE = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kitfs", type=Path, required=True, help="the program")
    parser.add_argument("--minutes", type=float, default=30, help="how long the mixed load lasts")
    parser.add_argument("--seed", type=int, help="of all that is chosen by chance")
    parser.add_argument("--report", type=Path, help="write the result to FILE, too")
    parser.add_argument("--keep-logs", type=Path, help="copy the logs of all mounts that live at the end to this folder")
    parser.add_argument("--mounts", type=int, metavar="N", help="instead: N mounts at once, memory of each, time of `status`")
    parser.add_argument("--memory", action="store_true", help="instead: four large layers at once and 64 readers, memory of the worker")
    parser.add_argument("--layer-mib", type=int, default=512, help="size of those layers")
    parser.add_argument("--verbose", action="store_true", help="say what happens while it happens")
    options = parser.parse_args()
    options.kitfs = options.kitfs.resolve()
    options.seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="kitfs-soak-", dir=os.environ.get("SOAK_DIR", "/var/tmp")))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if options.memory or options.mounts:
            lines, failures = memory_mode(options, folder, stack) if options.memory else many_mounts(options, folder, stack)
        else:
            lines, failures = Soak(options, folder, stack).run()
        lines += ["", *(f"FAILED: {each}" for each in failures)] if failures else ["", "passed"]
        text = "\n".join(lines) + "\n"
        print(text, end="", flush=True)
        if options.report:
            options.report.write_text(text)
        code = 1 if failures else 0
    sys.exit(code)


class Mounted:
    """A mount that lives for the whole run."""

    def __init__(self, name, kit, point, spared):
        self.name, self.kit, self.point, self.spared = name, kit, str(point), spared
        self.first_worker = None
        self.killed = 0


class Soak:
    def __init__(self, options, folder, stack):
        self.options, self.folder, self.stack = options, folder, stack
        self.random = random.Random(options.seed)
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.counts, self.failures, self.samples = {}, [], []
        #: [mode, begin, end or None]
        self.faults = []
        #: (mountpoint, layer, retry_at) -> when it was first seen.
        self.refused = {}
        #: Mountpoints whose supervisor was killed.
        self.orphaned = set()
        self.status_times = []
        names = environment(folder)
        self.registry = Registry(folder, names, stack)
        self.note("packing")
        self.kits = self.pack()
        total = sum(kit.size for kit in self.kits.values())
        self.limit = total * 45 // 100
        self.kitfs = Kitfs(options.kitfs, folder, names, KITFS_CACHE_SIZE=str(self.limit))
        stack.callback(self.kitfs.clear)
        self.relay = Relay(self.registry.host, stack)
        self.note(f"{len(self.kits)} kits of {total / MIB:.0f} MiB, cache of {self.limit / MIB:.0f} MiB, seed {options.seed}, {folder}")

    def pack(self):
        push = self.registry.push
        big = {"weights.bin": (1, 160 * MIB, False), "second.bin": (2, 24 * MIB, False), **small_files(3, 20)}
        dull = lambda seed: {"a.bin": (seed, 20 * MIB, True), "b.bin": (seed + 1, 9 * MIB + 77, True), **small_files(seed + 2, 600, dull=True)}
        kits = [
            push("big", [Layer("model", "model", big), Layer("docs", "docs", small_files(4, 5))]),
            push("raw", [Layer("dataset", f"raw/{n}.bin", {"": (10 + n, (n + 1) * 13 * MIB + n, False)}, raw=True) for n in range(4)]),
            push("gzip", [Layer("dataset", "data", dull(20), "gzip"), Layer("code", "src", small_files(24, 40))]),
            push("zstd", [Layer("model", "model", dull(30), "zstd"), Layer("docs", "docs", small_files(34, 10), "zstd")]),
            push("small", [Layer("dataset", "data", small_files(40, 3000)), Layer("code", "src", small_files(41, 60), "gzip")]),
            push("many", [
                Layer("dataset", f"d{n}", {"x.bin": (50 + n, (n % 4 + 1) * MIB + n * 999, n % 2 == 0), **small_files(70 + n, 40)}, ["", "gzip", "zstd"][n % 3])
                for n in range(12)
            ]),
        ]
        # A tag that moves: what was mounted stays what it was.
        self.versions = [push("moving", [Layer("dataset", "data", {"m.bin": (90 + n, 6 * MIB, False), **small_files(92 + n, 100)})], f"v{n}") for n in range(2)]
        self.registry.tag("moving", "moving", self.versions[0].manifest)
        return {kit.name: kit for kit in kits + self.versions[:1]}

    # ---- the run

    def run(self):
        begun = self.begun = time.monotonic()
        long_lived = [
            ("big", True, []), ("small", True, ["--no-passthrough"]), ("zstd", True, ["--prefetch", "none"]),
            ("many", False, []), ("raw", False, ["--no-passthrough"]), ("gzip", False, ["--prefetch", "all"]), ("big", False, ["--no-passthrough"]),
        ]  # fmt: skip
        self.mounts = []
        for number, (kit, spared, options) in enumerate(long_lived):
            point = self.point(f"long-{number}")
            self.kitfs.must("mount", *options, self.reference(self.kits[kit]), point)
            self.mounts.append(Mounted(f"{kit}{' ' + ' '.join(options) if options else ''}", self.kits[kit], point, spared))
        for mount, status in zip(self.mounts, self.long_status()):
            mount.first_worker, mount.supervisor = status["worker_pid"], status["supervisor_pid"]
        roles = [self.read_on] * 4 + [self.come_and_go] * 2 + [self.pull, self.kill, self.spoil, self.watch]
        threads = [threading.Thread(target=self.guarded, args=(role, number)) for number, role in enumerate(roles)]
        # Whatever happens below, nobody goes on.
        self.stack.callback(self.stop.set)
        for thread in threads:
            thread.start()
        until = begun + self.options.minutes * 60
        next_sample = begun
        try:
            while time.monotonic() < until and not self.stop.is_set():
                if time.monotonic() >= next_sample:
                    self.sample(time.monotonic() - begun)
                    next_sample += SAMPLE
                self.stop.wait(0.2)
        finally:
            self.stop.set()
            with contextlib.suppress(OSError):
                self.relay.set("pass")
            for thread in threads:
                thread.join(HANGS)
        if any(thread.is_alive() for thread in threads):
            self.fail("a thread of the load hangs")
        self.note("the load is over")
        if not self.failures:
            self.settle()
        lasted = time.monotonic() - begun
        growth = self.growth()
        if not self.failures:
            self.leave_nothing()
        elif self.options.keep_logs:
            self.keep_logs()
        return self.report(lasted, growth), self.failures

    def guarded(self, role, number):
        # A seed for each, so that what one chooses does not depend on how fast another is.
        chance = random.Random(self.options.seed * 1000 + number)
        try:
            role(chance, number)
        except Exception as error:  # noqa: BLE001: whatever it is, the run has failed
            if not self.stop.is_set():
                self.fail(f"{role.__name__}: {error!r}")

    def fail(self, what):
        with self.lock:
            self.failures.append(f"{what} (seed {self.options.seed}, {time.strftime('%H:%M:%S')}, faults {self.recent_faults()})")
        print(f"FAILED: {self.failures[-1]}", file=sys.stderr, flush=True)
        self.stop.set()

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + number

    def note(self, text):
        if self.options.verbose:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def reference(self, kit, tag=None):
        return f"{self.relay.host}/{kit.name}:{tag or kit.tag}"

    def point(self, name):
        point = self.folder / "mnt" / name
        point.mkdir(parents=True, exist_ok=True)
        return point

    def hot(self, many, count):
        """The few that are in use just now; the same for all who ask."""
        phase = int(time.monotonic() - self.begun) // PHASE
        return random.Random(self.options.seed * 7919 + phase).sample(many, count)

    # ---- roles

    def read_on(self, chance, number):
        """Reads in the mounts that stay."""
        with Reader(self) as reader:
            while not self.stop.is_set():
                mount = chance.choice(self.hot(self.mounts, 2))
                how = chance.choices(["sequential", "mmap", "find", "stat", "cat"], [3, 4, 1, 3, 4])[0]
                self.judge(mount.point, reader.ask(mount.point, mount.kit, how, chance.random()))
                self.stop.wait(chance.uniform(0, 0.3))

    def come_and_go(self, chance, number):
        """Mounts, reads, unmounts, in every way there is."""
        with Reader(self) as reader, Reader(self) as holder:
            turn = 0
            while not self.stop.is_set():
                turn += 1
                point = str(self.point(f"short-{number}-{turn}"))
                self.one_mount(chance, point, reader, holder)
                self.gone(point)
                self.stop.wait(chance.uniform(0, 1))

    def one_mount(self, chance, point, reader, holder):
        kit = chance.choice(self.hot(list(self.kits.values()), 2))
        options = chance.choice([[], ["--no-passthrough"], ["--prefetch", "none"], ["--prefetch", "all"], ["--prefetch", "none", "--no-passthrough"]])
        moving = kit in self.versions
        begun = time.monotonic()
        process = self.kitfs.start("mount", *options, self.reference(kit, "moving" if moving else None), point)
        if chance.random() < 0.1:
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
            process.communicate()
            self.count("kitfs mount killed")
            # Its supervisor may be just about to mount, or to notice.
            self.orphaned.add(point)
            time.sleep(0.5)
            self.kitfs.run("umount", "--lazy", point)
            return
        code, _, err = self.ended(process)
        if code != 0:
            return self.excuse(begun, f"kitfs mount {point} ended with {code}: {err}", "mounts refused during faults")
        self.count("mounts")
        if moving:
            digest = next(mount["digest"] for mount in self.kitfs.status() if mount["mountpoint"] == point)
            kit = next(version for version in self.versions if version.digest == digest)
        for _ in range(chance.randint(0, 3)):
            how = chance.choice(["sequential", "mmap", "find", "stat", "cat"])
            self.judge(point, reader.ask(point, kit, how, chance.random()))
        self.unmount(chance, point, kit, holder)

    def unmount(self, chance, point, kit, holder):
        way = chance.choices(["plain", "lazy", "busy", "supervisor", "umount"], [4, 3, 3, 1, 1])[0]
        if way == "supervisor":
            mount = next(mount for mount in self.kitfs.status() if mount["mountpoint"] == point)
            self.orphaned.add(point)
            os.kill(mount["supervisor_pid"], signal.SIGKILL)
            self.count("supervisors killed")
            time.sleep(1)
            self.kitfs.run("umount", "--lazy", point)
            return
        held = way in ("lazy", "busy") and self.judge(point, holder.ask(point, kit, "open", chance.random()))
        if way == "busy" and held:
            code, _, err = self.kitfs.run("umount", point)
            if code != 1 or "in use" not in err + " in use" or not os.path.ismount(point):
                self.fail(f"kitfs umount of a mount with an open file ended with {code}: {err}")
            self.count("umounts of busy mounts")
            self.judge(point, holder.ask(point, kit, "finish", 0))
        begun = time.monotonic()
        if way == "umount":
            done = subprocess.run(["umount", point], capture_output=True, text=True, check=False)
            code, err = done.returncode, done.stderr
            if code == 32 and "busy" in err:
                # A prefetch or the last reader may be on its way out.
                code, _, err = self.kitfs.run("umount", point)
        else:
            code, _, err = self.kitfs.run("umount", *(["--lazy"] if way == "lazy" else []), point)
        if code != 0:
            self.fail(f"{way} umount of {point} ended with {code} after {time.monotonic() - begun:.1f} s: {err}")
        self.count(f"umounts, {way}")
        if way == "lazy" and held:
            self.judge(point, holder.ask(point, kit, "finish", 0))

    def gone(self, point):
        """The mount and its processes have to go."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            left = [mount for mount in self.kitfs.mounts() if mount == point]
            if not left and not [each for each in self.kitfs.processes().values() if each.endswith(point)]:
                with contextlib.suppress(OSError):
                    os.rmdir(point)
                return
            if left and point in self.orphaned:
                self.kitfs.run("umount", "--lazy", point)
            time.sleep(0.1)
        self.fail(f"{point} is unmounted and not gone: {left}, {self.kitfs.processes()}")

    def pull(self, chance, number):
        """Fills the cache, asks about it, makes room in it, and moves the tag that moves."""
        while not self.stop.is_set():
            what = chance.choices(["pull", "kill", "prune", "ls", "verify", "pin", "all"], [6, 4, 2, 2, 1, 1, 0.3])[0]
            kit = chance.choice(self.hot(list(self.kits.values()), 3))
            begun = time.monotonic()
            if what == "kill":
                process = self.kitfs.start("pull", self.reference(kit))
                self.stop.wait(chance.uniform(0, 1.5))
                process.kill()
                process.communicate()
                self.count("kitfs pull killed")
            else:
                commands = {
                    "pull": [["pull", self.reference(kit)]], "prune": [["cache", "prune"]], "ls": [["cache", "ls", "--json"]],
                    "verify": [["verify", "--all"]], "all": [["cache", "prune", "--all"]],
                    "pin": [["pull", "--pin", self.reference(self.kits["many"])], ["cache", "unpin", self.reference(self.kits["many"])]],
                }  # fmt: skip
                for command in commands[what]:
                    code, out, err = self.ended(self.kitfs.start(*command))
                    if code != 0:
                        self.excuse(begun, f"kitfs {' '.join(command)} ended with {code}: {err}", "commands refused during faults")
                    elif what == "ls":
                        json.loads(out)
                    self.count(f"kitfs {' '.join(command[:2]) if command[0] == 'cache' else command[0]}")
            if chance.random() < 0.2:
                version = chance.choice(self.versions)
                self.registry.tag("moving", "moving", version.manifest)
            self.stop.wait(chance.uniform(0.5, 3))
        # What a fault kept from being unpinned.
        self.kitfs.run("cache", "unpin", "--all")

    def kill(self, chance, number):
        """Kills and stops workers of the mounts that are not spared."""
        victims = [mount for mount in self.mounts if not mount.spared]
        while not self.stop.wait(chance.uniform(1, 5)):
            mount = chance.choice(victims)
            how = chance.choices(["kill", "stop", "stop for long"], [10, 5, 0.3])[0]
            status = next(each for each in self.long_status() if each["mountpoint"] == mount.point)
            worker = status["worker_pid"]
            if worker is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                if how == "kill":
                    mount.killed += 1
                    os.kill(worker, signal.SIGKILL)
                    self.count("workers killed")
                else:
                    # One that is stopped for long is replaced by its supervisor.
                    mount.killed += how == "stop for long"
                    os.kill(worker, signal.SIGSTOP)
                    self.count("workers stopped")
                    self.stop.wait(45 if how == "stop for long" else chance.uniform(0.2, 3))
                    os.kill(worker, signal.SIGCONT)

    def spoil(self, chance, number):
        """Lets the way to the registry fail for a while, and then be good for longer than errors may outlast it."""
        while not self.stop.wait(chance.uniform(50, 80)):
            mode = chance.choices(["cut", "delay", "corrupt", "refuse", "stall"], [4, 2, 4, 3, 1])[0]
            fault = [mode, time.monotonic(), None]
            self.faults.append(fault)
            self.relay.set(mode)
            self.count(f"faults, {mode}")
            self.note(f"fault: {mode}")
            self.stop.wait(chance.uniform(20, 90) if mode == "stall" else chance.uniform(4, 12))
            self.relay.set("pass")
            fault[2] = time.monotonic()
            if mode == "stall":
                self.stop.wait(AFTERMATH["stall"])

    def watch(self, chance, number):
        """Notes which layers failed, and measures `status` under load."""
        while not self.stop.wait(2):
            begun = time.monotonic()
            self.look_at_layers()
            self.status_times.append(time.monotonic() - begun)

    # ---- judging

    def look_at_layers(self):
        mounts = self.kitfs.status()
        now = time.monotonic()
        for mount in mounts:
            for layer in mount["layers"]:
                # What nobody waits for evicts nothing; readers must not be told of that, and ENOSPC is no errno that is excused.
                if layer["state"] == "failed" and "has room for" not in layer["error"]:
                    key = (mount["mountpoint"], layer["digest"], layer["retry_at"])
                    if key not in self.refused:
                        self.refused[key] = (now, layer["error"])
                        if not self.is_explained(now - 5, now):
                            self.fail(f"{key} failed and no fault explains it: {layer['error']}")
        return mounts

    def recent_faults(self):
        now = time.monotonic()
        return [f"{mode} {now - begin:.0f} to {now - (end or now):.0f} s ago" for mode, begin, end in self.faults[-2:]]

    def is_explained(self, begun, ended):
        """Whether a fault, or what comes after it, met this time."""
        after = lambda mode: AFTERMATH.get(mode, AFTERMATH_ELSE)
        return any(begin <= ended and (end is None or end + after(mode) >= begun) for mode, begin, end in self.faults)

    def judge(self, point, answer):
        """Whether all was right. What was wrong has failed already."""
        if answer is None:
            return False
        self.count("operations", answer["operations"])
        self.count("bytes read and compared", answer["bytes"])
        for wrong in answer["wrong"]:
            self.fail(f"WRONG BYTES: {wrong} in {point}")
        for path, operation, number, begun, ended in answer["errors"]:
            name = errno.errorcode.get(number, str(number))
            if point in self.orphaned and name in ("ENOTCONN", "ECONNABORTED", "ENODEV"):
                self.count("errors of mounts whose supervisor was killed")
                continue
            explained = name in ("EIO", "ETIMEDOUT")
            if explained and not self.is_explained(begun, ended):
                self.look_at_layers()
                # Layers are not asked for again before their time, which is after the fault.
                explained = any(key[0] == point and seen > begun - 700 for key, (seen, _) in list(self.refused.items()))
            if explained:
                self.count(f"errors during and after faults, {name}")
            else:
                self.fail(f"{operation} of {path} in {point}: {name} after {ended - begun:.1f} s, and no fault explains it")
        return not answer["errors"] and not answer["wrong"]

    def excuse(self, begun, what, counted):
        if self.is_explained(begun, time.monotonic()):
            self.count(counted)
            self.note(f"excused: {what}")
        else:
            self.fail(what)

    def ended(self, process):
        try:
            out, err = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return "hangs", out, err
        return process.returncode, out, err

    def long_status(self):
        mounts = {mount["mountpoint"]: mount for mount in self.kitfs.status()}
        return [mounts[mount.point] for mount in self.mounts]

    # ---- samples

    def sample(self, at):
        values = {}
        for mount, status in zip(self.mounts, self.long_status()):
            if mount.spared and status["worker_pid"] != mount.first_worker:
                self.fail(f"the worker of {mount.name}, whom nobody kills, is another one: {status}")
            if status["restarts"] > mount.killed:
                self.fail(f"{mount.name} has restarted {status['restarts']} times, its worker was killed {mount.killed} times")
            for role, pid in [("supervisor", status["supervisor_pid"])] + ([("worker", status["worker_pid"])] if mount.spared else []):
                found = memory(pid)
                if found is None:
                    self.fail(f"{role} of {mount.name} is gone")
                    continue
                for what, number in found.items():
                    key = (role, what)
                    values[key] = max(values.get(key, 0), number)
        disk = files = 0
        for folder, _, names in os.walk(self.kitfs.cache):
            for name in names:
                with contextlib.suppress(OSError):
                    about = os.lstat(os.path.join(folder, name))
                    disk, files = disk + about.st_blocks * 512, files + 1
        values["cache", "disk"], values["cache", "files"] = disk, files
        values["run", "files"] = sum(len(names) for _, _, names in os.walk(self.kitfs.run_dir))
        values["all", "processes"] = len(self.kitfs.processes())
        values["all", "mounts"] = len(self.kitfs.mounts())
        self.samples.append((at, values))
        shown = ", ".join(f"{'.'.join(key)} {number / MIB:.1f}M" if number > 99_999 else f"{'.'.join(key)} {number}" for key, number in values.items())
        self.note(f"{at:.0f} s: {shown}; {self.counts.get('operations', 0)} operations")

    #: What may be more at the end: a share, and so much besides.
    ALLOWED = {
        ("worker", "rss"): (0.25, 24 * MIB), ("worker", "anon"): (0.25, 12 * MIB), ("worker", "fds"): (0.25, 24), ("worker", "threads"): (0.25, 8),
        ("supervisor", "rss"): (0.1, MIB), ("supervisor", "anon"): (0.1, MIB), ("supervisor", "fds"): (0.25, 16), ("supervisor", "threads"): (0, 0),
        ("cache", "disk"): (0.25, 64 * MIB), ("cache", "files"): (0.25, 100), ("run", "files"): (0.25, 20), ("all", "processes"): (0, 8),
        ("all", "mounts"): (0, 4),
    }  # fmt: skip

    def growth(self):
        """The middle of the first third after a minute of warming up, beside that of the last."""
        lines = [f"| {'most of any process':<22} | begin | end | per hour | highest | |", "|---|---|---|---|---|---|"]
        samples = [each for each in self.samples if each[0] >= min(60, self.options.minutes * 10)]
        if len(samples) < 6:
            return [*lines, "too few samples to compare"]
        third = len(samples) // 3
        for key, (share, more) in self.ALLOWED.items():
            series = [(at, values[key]) for at, values in samples if key in values]
            first, last = (statistics.median(number for _, number in part) for part in (series[:third], series[-third:]))
            slope = statistics.linear_regression(*zip(*series)).slope * 3600
            grew = last > first * (1 + share) + more
            unit = (lambda number: f"{number / MIB:.1f} MiB") if key[1] in ("rss", "anon", "disk") else (lambda number: f"{number:.0f}")
            lines.append(f"| {' '.join(key):<22} | {unit(first)} | {unit(last)} | {unit(slope)} | {unit(max(n for _, n in series))} | {'GREW' if grew else ''} |")
            if grew:
                self.fail(f"{' '.join(key)} grew from {unit(first)} to {unit(last)}")
        return lines

    # ---- the end

    def settle(self):
        """No more faults: every file of every mount has to come, as soon as its layer is asked for again."""
        with Reader(self) as reader:
            for mount in self.mounts:
                until = time.monotonic() + 660
                while True:
                    answer = reader.ask(mount.point, mount.kit, "all", 0)
                    if answer is None or answer["wrong"] or not answer["errors"]:
                        break
                    if time.monotonic() > until:
                        self.fail(f"the faults are over, and {mount.point} has still errors: {answer['errors'][:3]}")
                        return
                    time.sleep(2)
                self.judge(mount.point, answer)
        self.note("every byte of every mount that stayed was read once more")

    def leave_nothing(self):
        kitfs = self.kitfs
        if self.options.keep_logs:
            self.keep_logs()
        for log in kitfs.run_dir.glob("*/log*"):
            if b"panic" in log.read_bytes():
                self.fail(f"a worker panicked: {log.read_text(errors='replace')[-2000:]}")
        for mount in self.mounts:
            code, _, err = kitfs.run("umount", mount.point)
            if code != 0:
                self.fail(f"umount of {mount.point} at the end: {code}: {err}")
        until = time.monotonic() + 60
        while kitfs.processes() and time.monotonic() < until:
            time.sleep(0.1)
        if kitfs.processes() or kitfs.mounts():
            self.fail(f"left behind: {kitfs.processes()} {kitfs.mounts()}")
        code, _, err = kitfs.run("verify", "--all")
        if code != 0:
            self.fail(f"kitfs verify --all at the end: {code}: {err}")
        # What was used a moment ago stays, even if the cache is over its limit.
        time.sleep(12)
        for command in [["cache", "prune"], ["cache", "ls", "--json"]]:
            code, out, err = kitfs.run(*command)
            if code != 0:
                self.fail(f"kitfs {' '.join(command)} at the end: {code}: {err}")
        listed = json.loads(out)
        if listed["bytes"] > listed["limit"] or listed["limit"] != self.limit:
            self.fail(f"the cache has {listed['bytes']} of {self.limit} bytes, its limit {listed['limit']}")
        if held := [layer for layer in listed["layers"] if layer["in_use"] or layer["pinned"]]:
            self.fail(f"in use or pinned after all is over: {held}")
        version = next(kitfs.cache.glob("v*"))
        there = {path.name for path in (version / "layers").iterdir()}
        if there != {layer["layer"] for layer in listed["layers"]}:
            self.fail(f"`cache ls` lists {listed['layers']}, there are {there}")
        left = [*(version / "ingest").iterdir(), *(version / "trash").iterdir(), *kitfs.run_dir.glob("*/*")]
        if left:
            self.fail(f"left behind: {[str(each) for each in left]}")

    def keep_logs(self):
        self.options.keep_logs.mkdir(parents=True, exist_ok=True)
        for log in self.kitfs.run_dir.glob("*/log*"):
            shutil.copy(log, self.options.keep_logs / f"{log.parent.name}.{log.name}")

    def report(self, lasted, growth):
        lines = [
            f"{lasted / 60:.1f} minutes, seed {self.options.seed}, {os.cpu_count()} cores, Linux {platform.release()}, "
            f"{self.kitfs.run('--version')[1].strip()}, {time.strftime('%Y-%m-%d %H:%M')}; cache limit {self.limit / MIB:.0f} MiB",
            "", *growth, "", "| what happened | times |", "|---|---|",
        ]  # fmt: skip
        for what, number in sorted(self.counts.items()):
            lines.append(f"| {what} | {f'{number / (1 << 30):.1f} GiB' if what.startswith('bytes') else number} |")
        if self.status_times:
            worst, middle = max(self.status_times), statistics.median(self.status_times)
            lines.append(f"| `status --json` under this load | {middle * 1e3:.0f} ms, at most {worst * 1e3:.0f} ms |")
        return lines


class Reader:
    """A process that reads, so that one that hangs or is hit by a signal takes nobody with it."""

    def __init__(self, soak):
        self.soak = soak
        self.process = None

    def __enter__(self):
        command = [sys.executable, str(Path(__file__).with_name("soak_reader.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        return self

    def __exit__(self, *_):
        end(self.process)

    def ask(self, point, kit, how, chance):
        """What the reader found; None if it hung or died, which is a failure."""
        job = {"root": point, "index": str(kit.table), "how": how, "seed": chance}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], HANGS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            state = "hangs" if not ready else f"died: {self.process.wait()}"
            self.soak.fail(f"reader of {point} ({how}) {state}")
            return None
        self.soak.count(f"reads, {how}")
        return json.loads(line)


if __name__ == "__main__":
    main()
