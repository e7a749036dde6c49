"""Measures kitfs beside what it replaces: started by scripts/bench, which builds what is measured.

Everything that is compared runs in one go, in turns, and the best of each counts: other work on the machine only ever adds time. Data,
registry, caches and mounts are made here, and removed at the end.
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from . import fetching, mounting, plotting, reading, table
from .rig import Rig

GROUPS = {
    # What fetches comes first: it is the most at the mercy of the disk.
    "cold": fetching.cold,
    "latency": fetching.latency,
    "tls": fetching.tls,
    "layers": fetching.layers,
    "compressed": fetching.compressed,
    "warm": reading.warm,
    "small": reading.small,
    "readers": reading.readers,
    "start": mounting.start,
    "many": mounting.many,
    "decision": mounting.decision,
}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--kitfs", type=Path, help="the release binary; built unless given")
    parser.add_argument("--programs", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--only", default=",".join(GROUPS), help="which groups, by comma: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of what is cold; the others have more (%(default)s)")
    parser.add_argument("--mib", type=int, default=2048, help="size of the large file (%(default)s)")
    parser.add_argument("--write", action="store_true", help="writes docs/benchmarks.md and its charts, with these groups' figures in the place of what was there of them; a whole run does anyway")
    parser.add_argument("--draw", action="store_true", help="measures nothing, and writes document and charts anew from docs/benchmarks/figures.json")
    parser.add_argument("--verbose", action="store_true", help="every single figure, to stderr")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(GROUPS):
        parser.error(f"there are no groups {', '.join(sorted(unknown))}")
    writes = options.write or options.draw or set(chosen) == set(GROUPS)
    if writes:
        plotting.prepare(options.programs)
    if not options.draw:
        try:
            measure(options, chosen, writes)
        except RuntimeError as error:
            # Of kitfs itself, which has said why.
            sys.exit(str(error))
    if writes:
        # Not before matplotlib is there.
        from . import document

        document.write()


def measure(options, chosen, writes):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with contextlib.ExitStack() as stack:
        rig, loads = Rig(options, stack), {}
        for name in chosen:
            rig.table.group = name
            rig.note(name)
            loads[name] = round(os.getloadavg()[0], 1)
            GROUPS[name](rig)
        print(table.markdown(rig.table.rows))
        if writes:
            from . import document

            rig.about = document.about(rig)
            document.record(rig, loads)


if __name__ == "__main__":
    main()
