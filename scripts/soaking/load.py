"""The mixed load: what is mounted, who does what to it, and what has to hold at the end."""

import contextlib
import functools
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import threading
import time

from testbed.kitfs import HANGS, KitfsApart
from testbed.kits import MIB
from testbed.processes import environment
from testbed.registry import Registry

from .contents import Layer, push, small_files
from .growth import Growth
from .judge import Judge
from .ledger import AFTERMATH, Ledger
from .reader import Reader
from .relay import Relay

#: Seconds for which the same few kits are read. The others lie there longer than the grace in which a layer is not evicted.
PHASE = 30
SAMPLE = 10


class Mounted:
    """A mount that lives for the whole run."""

    def __init__(self, name, kit, point, spared):
        self.name, self.kit, self.point, self.spared = name, kit, str(point), spared
        self.first_worker = None
        self.killed = 0


class Soak:
    def __init__(self, options, folder, stack):
        self.options, self.folder, self.stack = options, folder, stack
        self.ledger = Ledger(options.seed, options.verbose)
        self.status_times = []
        names = environment(folder)
        self.registry = Registry(folder, names, stack)
        self.ledger.note("packing")
        self.kits = self.pack()
        total = sum(kit.size for kit in self.kits.values())
        self.limit = total * 45 // 100
        self.kitfs = KitfsApart(options.kitfs, folder, names, KITFS_CACHE_SIZE=str(self.limit))
        stack.callback(self.kitfs.clear)
        self.judge = Judge(self.ledger, self.kitfs)
        self.growth = Growth(self.ledger, self.kitfs, options.minutes)
        self.relay = Relay(self.registry.host, stack)
        self.ledger.note(f"{len(self.kits)} kits of {total / MIB:.0f} MiB, cache of {self.limit / MIB:.0f} MiB, seed {options.seed}, {folder}")

    def pack(self):
        pushed = functools.partial(push, self.registry)
        big = {"weights.bin": (1, 160 * MIB, False), "second.bin": (2, 24 * MIB, False), **small_files(3, 20)}
        dull = lambda seed: {"a.bin": (seed, 20 * MIB, True), "b.bin": (seed + 1, 9 * MIB + 77, True), **small_files(seed + 2, 600, dull=True)}
        kits = [
            pushed("big", [Layer("model", "model", big), Layer("docs", "docs", small_files(4, 5))]),
            pushed("raw", [Layer("dataset", f"raw/{n}.bin", {"": (10 + n, (n + 1) * 13 * MIB + n, False)}, raw=True) for n in range(4)]),
            pushed("gzip", [Layer("dataset", "data", dull(20), "gzip"), Layer("code", "src", small_files(24, 40))]),
            pushed("zstd", [Layer("model", "model", dull(30), "zstd"), Layer("docs", "docs", small_files(34, 10), "zstd")]),
            pushed("small", [Layer("dataset", "data", small_files(40, 3000)), Layer("code", "src", small_files(41, 60), "gzip")]),
            pushed("many", [
                Layer("dataset", f"d{n}", {"x.bin": (50 + n, (n % 4 + 1) * MIB + n * 999, n % 2 == 0), **small_files(70 + n, 40)}, ["", "gzip", "zstd"][n % 3])
                for n in range(12)
            ]),
        ]
        # A tag that moves: what was mounted stays what it was.
        self.versions = [pushed("moving", [Layer("dataset", "data", {"m.bin": (90 + n, 6 * MIB, False), **small_files(92 + n, 100)})], f"v{n}") for n in range(2)]
        self.registry.tag(self.versions[0], "moving")
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
        self.stack.callback(self.ledger.stop.set)
        for thread in threads:
            thread.start()
        until = begun + self.options.minutes * 60
        next_sample = begun
        try:
            while time.monotonic() < until and not self.ledger.stop.is_set():
                if time.monotonic() >= next_sample:
                    self.growth.sample(time.monotonic() - begun, zip(self.mounts, self.long_status()))
                    next_sample += SAMPLE
                self.ledger.stop.wait(0.2)
        finally:
            self.ledger.stop.set()
            with contextlib.suppress(OSError):
                self.relay.set("pass")
            for thread in threads:
                thread.join(HANGS)
        if any(thread.is_alive() for thread in threads):
            self.ledger.fail("a thread of the load hangs")
        self.ledger.note("the load is over")
        if not self.ledger.failures:
            self.settle()
        lasted = time.monotonic() - begun
        growth = self.growth.table()
        if not self.ledger.failures:
            self.leave_nothing()
        elif self.options.keep_logs:
            self.keep_logs()
        return self.report(lasted, growth), self.ledger.failures

    def guarded(self, role, number):
        # A seed for each, so that what one chooses does not depend on how fast another is.
        chance = random.Random(self.options.seed * 1000 + number)
        try:
            role(chance, number)
        except Exception as error:  # noqa: BLE001: whatever it is, the run has failed
            if not self.ledger.stop.is_set():
                self.ledger.fail(f"{role.__name__}: {error!r}")

    def reference(self, kit, tag=None):
        return kit.at(self.relay.host, tag)

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
        with Reader(self.ledger) as reader:
            while not self.ledger.stop.is_set():
                mount = chance.choice(self.hot(self.mounts, 2))
                how = chance.choices(["sequential", "mmap", "find", "stat", "cat"], [3, 4, 1, 3, 4])[0]
                self.judge.accepts(mount.point, reader.ask(mount.point, mount.kit, how, chance.random()))
                self.ledger.stop.wait(chance.uniform(0, 0.3))

    def come_and_go(self, chance, number):
        """Mounts, reads, unmounts, in every way there is."""
        with Reader(self.ledger) as reader, Reader(self.ledger) as holder:
            turn = 0
            while not self.ledger.stop.is_set():
                turn += 1
                point = str(self.point(f"short-{number}-{turn}"))
                self.one_mount(chance, point, reader, holder)
                self.gone(point)
                self.ledger.stop.wait(chance.uniform(0, 1))

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
            self.ledger.count("kitfs mount killed")
            # Its supervisor may be just about to mount, or to notice.
            self.judge.orphaned.add(point)
            time.sleep(0.5)
            self.kitfs.run("umount", "--lazy", point)
            return
        code, _, err = self.kitfs.ended(process)
        if code != 0:
            return self.ledger.excuse(begun, f"kitfs mount {point} ended with {code}: {err}", "mounts refused during faults")
        self.ledger.count("mounts")
        if moving:
            digest = next(mount["digest"] for mount in self.kitfs.status() if mount["mountpoint"] == point)
            kit = next(version for version in self.versions if version.digest == digest)
        for _ in range(chance.randint(0, 3)):
            how = chance.choice(["sequential", "mmap", "find", "stat", "cat"])
            self.judge.accepts(point, reader.ask(point, kit, how, chance.random()))
        self.unmount(chance, point, kit, holder)

    def unmount(self, chance, point, kit, holder):
        way = chance.choices(["plain", "lazy", "busy", "supervisor", "umount"], [4, 3, 3, 1, 1])[0]
        if way == "supervisor":
            mount = next(mount for mount in self.kitfs.status() if mount["mountpoint"] == point)
            self.judge.orphaned.add(point)
            os.kill(mount["supervisor_pid"], signal.SIGKILL)
            self.ledger.count("supervisors killed")
            time.sleep(1)
            self.kitfs.run("umount", "--lazy", point)
            return
        held = way in ("lazy", "busy") and self.judge.accepts(point, holder.ask(point, kit, "open", chance.random()))
        if way == "busy" and held:
            code, _, err = self.kitfs.run("umount", point)
            if code != 1 or "in use" not in err + " in use" or not os.path.ismount(point):
                self.ledger.fail(f"kitfs umount of a mount with an open file ended with {code}: {err}")
            self.ledger.count("umounts of busy mounts")
            self.judge.accepts(point, holder.ask(point, kit, "finish", 0))
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
            self.ledger.fail(f"{way} umount of {point} ended with {code} after {time.monotonic() - begun:.1f} s: {err}")
        self.ledger.count(f"umounts, {way}")
        if way == "lazy" and held:
            self.judge.accepts(point, holder.ask(point, kit, "finish", 0))

    def gone(self, point):
        """The mount and its processes have to go."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            left = [mount for mount in self.kitfs.mounts() if mount == point]
            if not left and not [each for each in self.kitfs.processes().values() if each.endswith(point)]:
                with contextlib.suppress(OSError):
                    os.rmdir(point)
                return
            if left and point in self.judge.orphaned:
                self.kitfs.run("umount", "--lazy", point)
            time.sleep(0.1)
        self.ledger.fail(f"{point} is unmounted and not gone: {left}, {self.kitfs.processes()}")

    def pull(self, chance, number):
        """Fills the cache, asks about it, makes room in it, and moves the tag that moves."""
        while not self.ledger.stop.is_set():
            what = chance.choices(["pull", "kill", "prune", "ls", "verify", "pin", "all"], [6, 4, 2, 2, 1, 1, 0.3])[0]
            kit = chance.choice(self.hot(list(self.kits.values()), 3))
            begun = time.monotonic()
            if what == "kill":
                process = self.kitfs.start("pull", self.reference(kit))
                self.ledger.stop.wait(chance.uniform(0, 1.5))
                process.kill()
                process.communicate()
                self.ledger.count("kitfs pull killed")
            else:
                commands = {
                    "pull": [["pull", self.reference(kit)]], "prune": [["cache", "prune"]], "ls": [["cache", "ls", "--json"]],
                    "verify": [["verify", "--all"]], "all": [["cache", "prune", "--all"]],
                    "pin": [["pull", "--pin", self.reference(self.kits["many"])], ["cache", "unpin", self.reference(self.kits["many"])]],
                }  # fmt: skip
                for command in commands[what]:
                    code, out, err = self.kitfs.ended(self.kitfs.start(*command))
                    if code != 0:
                        self.ledger.excuse(begun, f"kitfs {' '.join(command)} ended with {code}: {err}", "commands refused during faults")
                    elif what == "ls":
                        json.loads(out)
                    self.ledger.count(f"kitfs {' '.join(command[:2]) if command[0] == 'cache' else command[0]}")
            if chance.random() < 0.2:
                version = chance.choice(self.versions)
                self.registry.tag(version, "moving")
            self.ledger.stop.wait(chance.uniform(0.5, 3))
        # What a fault kept from being unpinned.
        self.kitfs.run("cache", "unpin", "--all")

    def kill(self, chance, number):
        """Kills and stops workers of the mounts that are not spared."""
        victims = [mount for mount in self.mounts if not mount.spared]
        while not self.ledger.stop.wait(chance.uniform(1, 5)):
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
                    self.ledger.count("workers killed")
                else:
                    # One that is stopped for long is replaced by its supervisor.
                    mount.killed += how == "stop for long"
                    os.kill(worker, signal.SIGSTOP)
                    self.ledger.count("workers stopped")
                    self.ledger.stop.wait(45 if how == "stop for long" else chance.uniform(0.2, 3))
                    os.kill(worker, signal.SIGCONT)

    def spoil(self, chance, number):
        """Lets the way to the registry fail for a while, and then be good for longer than errors may outlast it."""
        while not self.ledger.stop.wait(chance.uniform(50, 80)):
            mode = chance.choices(["cut", "delay", "corrupt", "refuse", "stall"], [4, 2, 4, 3, 1])[0]
            fault = self.ledger.fault(mode)
            self.relay.set(mode)
            self.ledger.stop.wait(chance.uniform(20, 90) if mode == "stall" else chance.uniform(4, 12))
            self.relay.set("pass")
            fault[2] = time.monotonic()
            if mode == "stall":
                self.ledger.stop.wait(AFTERMATH["stall"])

    def watch(self, chance, number):
        """Notes which layers failed, and measures `status` under load."""
        while not self.ledger.stop.wait(2):
            begun = time.monotonic()
            self.judge.look_at_layers()
            self.status_times.append(time.monotonic() - begun)

    def long_status(self):
        mounts = {mount["mountpoint"]: mount for mount in self.kitfs.status()}
        return [mounts[mount.point] for mount in self.mounts]

    # ---- the end

    def settle(self):
        """No more faults: every file of every mount has to come, as soon as its layer is asked for again."""
        with Reader(self.ledger) as reader:
            for mount in self.mounts:
                until = time.monotonic() + 660
                while True:
                    answer = reader.ask(mount.point, mount.kit, "all", 0)
                    if answer is None or answer["wrong"] or not answer["errors"]:
                        break
                    if time.monotonic() > until:
                        self.ledger.fail(f"the faults are over, and {mount.point} has still errors: {answer['errors'][:3]}")
                        return
                    time.sleep(2)
                self.judge.accepts(mount.point, answer)
        self.ledger.note("every byte of every mount that stayed was read once more")

    def leave_nothing(self):
        kitfs = self.kitfs
        if self.options.keep_logs:
            self.keep_logs()
        for log in kitfs.run_dir.glob("*/log*"):
            if b"panic" in log.read_bytes():
                self.ledger.fail(f"a worker panicked: {log.read_text(errors='replace')[-2000:]}")
        for mount in self.mounts:
            code, _, err = kitfs.run("umount", mount.point)
            if code != 0:
                self.ledger.fail(f"umount of {mount.point} at the end: {code}: {err}")
        kitfs.wait(60)
        if kitfs.processes() or kitfs.mounts():
            self.ledger.fail(f"left behind: {kitfs.processes()} {kitfs.mounts()}")
        code, _, err = kitfs.run("verify", "--all")
        if code != 0:
            self.ledger.fail(f"kitfs verify --all at the end: {code}: {err}")
        # What was used a moment ago stays, even if the cache is over its limit.
        time.sleep(12)
        for command in [["cache", "prune"], ["cache", "ls", "--json"]]:
            code, out, err = kitfs.run(*command)
            if code != 0:
                self.ledger.fail(f"kitfs {' '.join(command)} at the end: {code}: {err}")
        listed = json.loads(out)
        if listed["bytes"] > listed["limit"] or listed["limit"] != self.limit:
            self.ledger.fail(f"the cache has {listed['bytes']} of {self.limit} bytes, its limit {listed['limit']}")
        if held := [layer for layer in listed["layers"] if layer["in_use"] or layer["pinned"]]:
            self.ledger.fail(f"in use or pinned after all is over: {held}")
        version = next(kitfs.cache.glob("v*"))
        there = {path.name for path in (version / "layers").iterdir()}
        if there != {layer["layer"] for layer in listed["layers"]}:
            self.ledger.fail(f"`cache ls` lists {listed['layers']}, there are {there}")
        left = [*(version / "ingest").iterdir(), *(version / "trash").iterdir(), *kitfs.run_dir.glob("*/*")]
        if left:
            self.ledger.fail(f"left behind: {[str(each) for each in left]}")

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
        for what, number in sorted(self.ledger.counts.items()):
            lines.append(f"| {what} | {f'{number / (1 << 30):.1f} GiB' if what.startswith('bytes') else number} |")
        if self.status_times:
            worst, middle = max(self.status_times), statistics.median(self.status_times)
            lines.append(f"| `status --json` under this load | {middle * 1e3:.0f} ms, at most {worst * 1e3:.0f} ms |")
        return lines
