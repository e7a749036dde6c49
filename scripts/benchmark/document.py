"""docs/benchmarks.md: what was measured, on which machine, with its charts. It is written from docs/benchmarks/figures.json, which has every round."""

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path

from . import charts
from .table import Row, markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "benchmarks/figures.json"
TITLES = {
    "cold": "Cold, one plain layer",
    "latency": "Cold, a registry that is far away",
    "tls": "Cold, by TLS",
    "layers": "Several layers, read in order",
    "compressed": "Compressed layers",
    "warm": "Warm, one large file",
    "small": "Many small files, one after the other",
    "readers": "Many small files, many readers at once",
    "start": "Until a cached kit can be used",
    "many": "A hundred layers, a million files",
    "decision": "What deciding costs",
}
HOW = {
    "cold": "From `kitfs mount` with an empty cache to the last byte of the file read. kitfs hashes and writes; what it is beside does one of both or neither. The registry's own file is in "
    "the page cache for all. Debian's `sha256sum` does not use the processor's SHA instructions, `openssl dgst` does, so that row is there, too. Memory is the most that was seen, 40 looks a second.",
    "latency": "Half the size, by way of a relay (`tests/common/relay.rs`) that gives out each byte 20 ms after it took it, in each direction, and holds at most 4 MiB of a connection each way: an answer "
    "comes 40 ms after its request at the earliest, and one connection gets at most 200 MiB/s.",
    "tls": "docker-registry with a certificate of a CA that is made for the run (P-256), `--ca-cert` for kitfs and `--cacert` for curl. CPU time by part: `perf record` samples the worker 997 times a second in a run "
    "of its own; each sample is a part's by the function that it is in (user code) or by the system call that it is in (kernel), and the parts share out the CPU time that the kernel accounts to the process, "
    "from the mount until the last byte is read. What the kernel's own threads write to disk, and what happens in soft interrupts of others, is not in it.",
    "layers": "A model in eight parts, a file in each. The whole-kit fetch beside it is `kitfs mount --prefetch all`, until each file could be opened, so that what differs is the reading alone.",
    "compressed": "Half of it lines of JSON with words by Zipf's law, half bfloat16 numbers as weights have them (noise in the low byte, few values in the high one). It repeats after 8 MiB at the earliest, which "
    "is more than gzip or `zstd -3` looks back. Compressed by `gzip` and `zstd` at their own levels. kitfs inflates with zlib-rs and mzstd, both Rust.",
    "warm": "A file that is in the page cache. Where its pages lie is decided when they are read, and by chance: they are dropped and read anew six times, in turns, and the best counts.",
    "small": "First pass: page cache, dentries and inodes were dropped. `cat` is `find | xargs cat`.",
    "readers": "Threads of one process that open, read to its end and close one file after the other, by chance, for a second; each file was read once before. A lock convoy would show as a futex call or more "
    "for each file; they are counted by `perf stat` on the worker.",
    "start": "Small files, from the registry by tag (which asks the registry) or digest.",
    "many": "100 layers with 10,000 files of 24 bytes each, all in the cache; mounted by tag, 15 times.",
    "decision": "The same kit mounted with a policy and without, in turns; medians.",
}


def about(rig):
    """Machine, versions and date."""
    first = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    memory = next(line.split()[1] for line in open("/proc/meminfo", encoding="utf-8") if line.startswith("MemTotal"))
    models = {line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=DOCS.parent).stdout.strip()
    return {
        "date": str(datetime.date.today()),
        "machine": f"{os.cpu_count()} × {', '.join(models) or platform.machine()}, {round(int(memory) / (1 << 20))} GiB",
        "system": f"Linux {platform.release().split('-')[0]}, {first('findmnt', '-no', 'FSTYPE', '-T', str(rig.folder))}",
        "kitfs": f"{first(str(rig.kitfs.program), '--version')} ({commit or 'no commit'})",
        "beside": ", ".join(
            [
                first("rustc", "--version").split(" (")[0],
                first("docker-registry", "--version").replace("docker-registry github.com/docker/distribution", "docker-registry").split("+")[0],
                first("curl", "--version").split(" (")[0],
                first("skopeo", "--version").replace("version ", ""),
                first("tar", "--version"),
                first("gzip", "--version"),
                "zstd " + re.search(r"v([0-9.]+)", first("zstd", "--version"))[1],
                " ".join(first("openssl", "version").split()[:2]),
            ]
        ),
        "load": round(os.getloadavg()[0], 1),
    }


def record(rig, ran):
    """Puts the groups that ran into the figures, in the place of what was there of them."""
    groups = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    for name, load in ran.items():
        groups[name] = {"about": {**rig.about, "load": load}, "rows": [row for row in rig.table.as_json() if row["group"] == name]}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps({name: groups[name] for name in TITLES if name in groups}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write():
    """Draws the charts and writes the document."""
    groups = json.loads(FIGURES.read_text(encoding="utf-8"))
    rows = {name: [Row(**row) for row in group["rows"]] for name, group in groups.items()}
    drawn = charts.draw([row for of in rows.values() for row in of], FIGURES.parent)
    loads = [group["about"]["load"] for group in groups.values()]
    abouts = {name: {key: value for key, value in group["about"].items() if key != "load"} for name, group in groups.items()}
    common = next(iter(abouts.values()))
    parts = [
        "# Benchmarks\n\nMeasured and written by `scripts/bench`, which anybody can run (as root, on Debian). What is compared ran in one go, in turns, on the same bytes, with caches treated alike. "
        "The best of all rounds counts, since what else a machine does only ever adds time; medians stand in brackets. Every single round is in [figures.json](benchmarks/figures.json).",
        facts(common, loads),
    ]
    for file, title in drawn[:1]:
        parts.append(f"![{title}](benchmarks/{file})")
    met = [row.met for of in rows.values() for row in of if row.met is not None]
    parts.append(f"{sum(met)} of {len(met)} goals are met.")
    # Each chart stands with the group that it is about.
    home = {"cold.svg": "compressed", "cpu.svg": "tls", "readers.svg": "readers"}
    for name, of in rows.items():
        parts.append(f"## {TITLES[name]}\n\n{HOW[name]}")
        if abouts[name] != common:
            parts.append("Measured at another time than the first:\n\n" + facts(abouts[name], [groups[name]["about"]["load"]]))
        parts.append(markdown(of))
        parts.extend(f"![{title}](benchmarks/{file})" for file, title in drawn[1:] if home[file] == name)
    (DOCS / "benchmarks.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def facts(about_it, loads):
    loads = f"{min(loads)}" if min(loads) == max(loads) else f"{min(loads)} to {max(loads)}"
    cells = [("date", about_it["date"]), ("machine", about_it["machine"]), ("system", about_it["system"]), ("kitfs", about_it["kitfs"]), ("beside it", about_it["beside"])]
    cells.append(("load average before each group", f"{loads}, of which the measuring itself is a part"))
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells)])
