"""What all groups of measurements stand on: folder, environment, registry, mounts, and turns."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path

from testbed.kitfs import Kitfs
from testbed.processes import end, environment, talking
from testbed.registry import Registry

from . import contents
from .table import Table

#: Seconds for a pull: the disk of some machines is slow.
PULL = 1800


class Rig:
    def __init__(self, options, stack):
        self.options = options
        self.rounds = options.rounds
        self.stack = stack
        self.reader = (options.programs / "reader").resolve()
        self.table = Table()
        self.folder = Path(tempfile.mkdtemp(prefix="kitfs-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.environment = environment(self.folder)
        self.kitfs = Kitfs(options.kitfs.resolve(), self.environment)
        self.registry = Registry(self.folder, self.environment, stack)

    # ---- what several groups need

    @cached_property
    def big(self):
        """A kit of one large file."""
        self.note("making the large kit")
        return self.registry.push("big", [contents.one_file(self.folder / "big.tar", self.options.mib)])

    @cached_property
    def half(self):
        """One half as large, for what takes longer."""
        return self.registry.push("half", [contents.one_file(self.folder / "half.tar", self.options.mib // 2)])

    @cached_property
    def small(self):
        """A kit of 5,000 small files."""
        return self.registry.push("small", [contents.small_files(self.folder / "small.tar", 5000)])

    @cached_property
    def relay(self):
        """Where a relay listens that stands for a long way to the registry."""
        process = talking([(self.options.programs / "relay").resolve(), self.registry.host])
        self.stack.callback(end, process)
        return process.stdout.readline().strip()

    @cached_property
    def tls(self):
        return self.registry.serve_tls()

    @contextlib.contextmanager
    def pushed(self, name, make):
        """A kit that is there for one group; `make` makes its layers in a folder."""
        self.note(f"making the kit {name}")
        with self.scratch() as folder:
            kit = self.registry.push(name, make(folder))
        try:
            yield kit
        finally:
            self.registry.forget(kit)

    @contextlib.contextmanager
    def scratch(self):
        folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # ---- measuring

    def turns(self, rounds, ways):
        """Times of each way, in turns, so that what else the machine does meets all of them. Each round begins with another one: what comes after
        one that used much memory finds that memory at hand, and others may have to ask the host of a virtual machine for theirs."""
        times = {name: [] for name in ways}
        names = list(ways)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                os.sync()
                times[name].append(ways[name]())
                self.note(f"  {name}: {times[name][-1]:.3f} s")
        return times

    def cold(self, reference, files, *options, meanwhile=None):
        """From nothing to the last byte of these files, read one after the other."""
        with self.scratch() as folder:
            start = time.monotonic()
            with self.mount(reference, folder / "cache", *options) as mountpoint:
                with contextlib.ExitStack() as stack:
                    if meanwhile:
                        asked = time.monotonic()
                        stack.enter_context(meanwhile(*self.processes(mountpoint)))
                        # Asking for the processes is no part of it.
                        start += time.monotonic() - asked
                    for file in files:
                        self.read("sequential", mountpoint / file)
                    return time.monotonic() - start

    def timed(self, command):
        """How long a command of the shell takes; `{}` in it is an empty folder, which goes afterwards."""
        with self.scratch() as folder:
            start = time.monotonic()
            self.shell(command.replace("{}", str(folder)))
            return time.monotonic() - start

    def read(self, how, *arguments):
        return int(self.output([self.reader, how, *arguments])) / 1e9

    def note(self, text):
        if self.options.verbose:
            print(text, file=sys.stderr, flush=True)

    # ---- running things

    def output(self, command):
        return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True, env=self.environment).stdout.strip()

    def shell(self, command):
        subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL, env=self.environment)

    def pull(self, kit, cache):
        """Brings the kit into a cache, safe on disk."""
        self.kitfs.must("pull", "--plain-http", "--cache-dir", cache, kit.reference, limit=PULL)
        return cache

    @contextlib.contextmanager
    def mount(self, reference, cache, *options):
        mountpoint = Path(tempfile.mkdtemp(prefix="mount-", dir=self.folder))
        transport = () if "--ca-cert" in options else ("--plain-http",)
        self.kitfs.must("mount", *transport, "--cache-dir", cache, *options, reference, mountpoint)
        self.mounted = time.monotonic()
        try:
            yield mountpoint
        finally:
            code, _, err = self.kitfs.run("umount", mountpoint)
            if code != 0:
                # Whatever kept it, nothing stays behind. It may have gone meanwhile.
                print(err, end="", file=sys.stderr)
                _, _, err = self.kitfs.run("umount", "--lazy", mountpoint)
                if os.path.ismount(mountpoint):
                    raise RuntimeError(f"{mountpoint} stays mounted: {err}")
            mountpoint.rmdir()

    def status(self, mountpoint):
        return self.kitfs.status(mountpoint)[0]

    def processes(self, mountpoint):
        status = self.status(mountpoint)
        return status["supervisor_pid"], status["worker_pid"]


def drop_caches():
    # Dentries and inodes too: what is left is what a freshly started machine has.
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="utf-8")
