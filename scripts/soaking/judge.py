"""Says of what readers met, and of layers that failed, whether a fault explains it."""

import errno
import time


class Judge:
    def __init__(self, ledger, kitfs):
        self.ledger, self.kitfs = ledger, kitfs
        #: (mountpoint, layer, retry_at) -> when it was first seen, and its error.
        self.refused = {}
        #: Mountpoints whose supervisor was killed.
        self.orphaned = set()

    def accepts(self, point, answer):
        """Whether all was right. What was wrong has failed already."""
        if answer is None:
            return False
        self.ledger.count("operations", answer["operations"])
        self.ledger.count("bytes read and compared", answer["bytes"])
        for wrong in answer["wrong"]:
            self.ledger.fail(f"WRONG BYTES: {wrong} in {point}")
        for path, operation, number, begun, ended in answer["errors"]:
            name = errno.errorcode.get(number, str(number))
            if point in self.orphaned and name in ("ENOTCONN", "ECONNABORTED", "ENODEV"):
                self.ledger.count("errors of mounts whose supervisor was killed")
                continue
            explained = name in ("EIO", "ETIMEDOUT")
            if explained and not self.ledger.is_explained(begun, ended):
                self.look_at_layers()
                # Layers are not asked for again before their time, which is after the fault.
                explained = any(key[0] == point and seen > begun - 700 for key, (seen, _) in list(self.refused.items()))
            if explained:
                self.ledger.count(f"errors during and after faults, {name}")
            else:
                self.ledger.fail(f"{operation} of {path} in {point}: {name} after {ended - begun:.1f} s, and no fault explains it")
        return not answer["errors"] and not answer["wrong"]

    def look_at_layers(self):
        mounts = self.kitfs.status()
        now = time.monotonic()
        for mount in mounts:
            for layer in mount["layers"]:
                # What nobody waits for evicts nothing; readers must not be told of that, and ENOSPC is no errno that is excused.
                if layer["state"] == "failed" and "has room for" not in layer["error"]:
                    key = (mount["mountpoint"], layer["digest"], layer["retry_at"])
                    if key not in self.refused:
                        self.refused[key] = (now, layer["error"])
                        if not self.ledger.is_explained(now - 5, now):
                            self.ledger.fail(f"{key} failed and no fault explains it: {layer['error']}")
        return mounts
