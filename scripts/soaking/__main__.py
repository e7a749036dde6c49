"""Loads kitfs with everything at once for a given time, and says whether it grew: started by scripts/soak, which builds what is loaded.

Readers compare each byte with what was packed, while mounts come and go, processes are killed and stopped, the way to the registry fails, and a cache
that is smaller than the kits evicts. A wrong byte, an errno that no fault explains, a hang, a worker that died by itself, growth, or anything left
behind is a failure. Everything is made below one folder in $SOAK_DIR (default /var/tmp) and removed.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from .load import Soak
from .measurements import many_mounts, memory_mode


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
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


if __name__ == "__main__":
    main()
