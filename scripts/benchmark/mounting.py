"""How long it takes until a kit that is in the cache can be used, and what a mount costs."""

import json
import subprocess
import time
from pathlib import Path

from testbed.processes import Most

from . import contents

SIGNED = Path(__file__).resolve().parents[2] / "tests/fixtures/signed"
MANY_LAYERS = 100
LAYER_FILES = 10_000


def start(rig):
    """A mount of what is in the cache, until its first byte."""
    names = ["to the first byte, by tag", "to the first byte, by digest", "after"]
    times = {name: [] for name in names}
    with rig.scratch() as folder:
        cache = rig.pull(rig.small, folder / "cache")
        for _ in range(15):
            for how, reference in [(names[0], rig.small.reference), (names[1], rig.small.by_digest)]:
                begun = time.monotonic()
                with rig.mount(reference, cache) as mountpoint:
                    ended = first_byte(mountpoint / "data/000/000000.txt")
                    times[how].append(ended - begun)
                    times["after"].append(ended - rig.mounted)
    for how in names[:2]:
        rig.table.add(f"`kitfs mount` of a cached kit {how}", times[how], goal=50, unit="ms")
    rig.table.add("first byte of a small file of a cached kit, once `kitfs mount` returned", times["after"], goal=1, unit="ms")


def first_byte(path):
    with open(path, "rb", buffering=0) as file:
        file.read(1)
    return time.monotonic()


def many(rig):
    """A kit of 100 layers with a million files in all, which is in the cache."""
    entries = MANY_LAYERS * LAYER_FILES
    memories = {name: Most() for name in ["supervisor", "mounted", "listed"]}
    times = {"mount": [], "byte": [], "find": []}
    make = lambda folder: [contents.tiny_files(folder / f"{number}.tar", number, LAYER_FILES) for number in range(MANY_LAYERS)]
    with rig.pushed("many", make) as kit, rig.scratch() as folder:
        rig.note("  into the cache")
        cache = rig.pull(kit, folder / "cache")
        rig.registry.forget(kit)
        for turn in range(15):
            begun = time.monotonic()
            with rig.mount(kit.reference, cache) as mountpoint:
                times["mount"].append(rig.mounted - begun)
                times["byte"].append(first_byte(mountpoint / f"data/{turn:03}/{turn:05}.txt") - begun)
                supervisor, worker = rig.processes(mountpoint)
                memories["mounted"].look(worker)
                if turn < 2:
                    begun = time.monotonic()
                    found = int(subprocess.run(f"find {mountpoint}/data -type f -printf '%s\n' | wc -l", shell=True, capture_output=True, text=True, check=True).stdout)
                    times["find"].append(time.monotonic() - begun)
                    assert found == entries, f"{found} files"
                    memories["listed"].look(worker)
                memories["supervisor"].look(supervisor)
    what = f"a cached kit of {MANY_LAYERS} layers and {entries:,} files"
    rig.table.add(f"`kitfs mount` of {what}, by tag", times["mount"], goal=100, unit="ms")
    rig.table.add(f"`kitfs mount` of {what}, to the first byte", times["byte"], unit="ms")
    rig.table.add("`find -printf %s` over all of them, nothing in memory", times["find"])
    for name, when in [("mounted", "once it is mounted"), ("listed", "after that `find`")]:
        rig.table.size(f"worker of those {MANY_LAYERS} layers: anonymous memory, {when}", memories[name].anon, 50)
    rig.table.size(f"supervisor of those {MANY_LAYERS} layers: anonymous memory", memories["supervisor"].anon, 10)


def decision(rig):
    """What it costs to decide on a kit of which everything is in the cache already."""
    for case, what in [("key-p256-bundle", "signed by a key"), ("keyless-rekor2", "signed by an identity, logged in Rekor v2")]:
        with rig.scratch() as folder:
            layout = folder / "layout"
            layout.mkdir()
            rig.shell(f"tar x -C {layout} -f {SIGNED / case / 'layout.tar'}")
            name = json.loads((SIGNED / case / "case.json").read_text(encoding="utf-8"))["reference"]
            policy = ["--policy", SIGNED / case / "policy.yaml", "--trusted-root", SIGNED / case / "trusted_root.json"]
            times = {"with": [], "without": []}
            for turn in range(31):
                for how, options in [("with", policy), ("without", [])]:
                    begun = time.monotonic()
                    with rig.mount(f"oci:{layout}:{name}", folder / "cache", *options):
                        # The first brings it into the cache.
                        if turn > 0:
                            times[how].append(rig.mounted - begun)
        cost = [a - b for a, b in zip(times["with"], times["without"])]
        rig.table.add(f"what the decision adds to `kitfs mount` of a cached kit {what}", cost, goal=30, unit="ms", best="median")
