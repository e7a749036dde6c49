"""What scripts/soak measures beside the mixed load: many mounts at once, and the memory of a worker that has all to do at once."""

import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

from testbed.kitfs import KitfsApart
from testbed.kits import MIB, digest_of_file
from testbed.processes import Most, environment, memory, shares, usage, watched
from testbed.registry import Registry

from .contents import Layer, push, small_files
from .relay import Relay

#: MiB that a worker may have resident, whatever it does.
WORKER_MIB = 150
READERS = 64


def many_mounts(options, folder, stack):
    """So many mounts of a few kits: what each costs, and how long the verbs for all of them take."""
    names = environment(folder)
    registry = Registry(folder, names, stack)
    kitfs = KitfsApart(options.kitfs, folder, names)
    stack.callback(kitfs.clear)
    kits = [
        push(registry, "one", [Layer("model", "model", {"weights.bin": (1, 8 * MIB, False), **small_files(2, 30)})]),
        push(registry, "many", [Layer("dataset", f"d{n:02}", small_files(10 + n, 50)) for n in range(20)]),
        push(registry, "files", [Layer("dataset", "data", small_files(3, 5000, 100, 900))]),
    ]
    failures = []
    begun = time.monotonic()
    for number in range(options.mounts):
        kit = kits[number % len(kits)]
        point = folder / "mnt" / f"{number:03}"
        point.mkdir(parents=True)
        kitfs.must("mount", *(["--no-passthrough"] if number % 2 else []), kit.reference, point)
    mounting = time.monotonic() - begun
    begun = time.monotonic()
    # Of each a folder, and a file of 20 mounts, so that it is not only there but in use.
    for number in range(options.mounts):
        point = folder / "mnt" / f"{number:03}"
        for directory, _, files in os.walk(point):
            for name in files[:2]:
                Path(directory, name).read_bytes()
    reading = time.monotonic() - begun
    mounts = kitfs.status()
    if len(mounts) != options.mounts or any(mount["state"] != "serving" for mount in mounts):
        failures.append(f"{len(mounts)} of {options.mounts} mounts, {[mount for mount in mounts if mount['state'] != 'serving'][:2]}")
    # Layers that are not used are let go after 10 s.
    time.sleep(12)
    rows = []
    for role, key in [("supervisor", "supervisor_pid"), ("worker", "worker_pid")]:
        found = [{**usage(mount[key]), **shares(mount[key])} for mount in mounts]
        rows.append((role, {name: [each[name] for each in found] for name in found[0]}))
    lines = [f"{options.mounts} mounts of {len(kits)} kits, {time.strftime('%Y-%m-%d %H:%M')}", "", "| a mount | middle | most | all |", "|---|---|---|---|"]
    total = 0
    for role, of in rows:
        for name, title in [("pss", "PSS"), ("pss_anon", "PSS, anonymous"), ("private", "private"), ("anon", "RssAnon"), ("rss", "VmRSS")]:
            sizes = of[name]
            total += sum(sizes) if name == "pss" else 0
            lines.append(f"| {role}: {title} | {statistics.median(sizes) / MIB:.2f} MiB | {max(sizes) / MIB:.2f} MiB | {sum(sizes) / MIB:.0f} MiB |")
        lines.append(f"| {role}: threads, descriptors | {statistics.median(of['threads']):.0f}, {statistics.median(of['fds']):.0f} | {max(of['threads'])}, {max(of['fds'])} | |")
    lines.append(f"| both: PSS | {total / options.mounts / MIB:.2f} MiB | | {total / MIB:.0f} MiB |")
    lines += ["", "| verb | best | middle | worst |", "|---|---|---|---|"]

    def timed(title, *arguments):
        times = []
        for _ in range(10):
            started = time.monotonic()
            code, out, err = kitfs.run(*arguments, limit=60)
            times.append(time.monotonic() - started)
            if code != 0 or out.count("supervisor") < (options.mounts if len(arguments) < 3 or arguments[1] == "--json" else 1):
                failures.append(f"{title} ended with {code}: {err}")
        lines.append(f"| {title} | {min(times) * 1e3:.0f} ms | {statistics.median(times) * 1e3:.0f} ms | {max(times) * 1e3:.0f} ms |")
        if statistics.median(times) > 1:
            failures.append(f"{title} takes {statistics.median(times):.2f} s")

    timed("`kitfs status`", "status")
    timed("`kitfs status --json`", "status", "--json")
    stopped = [mounts[0]["supervisor_pid"], mounts[1]["worker_pid"]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    timed("`kitfs status --json`, a supervisor and another's worker stopped", "status", "--json")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    started = time.monotonic()
    code, _, err = kitfs.run("umount", "--all")
    ending = time.monotonic() - started
    if code != 0:
        failures.append(f"umount --all ended with {code}: {err}")
    kitfs.wait(20)
    if kitfs.processes() or kitfs.mounts() or list(kitfs.run_dir.glob("*/*")):
        failures.append(f"left behind: {kitfs.processes()} {kitfs.mounts()} {list(kitfs.run_dir.glob('*/*'))}")
    lines += ["", f"mounting all: {mounting:.1f} s, reading in all: {reading:.1f} s, `kitfs umount --all`: {ending:.1f} s"]
    return lines, failures


def memory_mode(options, folder, stack):
    """Four large layers at once and 64 readers in one mount, several times: what the worker has of memory at most."""
    names = environment(folder)
    registry = Registry(folder, names, stack)
    relay = Relay(registry.host, stack)
    note = lambda text: options.verbose and print(text, file=sys.stderr, flush=True)
    note("packing")
    size = options.layer_mib * MIB
    small = Layer("dataset", "small", small_files(1, 5000, 100, 4000))
    layers = lambda codings: [Layer("dataset", f"large-{n}", {"large.bin": (10 + n, size, coding != "")}, coding) for n, coding in enumerate(codings)]
    kit = push(registry, "four", [small, *layers(["", "", "zstd", "zstd"])])
    lines = [
        f"two plain and two zstd layers of {options.layer_mib} MiB uncompressed at once, {READERS} readers of small files, {time.strftime('%Y-%m-%d %H:%M')}", "",
        "| way to the registry | RssAnon at most | VmRSS at most | RssAnon after it | threads | seconds | small files read |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    failures = []
    # A slow way starves the first connection, so that there are several and the budget for what came out of order is used up.
    for way, mode, option in [("loopback", "pass", []), ("40 ms for each 256 KiB", "slow 40", ["--no-passthrough"])]:
        relay.set(mode)
        place = folder / mode[:4]
        place.mkdir()
        kitfs = KitfsApart(options.kitfs, place, names)
        stack.callback(kitfs.clear)
        point = place / "mnt"
        point.mkdir()
        kitfs.must("mount", "--prefetch", "none", *option, kit.at(relay.host), point)
        peak, after, seconds, reads = at_once(kitfs.status()[0]["worker_pid"], point, kit, failures)
        if kitfs.status()[0]["restarts"]:
            failures.append(f"{way}: the worker was replaced")
        kitfs.must("umount", point)
        title = way + "".join(f", {each}" for each in option)
        lines.append(
            f"| {title} | {peak.anon / MIB:.0f} MiB | {peak.rss / MIB:.0f} MiB | {after['anon'] / MIB:.0f} MiB "
            f"| {peak.threads} | {seconds:.1f} | {reads} |"
        )
        note(lines[-1])
        if peak.rss > WORKER_MIB * MIB:
            failures.append(f"{title}: the worker has {peak.rss / MIB:.0f} MiB, at most {WORKER_MIB} are allowed")
        shutil.rmtree(place / "cache")
    return lines, failures


def at_once(worker, point, kit, failures):
    """Opens the four large files at once, and reads small ones from many threads until they are here. Then they are compared, too."""
    files = json.loads(kit.table.read_text())["files"]
    small = [name for name in files if name.startswith("small/")]
    large = [name for name in files if not name.startswith("small/")]
    # Here before it begins, for that is what they read.
    Path(point, small[0]).read_bytes()
    done, peak, reads, opened = threading.Event(), Most(), [0] * READERS, {}

    def fetch(name):
        opened[name] = open(point / name, "rb", buffering=0)

    def read(number):
        chance = random.Random(number)
        while not done.is_set():
            name = chance.choice(small)
            with open(point / name, "rb", buffering=0) as file:
                # A seventh of them once more from kitfs, not from the page cache.
                if reads[number] % 7 == 0:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                found = file.read()
            if hashlib.sha256(found).hexdigest() != files[name][1]:
                failures.append(f"WRONG BYTES: {name}")
            reads[number] += 1

    begun = time.monotonic()
    fetches = [threading.Thread(target=fetch, args=(name,), daemon=True) for name in large]
    others = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    with watched([worker], [peak]):
        try:
            for thread in others + fetches:
                thread.start()
            for thread in fetches:
                thread.join(600)
            seconds = time.monotonic() - begun
        finally:
            done.set()
            for thread in others:
                thread.join()
    # What was fetched with is given back within a second or two, but for what is synced still.
    time.sleep(5)
    after = memory(worker)
    for name in large:
        if name not in opened:
            failures.append(f"{name} could not be opened within 600 s")
            continue
        with opened[name] as file:
            if "sha256:" + files[name][1] != digest_of_file(file.name):
                failures.append(f"WRONG BYTES: {name}")
    return peak, after, seconds, sum(reads)
