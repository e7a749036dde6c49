"""What kitfs takes while it is loaded, and whether that grew."""

import contextlib
import json
import os
import statistics

from testbed.kits import MIB
from testbed.processes import usage

#: What may be more at the end: a share, and so much besides. The disk goes up and down below the limit as layers are evicted and come back, which is
#: no growth; what `cache ls` does not know of is looked at instead.
ALLOWED = {
    ("worker", "rss"): (0.25, 24 * MIB), ("worker", "anon"): (0.25, 12 * MIB), ("worker", "fds"): (0.25, 24), ("worker", "threads"): (0.25, 8),
    ("supervisor", "rss"): (0.1, MIB), ("supervisor", "anon"): (0.1, MIB), ("supervisor", "fds"): (0.25, 16), ("supervisor", "threads"): (0, 0),
    ("cache", "disk"): None, ("cache", "unlisted"): (0.25, 64 * MIB),
    ("cache", "files"): (0.25, 100), ("run", "files"): (0.25, 20), ("all", "processes"): (0, 8),
    ("all", "mounts"): (0, 4),
}  # fmt: skip


class Growth:
    def __init__(self, ledger, kitfs, minutes):
        self.ledger, self.kitfs, self.minutes = ledger, kitfs, minutes
        self.samples = []

    def sample(self, at, mounts):
        """Of the mounts that stay, each with its status, and of all that is there."""
        values = {}
        for mount, status in mounts:
            if mount.spared and status["worker_pid"] != mount.first_worker:
                self.ledger.fail(f"the worker of {mount.name}, whom nobody kills, is another one: {status}")
            if status["restarts"] > mount.killed:
                self.ledger.fail(f"{mount.name} has restarted {status['restarts']} times, its worker was killed {mount.killed} times")
            for role, pid in [("supervisor", status["supervisor_pid"])] + ([("worker", status["worker_pid"])] if mount.spared else []):
                found = usage(pid)
                if found is None:
                    self.ledger.fail(f"{role} of {mount.name} is gone")
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
        code, out, err = self.kitfs.run("cache", "ls", "--json")
        if code != 0:
            self.ledger.fail(f"kitfs cache ls: {code}: {err}")
        else:
            values["cache", "unlisted"] = max(0, disk - json.loads(out)["bytes"])
        values["run", "files"] = sum(len(names) for _, _, names in os.walk(self.kitfs.run_dir))
        values["all", "processes"] = len(self.kitfs.processes())
        values["all", "mounts"] = len(self.kitfs.mounts())
        self.samples.append((at, values))
        shown = ", ".join(f"{'.'.join(key)} {number / MIB:.1f}M" if number > 99_999 else f"{'.'.join(key)} {number}" for key, number in values.items())
        self.ledger.note(f"{at:.0f} s: {shown}; {self.ledger.counts.get('operations', 0)} operations")

    def table(self):
        """The middle of the first third after a minute of warming up, beside that of the last."""
        lines = [f"| {'most of any process':<22} | begin | end | per hour | highest | |", "|---|---|---|---|---|---|"]
        samples = [each for each in self.samples if each[0] >= min(60, self.minutes * 10)]
        if len(samples) < 6:
            return [*lines, "too few samples to compare"]
        third = len(samples) // 3
        for key, allowed in ALLOWED.items():
            series = [(at, values[key]) for at, values in samples if key in values]
            first, last = (statistics.median(number for _, number in part) for part in (series[:third], series[-third:]))
            slope = statistics.linear_regression(*zip(*series)).slope * 3600
            grew = allowed is not None and last > first * (1 + allowed[0]) + allowed[1]
            unit = (lambda number: f"{number / MIB:.1f} MiB") if key[1] in ("rss", "anon", "disk", "unlisted") else (lambda number: f"{number:.0f}")
            lines.append(f"| {' '.join(key):<22} | {unit(first)} | {unit(last)} | {unit(slope)} | {unit(max(n for _, n in series))} | {'GREW' if grew else ''} |")
            if grew:
                self.ledger.fail(f"{' '.join(key)} grew from {unit(first)} to {unit(last)}")
        return lines
