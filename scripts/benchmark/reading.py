"""What is in the cache, beside a plain folder with the same files: one large file, many small ones, many readers."""

import contextlib
import subprocess
import time

from . import contents
from .rig import drop_caches

WEIGHTS = "model/weights.bin"
SETS = 6
READ_FILES = 100_000
READERS = [1, 2, 8, 64]
READ_MILLISECONDS = 1000


def warm(rig):
    """A large file that is in the page cache."""
    size = f"{rig.options.mib / 1024:g} GiB"
    with beside(rig, rig.big) as (cache, plain), rig.mount(rig.big.reference, cache) as direct, rig.mount(rig.big.reference, cache, "--no-passthrough") as cached:
        files = {name: folder / WEIGHTS for name, folder in [("plain", plain), ("direct", direct), ("cached", cached)]}
        passes_through = rig.status(direct)["passthrough"]
        # Where a file's pages lie in memory, and in which sizes, is decided when they are read, and by chance: it is worth up to 1.6 times. So they are
        # dropped and read anew for each set, in turns, and the best of all sets counts for each file. In cached mode the file is there twice.
        sets = [warm_set(rig, files, turn) for turn in range(SETS)]
    for how, what in [("sequential", f"warm sequential read of {size}"), ("random", "warm `mmap`, 200,000 random places of 4 KiB")]:
        times = {name: [seconds for one in sets for seconds in one[how][name]] for name in files}
        mode, goal = ("passthrough", 1.03) if passes_through else ("cached mode, since there is no passthrough here", None)
        rig.table.add(f"{what}, {mode}", times["direct"], beside="plain folder", theirs=times["plain"], goal=goal, unit="ms")
        rig.table.add(f"{what}, `--no-passthrough`", times["cached"], beside="plain folder", theirs=times["plain"], unit="ms")


def warm_set(rig, files, turn):
    names = list(files)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    drop_caches()
    for name in names:
        rig.read("sequential", files[name])
    times = {how: {name: [] for name in names} for how in ["sequential", "random"]}
    for _ in range(3):
        for how, of in times.items():
            for name in names:
                of[name].append(rig.read(how, files[name]))
    rig.note(f"  warm set {turn}: {({how: {name: round(min(each) * 1e3, 1) for name, each in of.items()} for how, of in times.items()})} ms")
    return times


def small(rig):
    """Names and contents of 5,000 small files."""
    commands = {
        "`find -printf %s`": ("find {} -type f -printf '%s'", {"first": 1.5, "second": 1.1}),
        "`cat`": ("find {} -type f -print0 | xargs -0 cat", {"first": 4.5, "second": 4.5}),
    }
    times = {}
    with beside(rig, rig.small) as (cache, plain):
        for _ in range(5):
            for what, (command, _) in commands.items():
                with rig.mount(rig.small.reference, cache) as mounted:
                    for name, folder in [("mounted", mounted), ("plain", plain)]:
                        drop_caches()
                        for turn in ["first", "second", "third"]:
                            start = time.monotonic()
                            rig.shell(command.format(folder / "data"))
                            # The third is a second one too.
                            times.setdefault((what, min(turn, "second"), name), []).append(time.monotonic() - start)
    for what, (_, goals) in commands.items():
        for turn, title in [("first", "first pass, nothing in memory"), ("second", "again")]:
            rig.table.add(
                f"{what} of 5,000 small files, {title}", times[what, turn, "mounted"], beside="plain folder", theirs=times[what, turn, "plain"], goal=goals[turn], unit="ms"
            )


def readers(rig):
    """Many readers, each of which opens, reads and closes small files at random."""
    with rig.pushed("files", lambda folder: [contents.small_files(folder / "files.tar", READ_FILES)]) as kit, beside(rig, kit) as (cache, plain):
        with rig.mount(kit.reference, cache) as mounted:
            _, worker = rig.processes(mounted)
            folders = {"mounted": mounted / "data", "plain": plain / "data"}
            # Each file once, so that what follows finds all of them in memory.
            for folder in folders.values():
                scatter(rig, folder, 64, 0)
            rates = {(name, count): [] for name in folders for count in READERS}
            for _ in range(rig.rounds):
                for count in READERS:
                    for name, folder in folders.items():
                        rates[name, count].append(scatter(rig, folder, count, READ_MILLISECONDS))
                        rig.note(f"  {name}, {count} readers: {rates[name, count][-1]:,.0f}/s")
            switches = {count: per_read(rig, folders["mounted"], worker, count) for count in (1, 64)}
    rate = {"unit": "reads/s", "best": "max"}
    for count in READERS:
        what = f"files read in a second by {count} reader{'s' * (count > 1)}, of {READ_FILES:,} of 0.5 to 16 KiB at random"
        rig.table.add(what, rates["mounted", count], beside="plain folder", theirs=rates["plain", count], **rate)
    for many, few, goal in [(8, 1, 1.5), (64, 8, 0.9)]:
        rig.table.add(f"such files in a second, {many} readers", rates["mounted", many], beside=f"{few} reader{'s' * (few > 1)} of the same mount", theirs=rates["mounted", few], goal=goal, at_least=True, **rate)
    for count, (waits, futexes) in switches.items():
        who = f"{count} reader{'s' * (count > 1)}"
        rig.table.add(f"the worker's voluntary context switches for each file read, {who}", [waits], unit="")
        if futexes is not None:
            # A convoy is one futex call or more for each request; a lock that is free makes none.
            rig.table.add(f"the worker's futex calls for each file read, {who}", [futexes], goal=0.1, unit="")


def scatter(rig, folder, threads, milliseconds):
    """Files read in a second."""
    nanoseconds, files = map(int, rig.output([rig.reader, "scatter", folder, READ_FILES, threads, milliseconds]).split())
    return files / nanoseconds * 1e9


def per_read(rig, folder, worker, threads):
    """How often the worker's threads went to sleep, and called futex, for each file read."""
    before = voluntary(worker)
    command = [rig.reader, "scatter", folder, READ_FILES, threads, 2 * READ_MILLISECONDS]
    counted = subprocess.run(["perf", "stat", "-x,", "-e", "syscalls:sys_enter_futex", "-p", str(worker), "--", *map(str, command)], capture_output=True, text=True, check=False)
    if counted.returncode != 0:
        files = int(rig.output(command).split()[1])
        return (voluntary(worker) - before) / files, None
    files = int(counted.stdout.split()[1])
    line = next((line for line in counted.stderr.splitlines() if "sys_enter_futex" in line), "")
    calls = line.split(",")[0]
    return (voluntary(worker) - before) / files, int(calls) / files if calls.isdigit() else None


def voluntary(process):
    total = 0
    for task in subprocess.run(["sh", "-c", f"cat /proc/{process}/task/*/status"], capture_output=True, text=True, check=False).stdout.splitlines():
        if task.startswith("voluntary_ctxt_switches"):
            total += int(task.split()[1])
    return total


@contextlib.contextmanager
def beside(rig, kit):
    """A cache with the kit in it, and a plain folder with the same files."""
    with rig.scratch() as folder:
        cache, plain = rig.pull(kit, folder / "cache"), folder / "plain"
        plain.mkdir()
        for layer in kit.layers:
            rig.shell(f"curl -sf {kit.blob(layer)} | tar x -C {plain}")
        subprocess.run(["sync"], check=True)
        yield cache, plain
