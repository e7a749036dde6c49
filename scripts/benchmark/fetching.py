"""Cold: from nothing in the cache to the last byte read, beside what fetches the same bytes."""

import concurrent.futures
import time

from testbed.kits import compressed as compress
from testbed.processes import Most, watched

from . import contents, parts

WEIGHTS = "model/weights.bin"
LAYERS = 8
LAYER_MIB = 128
COMPRESSED_MIB = 512


def cold(rig):
    """One plain layer of 2 GiB, from a registry on loopback."""
    kit, size = rig.big, f"{rig.options.mib / 1024:g} GiB"
    supervisor, worker = Most(), Most()
    by_skopeo = (
        f"skopeo --insecure-policy copy -q --src-tls-verify=false docker://{kit.reference} dir:{{}}/copy && mkdir {{}}/files"
        f" && tar x -C {{}}/files -f {{}}/copy/{kit.layer.digest.split(':')[1]} && {rig.reader} sequential {{}}/files/{WEIGHTS}"
    )
    rig.timed(f"curl -sf {kit.blob()} -o /dev/null")  # the registry's own file comes into the page cache
    times = rig.turns(
        rig.rounds,
        {
            "kitfs": lambda: rig.cold(kit.reference, [WEIGHTS], meanwhile=lambda *processes: watched(processes, [supervisor, worker])),
            "tar": lambda: rig.timed(f"curl -sf {kit.blob()} | tar x -C {{}} && {rig.reader} sequential {{}}/{WEIGHTS}"),
            "sum": lambda: rig.timed(f"curl -sf {kit.blob()} | sha256sum"),
            "openssl": lambda: rig.timed(f"curl -sf {kit.blob()} | openssl dgst -sha256"),
            "skopeo": lambda: rig.timed(by_skopeo),
            "curl": lambda: rig.timed(f"curl -sf {kit.blob()} -o /dev/null"),
        },
    )
    what = f"cold mount and read of {size}"
    for name, beside, goal in [
        ("tar", "`curl | tar x` and read, which checks nothing", 0.75),
        ("sum", "`curl | sha256sum`, which writes nothing", 1.15),
        ("openssl", "`curl | openssl dgst -sha256`", None),
        ("skopeo", "`skopeo copy`, `tar x` and read", None),
        ("curl", "`curl -o /dev/null`", None),
    ]:
        rig.table.add(what, times["kitfs"], beside=beside, theirs=times[name], goal=goal)
    rig.table.size(f"worker while it fetches {size}: anonymous memory", worker.anon, 150)
    rig.table.size(f"worker while it fetches {size}: resident in all", worker.rss, 150)
    rig.table.size("supervisor: anonymous memory", supervisor.anon, 10)
    # Most of it are pages of the program, which all supervisors and workers share.
    rig.table.size("supervisor: resident in all", supervisor.rss, None)


def latency(rig):
    """One plain layer, by way of a relay that takes 20 ms each way."""
    kit, size = rig.half, f"{rig.options.mib / 2048:g} GiB"
    rig.timed(f"curl -sf {kit.blob()} -o /dev/null")
    times = rig.turns(
        rig.rounds,
        {
            "kitfs": lambda: rig.cold(kit.at(rig.relay), [WEIGHTS]),
            "curl": lambda: rig.timed(f"curl -sf {kit.blob(host=rig.relay)} -o /dev/null"),
        },
    )
    rig.table.add(
        f"cold mount and read of {size}, each byte 20 ms late each way, 4 MiB a connection", times["kitfs"], beside="`curl -o /dev/null` by the same relay", theirs=times["curl"], goal=0.6
    )


