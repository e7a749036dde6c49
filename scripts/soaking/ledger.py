"""What happened in a run: counts, faults, failures. The first failure ends the load."""

import sys
import threading
import time

#: Seconds after the end of a fault in which its errors may still come: three attempts a second and more apart, and after a stall what the transport waits.
AFTERMATH = {"stall": 110}
AFTERMATH_ELSE = 40


class Ledger:
    def __init__(self, seed, verbose):
        self.seed, self.verbose = seed, verbose
        #: Whether the load has to end.
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.counts, self.failures = {}, []
        #: [mode, begin, end or None]
        self.faults = []

    def fail(self, what):
        with self.lock:
            self.failures.append(f"{what} (seed {self.seed}, {time.strftime('%H:%M:%S')}, faults {self.recent_faults()})")
        print(f"FAILED: {self.failures[-1]}", file=sys.stderr, flush=True)
        self.stop.set()

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + number

    def note(self, text):
        if self.verbose:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    # ---- faults

    def fault(self, mode):
        """Notes that one begins, and gives what its end has to be told to."""
        fault = [mode, time.monotonic(), None]
        self.faults.append(fault)
        self.count(f"faults, {mode}")
        self.note(f"fault: {mode}")
        return fault

    def recent_faults(self):
        now = time.monotonic()
        return [f"{mode} {now - begin:.0f} to {now - (end or now):.0f} s ago" for mode, begin, end in self.faults[-2:]]

    def is_explained(self, begun, ended):
        """Whether a fault, or what comes after it, met this time."""
        after = lambda mode: AFTERMATH.get(mode, AFTERMATH_ELSE)
        return any(begin <= ended and (end is None or end + after(mode) >= begun) for mode, begin, end in self.faults)

    def excuse(self, begun, what, counted):
        if self.is_explained(begun, time.monotonic()):
            self.count(counted)
            self.note(f"excused: {what}")
        else:
            self.fail(what)
