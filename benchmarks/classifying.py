"""Listings classified a second: text with photo features that were kept, and with photos read anew; in batches and one by one."""
import argparse
import time
from dataclasses import replace

from fb_marketplace import data # gives a run its listings and photos
from fb_marketplace.classifying import Asked, Predictor
from fb_marketplace.core import Run


def a_second(predictor, asked, batch):
    start = time.perf_counter()
    for first in range(0, len(asked), batch): predictor.classify(asked[first:first + batch])
    return len(asked)/(time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="outputs/demo", help="folder of a finished run")
    parser.add_argument("--listings", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    run = Run(args.run, "10_app")
    predictor, store = Predictor(run), run.photo_store()
    owned, listings = run.photos().groupby("product_id")["id"].agg(list), run.listings()
    chosen = listings[listings.image_num > 0].head(args.listings)
    fresh = [Asked(row.product_name, row.product_description, {name: lambda name=name: store.open(name) for name in owned[row.id]}, row.price) for row in chosen.itertuples()]
    kept = [replace(asked, features=predictor.photo.features([read() for read in asked.photos.values()])) for asked in fresh]
    first = {name: replace(asked, photos=dict(list(asked.photos.items())[:1])) for name, asked in enumerate(fresh)}
    ways = {"text, features kept": kept, "text, first photo read anew": list(first.values()), "text, all photos read anew": fresh, "text alone": [replace(asked, photos={}) for asked in fresh]}
    for asked in ways.values(): predictor.classify(asked[:args.batch]) # what is made at the first call is no part of it
    print(f"{len(fresh)} listings, {sum(len(asked.photos) for asked in fresh)} photos; {', '.join(predictor.text.readers)}; {len(predictor.photo.encoders)} photo encoders")
    for name, asked in ways.items(): print(f"{name}: {a_second(predictor, asked, args.batch):.1f} listings a second in batches of {args.batch}, {a_second(predictor, asked[:64], 1):.1f} one by one")


if __name__ == "__main__": main()
