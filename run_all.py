"""Run the notebooks in their order; `python run_all.py --help` shows how."""
from pathlib import Path

from fb_marketplace import pipeline, sources

if __name__ == "__main__":
    raise SystemExit(pipeline.main(Path(__file__).parent, sources.check_source))