def tls(rig):
    """One plain layer of 2 GiB by TLS on loopback, and where its CPU time goes."""
    kit, (host, ca) = rig.big, rig.tls
    size = f"{rig.options.mib / 1024:g} GiB"
    rig.timed(f"curl -sf {kit.blob()} -o /dev/null")
    times = rig.turns(
        rig.rounds,
        {
            "kitfs": lambda: rig.cold(kit.at(host), [WEIGHTS], "--ca-cert", ca),
            "curl": lambda: rig.timed(f"curl -sf --cacert {ca} {kit.blob(host=host, scheme='https')} -o /dev/null"),
        },
    )
    rig.table.add(f"cold mount and read of {size} by TLS", times["kitfs"], beside="`curl -o /dev/null` by TLS, which neither hashes nor writes", theirs=times["curl"], goal=2.5)
    measured = parts.Parts(rig)
    rig.cold(kit.at(host), [WEIGHTS], "--ca-cert", ca, meanwhile=measured.meanwhile)
    for part, seconds in measured.per_gigabyte(kit.size).items():
        rig.table.add(f"CPU of the worker by TLS, for a GB: {part}", [seconds])


def layers(rig):
    """A model in several layers, read in order: the next ones come while one is read."""

    def make(folder):
        one = lambda number: contents.one_file(folder / f"{number}.tar", LAYER_MIB, "modelpart" if number else "model", f"model/{number}")
        return [one(number) for number in range(LAYERS)]

    with rig.pushed("layers", make) as kit:
        files = [f"{layer.path}/weights.bin" for layer in kit.layers]
        all_of_it = " && ".join(f"curl -sf {kit.blob(layer)} -o /dev/null" for layer in kit.layers)
        rig.timed(all_of_it)

        def fetched():
            """Until each layer is there, of which no more than a byte is read."""
            with rig.scratch() as folder, concurrent.futures.ThreadPoolExecutor(LAYERS) as pool:
                start = time.monotonic()
                with rig.mount(kit.reference, folder / "cache", "--prefetch", "all") as mountpoint:
                    list(pool.map(lambda file: rig.read("first", mountpoint / file), files))
                    return time.monotonic() - start

        # A second each, so there can be more of them.
        times = rig.turns(
            3 * rig.rounds,
            {
                "in order": lambda: rig.cold(kit.reference, files),
                "fetched": fetched,
                "pull": lambda: rig.timed(f"{rig.kitfs.program} pull --plain-http --cache-dir {{}}/cache {kit.reference} 2> /dev/null"),
                "curl": lambda: rig.timed(all_of_it),
            },
        )
    what = f"cold mount and read of {LAYERS} layers of {LAYER_MIB} MiB, in order"
    for name, beside, goal in [
        ("fetched", "`kitfs mount --prefetch all` until all are there, unread", 1.1),
        ("pull", "`kitfs pull`, which waits for the disk", None),
        ("curl", "`curl -o /dev/null` of each", None),
    ]:
        rig.table.add(what, times["in order"], beside=beside, theirs=times[name], goal=goal)


def compressed(rig):
    """One compressed layer, beside the tool that uncompresses it."""
    with rig.scratch() as folder:
        plain = contents.text_and_weights(folder / "data.tar", COMPRESSED_MIB)
        for coding, goal in [("gzip", 1.15), ("zstd", 4)]:
            layer = compress(plain, coding)
            kit = rig.registry.push(coding, [layer])
            share = layer.size / plain.size
            rig.timed(f"curl -sf {kit.blob()} -o /dev/null")
            times = rig.turns(
                rig.rounds,
                {
                    "kitfs": lambda: rig.cold(kit.reference, ["data/lines.jsonl", "data/weights.bf16"]),
                    "dc": lambda: rig.timed(f"curl -sf {kit.blob()} | {coding} -dc > /dev/null"),
                    "tar": lambda: rig.timed(f"curl -sf {kit.blob()} | {coding} -dc | tar x -C {{}}"),
                },
            )
            what = f"cold mount and read of a {coding} layer, {COMPRESSED_MIB} MiB ({share:.0%} of that compressed)"
            rig.table.add(what, times["kitfs"], beside=f"`curl | {coding} -dc`, which neither hashes nor writes", theirs=times["dc"], goal=goal)
            rig.table.add(what, times["kitfs"], beside=f"`curl | {coding} -dc | tar x`", theirs=times["tar"])
            rig.registry.forget(kit)
