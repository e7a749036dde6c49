"""The program: how it is called, and everything of it that is there."""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

#: Seconds after which a verb hangs.
HANGS = 300


class Kitfs:
    """The program, with an environment."""

    def __init__(self, program, environment, **settings):
        self.program, self.environment = Path(program), dict(environment, **settings)

    def start(self, *arguments):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([str(self.program), *map(str, arguments)], env=self.environment, text=True, start_new_session=True, **pipes)

    def run(self, *arguments, limit=HANGS):
        """Exit code, stdout, stderr of one that is started and waited for."""
        return self.ended(self.start(*arguments), limit)

    def ended(self, process, limit=HANGS):
        """Exit code, stdout, stderr. Whoever takes longer than the limit hangs, and is ended."""
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return "hangs", out, err
        except BaseException:
            process.kill()
            raise
        return process.returncode, out, err

    def must(self, *arguments, limit=HANGS):
        code, out, err = self.run(*arguments, limit=limit)
        if code != 0:
            raise RuntimeError(f"kitfs {' '.join(map(str, arguments))} ended with {code}: {err}")
        return out

    def status(self, *points):
        return json.loads(self.must("status", "--json", *points))["mounts"]


class KitfsApart(Kitfs):
    """The program with a cache and a run directory of its own in a folder, so that all of it can be found, and taken away."""

    def __init__(self, program, folder, environment, **settings):
        self.folder, self.cache, self.run_dir = folder, folder / "cache", folder / "run"
        super().__init__(program, environment, KITFS_CACHE_DIR=str(self.cache), KITFS_RUN_DIR=str(self.run_dir), KITFS_PLAIN_HTTP="1", **settings)

    def processes(self):
        """{pid: command line} of everything that runs the program with this run directory."""
        wanted = f"KITFS_RUN_DIR={self.run_dir}".encode()
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                place = Path("/proc", pid)
                if wanted in (place / "environ").read_bytes().split(b"\0") and b"kitfs" in (place / "comm").read_bytes():
                    found[int(pid)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def mounts(self):
        """Mountpoints below the folder, from the kernel."""
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            points = [line.split()[4] for line in table]
        return [point for point in points if point.startswith(f"{self.folder}/")]

    def wait(self, seconds):
        """Until all of its processes are gone, but not for longer."""
        until = time.monotonic() + seconds
        while self.processes() and time.monotonic() < until:
            time.sleep(0.1)

    def clear(self):
        """Leaves nothing behind, whatever happened."""
        with contextlib.suppress(Exception):
            self.run("umount", "--lazy", "--all", limit=20)
        for point in self.mounts():
            subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
        self.wait(5)
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, 9)
