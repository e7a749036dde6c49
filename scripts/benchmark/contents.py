"""Contents: what is in the layers that are measured, made here so that anybody gets the same."""

import itertools
import json
import os
import random

from testbed.kits import MIB, tar


def one_file(file, mib, kind="model", path="model"):
    """One file of random bytes, which is what weights look like to all that is measured with it."""
    return tar(file, kind, path, [("weights.bin", mib * MIB, different(os.urandom(min(mib, 16) * MIB), mib * MIB))])


def different(block, size):
    """The same block again and again, numbered, so that no two are the same."""
    for number in range(size // len(block)):
        yield number.to_bytes(8, "little") + block[8:]


def small_files(file, count, a_folder=100):
    """Files of 0.5 to 16 KiB, so many to a folder."""

    def entries():
        for number in range(count):
            folder = f"{number // a_folder:03}"
            if number % a_folder == 0:
                yield f"{folder}/", 0, None
            content = os.urandom(512 + number * 7919 % 15872)
            yield f"{folder}/{number:06}.txt", len(content), [content]

    return tar(file, "dataset", "data", entries())


def text_and_weights(file, mib):
    """Half lines of JSON with words by Zipf's law, half numbers as bfloat16 weights are: what compresses, and what hardly does."""
    chance = random.Random(6)
    half = mib * MIB // 2
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(chance.choices(letters, range(26, 0, -1), k=chance.randint(2, 9))) for _ in range(20000)]
    zipf = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    text, size, block = [], 0, 8 * MIB
    while size < block:
        line = json.dumps({"id": chance.getrandbits(40), "text": " ".join(chance.choices(words, cum_weights=zipf, k=60)), "score": chance.random()}) + "\n"
        text.append(line)
        size += len(line)
    text = "".join(text).encode()[:block]
    # The low byte of a bfloat16 is noise; the high one has the sign and most of the exponent, which for weights around 0.02 are few values.
    exponents = random.Random(7).choices([0x3B, 0x3C, 0x3D, 0xBB, 0xBC, 0xBD, 0x3A, 0xBA], [10, 24, 9, 10, 24, 9, 7, 7], k=block // 2)

    def weights():
        for number in range(half // block):
            piece = bytearray(block)
            piece[0::2] = os.urandom(block // 2)
            piece[1::2] = bytes(exponents[number:] + exponents[:number])
            yield bytes(piece)

    return tar(file, "dataset", "data", [("lines.jsonl", half, different(text, half)), ("weights.bf16", half, weights())])


def tiny_files(file, number, count):
    """Many files of 24 bytes: what is measured with them are names."""
    return tar(file, "dataset", f"data/{number:03}", ((f"{entry:05}.txt", 24, [(b"%d %d" % (number, entry)).ljust(24)]) for entry in range(count)))
