"""A process that reads in a mount and compares: a job a line, an answer a line."""

import hashlib
import json
import mmap
import os
import random
import select
import stat
import sys
import time

from testbed.kitfs import HANGS
from testbed.processes import end, talking

#: How many files of a sort one job looks at.
SOME = 60


class Reader:
    """A process that reads, so that one that hangs or is hit by a signal takes nobody with it."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.process = None

    def __enter__(self):
        self.process = talking([sys.executable, "-m", "soaking.reader"])
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
            self.ledger.fail(f"reader of {point} ({how}) {state}")
            return None
        self.ledger.count(f"reads, {how}")
        return json.loads(line)


# ---- the reader's process


class Job:
    def __init__(self):
        self.indexes = {}
        self.held = None

    def do(self, job):
        self.root = job["root"]
        if job["index"] not in self.indexes:
            with open(job["index"], encoding="utf-8") as file:
                self.indexes[job["index"]] = json.load(file)
        index = self.indexes[job["index"]]
        self.files, self.truth = index["files"], index["truth"]
        self.chance = random.Random(job["seed"])
        self.answer = {"operations": 0, "bytes": 0, "wrong": [], "errors": []}
        getattr(self, job["how"])()
        return self.answer

    def some(self, large=None):
        names = [name for name, (size, _) in self.files.items() if large is None or (size >= 1 << 20) == large] or list(self.files)
        return self.chance.sample(names, min(SOME, len(names)))

    def trying(self, path, operation, work):
        """Does it, and notes what came of it. None if it failed."""
        self.answer["operations"] += 1
        begun = time.monotonic()
        try:
            return work()
        except OSError as error:
            self.answer["errors"].append([path, operation, error.errno, begun, time.monotonic()])
            return None

    def wrong(self, path, what):
        self.answer["wrong"].append(f"{path}: {what}")

    def compare(self, path, file):
        check, count = hashlib.sha256(), 0
        while piece := file.read(1 << 20):
            check.update(piece)
            count += len(piece)
        self.answer["bytes"] += count
        size, digest = self.files[path]
        if (count, check.hexdigest()) != (size, digest):
            self.wrong(path, f"{count} bytes with {check.hexdigest()}, expected {size} with {digest}")

    def whole(self, path):
        def work():
            with open(f"{self.root}/{path}", "rb", buffering=0) as file:
                self.compare(path, file)

        self.trying(path, "read", work)

    # ---- ways

    def sequential(self):
        self.whole(self.some(large=True)[0])

    def cat(self):
        for path in self.some(large=False):
            self.whole(path)

    def all(self):
        for path in self.files:
            self.whole(path)

    def mmap(self):
        path = self.some(large=True)[0]

        def work():
            with open(f"{self.root}/{path}", "rb") as file, open(f"{self.truth}/{path}", "rb") as truth:
                size = os.fstat(file.fileno()).st_size
                if size != self.files[path][0]:
                    return self.wrong(path, f"fstat says {size} bytes")
                with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
                    for _ in range(200):
                        at = self.chance.randrange(size)
                        piece = mapped[at : at + 4096]
                        self.answer["bytes"] += len(piece)
                        if piece != os.pread(truth.fileno(), len(piece), at):
                            return self.wrong(path, f"mapped bytes at {at}")

        self.trying(path, "mmap", work)

    def find(self):
        def refuse(error):
            raise error

        def work():
            found = {os.path.relpath(os.path.join(folder, name), self.root) for folder, _, names in os.walk(self.root, onerror=refuse) for name in names}
            found.discard("Kitfile")
            if found != set(self.files):
                self.wrong("find", f"missing {list(set(self.files) - found)[:3]}, too many {list(found - set(self.files))[:3]}")

        self.trying(".", "find", work)

    def stat(self):
        for path in self.some():
            about = self.trying(path, "stat", lambda: os.stat(f"{self.root}/{path}"))
            if about and (not stat.S_ISREG(about.st_mode) or about.st_size != self.files[path][0]):
                self.wrong(path, f"stat says {about}")

    def open(self):
        path = self.some(large=True)[0]
        file = self.trying(path, "open", lambda: open(f"{self.root}/{path}", "rb", buffering=0))
        self.held = file and (path, file)

    def finish(self):
        if self.held:
            path, file = self.held
            self.held = None
            with file:
                self.trying(path, "read", lambda: self.compare(path, file))


def main():
    job = Job()
    for line in sys.stdin:
        print(json.dumps(job.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
