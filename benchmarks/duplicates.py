"""How grouping copies grows: synthetic listings of three sizes, each in a process of its own.  python benchmarks/duplicates.py [SIZE ...]"""
import json
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd

WORDS, LENGTH = 20_000, 40 # of the vocabulary, of a text


def sentences(dice, count):
    "Word numbers, frequent words more often, as in a language"
    return np.minimum(dice.zipf(1.2, (count, LENGTH)) - 1 + dice.integers(0, 400, (count, LENGTH)), WORDS - 1)


def catalogue(count, seed=0):
    "Listings and photos with planted copies: (listings, photos, pairs of near texts, pairs of near photos)"
    dice = np.random.default_rng(seed)
    texts, codes = sentences(dice, count), dice.integers(0, 2**64, count, np.uint64)
    share = count//20
    rows = dice.permutation(count)
    template, copies, pictures, placeholder = rows[:share], rows[share:2*share], rows[2*share:3*share], rows[3*share:3*share + count//100]
    originals, pictured = rows[-share:], rows[-2*share:-share]
    texts[template, :28] = texts[template[0], :28] # a shop's own words, with a few of the listing's
    texts[copies] = texts[originals]
    for half, at in ((copies, 5), (copies[::2], 30)): texts[half, at] = dice.integers(0, WORDS, len(half)) # one word changed, or two
    codes[pictures] = codes[pictured]
    for _ in range(3): codes[pictures] ^= np.uint64(1) << dice.integers(0, 64, share, np.uint64)
    codes[placeholder] = 0x8000000000000000
    vocabulary = np.array([f"word{number}" for number in range(WORDS)])
    listings = pd.DataFrame(dict(id=np.arange(count).astype(str), product_name_description=[" ".join(row) for row in vocabulary[texts]]))
    photos = pd.DataFrame(dict(product_id=listings["id"], phash=[f"{code:016x}" for code in codes.tolist()]))
    return listings, photos, (copies, originals), (pictures, pictured)


def peak():
    "Largest resident memory of this process so far, in MB"
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])/1024


def measure(count):
    "Group one catalogue"
    from fb_marketplace.duplicates import group_listings
    listings, photos, *planted = catalogue(count)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    groups = group_listings(listings, photos)
    return dict(listings=count, seconds=time.perf_counter() - start, cpu=time.process_time() - cpu, before=before, peak=peak(),
                groups=len(np.unique(groups)), largest=int(np.bincount(groups).max()), recall=[float((groups[a] == groups[b]).mean()) for a, b in planted])


def main(sizes):
    "Measure every size and write a table"
    print("| listings | seconds | growth | CPU seconds | growth | peak MB | of it before | recall of near texts | recall of near photos | groups | largest |\n|" + " ---: |"*11)
    last = None
    for size in sizes:
        done = subprocess.run([sys.executable, __file__, "--one", str(size)], capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr)
        now = json.loads(done.stdout)
        growth = [f"{now[name]/last[name]:.1f}x" if last else "" for name in ("seconds", "cpu")]
        print(f"| {size:,} | {now['seconds']:.1f} | {growth[0]} | {now['cpu']:.1f} | {growth[1]} | {now['peak']:,.0f} | {now['before']:,.0f} | "
              + " | ".join(f"{value:.3f}" for value in now["recall"]) + f" | {now['groups']:,} | {now['largest']:,} |", flush=True)
        last = now


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]: print(json.dumps(measure(int(sys.argv[2]))))
    else: main([int(size) for size in sys.argv[1:]] or [6_000, 60_000, 300_000])
