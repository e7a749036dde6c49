"""Processes: the environment that they get, how ours are started and ended, and what /proc says of the memory of any."""

import contextlib
import os
import subprocess
import threading

#: Seconds between two looks at a process whose memory is watched.
LOOK = 0.025


def environment(folder):
    """Nobody's logins, nobody's settings."""
    names = {name: value for name, value in os.environ.items() if not name.startswith("KITFS_") and "proxy" not in name.lower()}
    names.update(HOME=str(folder), DOCKER_CONFIG=str(folder), OTEL_TRACES_EXPORTER="none")
    return names


def talking(command):
    """Starts a child that is told things line by line, and answers so."""
    return subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def end(process):
    """Ends a child of ours, and collects it."""
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()


def memory(pid):
    """VmRSS, RssAnon and threads of a process; None if it is gone."""
    try:
        fields = fields_of(f"/proc/{pid}/status")
        return {"rss": kib(fields, "VmRSS"), "anon": kib(fields, "RssAnon"), "threads": int(fields["Threads"])}
    except (OSError, KeyError):
        return None


def usage(pid):
    """Its memory and how many descriptors it has; None if it is gone."""
    found = memory(pid)
    try:
        return found and {**found, "fds": len(os.listdir(f"/proc/{pid}/fd"))}
    except OSError:
        return None


def shares(pid):
    """PSS and private bytes of a process, from smaps_rollup."""
    fields = fields_of(f"/proc/{pid}/smaps_rollup")
    return {"pss": kib(fields, "Pss"), "pss_anon": kib(fields, "Pss_Anon"), "private": kib(fields, "Private_Clean") + kib(fields, "Private_Dirty")}


class Most:
    """The most that a process was seen with."""

    rss = anon = threads = 0

    def look(self, pid):
        for name, number in (memory(pid) or {}).items():
            setattr(self, name, max(getattr(self, name), number))
        return self


@contextlib.contextmanager
def watched(pids, mosts):
    """Looks at the processes' memory 40 times a second."""
    done = threading.Event()

    def watch():
        while True:
            for pid, most in zip(pids, mosts):
                most.look(pid)
            if done.wait(LOOK):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def fields_of(path):
    with open(path, encoding="utf-8") as file:
        return dict(line.split(":", 1) for line in file if ":" in line)


def kib(fields, name):
    """A field that is given in KiB, in bytes."""
    return int(fields[name].split()[0]) * 1024
