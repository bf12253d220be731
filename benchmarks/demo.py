"""Run time and memory of `medlt demo` after installation.

    python benchmarks/demo.py

Target on 2 CPU cores: under 4 minutes and 4 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import table


def main() -> None:
    """One fresh demo, timed as a process, with the seconds of its stages."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "demo")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "medlt", "demo", "--out", str(out)], check=True, capture_output=True)
        seconds = time.perf_counter() - began
        record = json.loads((out / "run.json").read_text())
    stages = [f"| {name} | {spent:.1f} |" for name, spent in record["seconds"].items()]
    whole = [f"| **whole command** | **{seconds:.1f}** |", "", f"Peak RSS {record['peak_rss_mb']:.0f} MB."]
    table("demo", ["| stage | seconds |", "|---|---:|", *stages, *whole])


if __name__ == "__main__":
    main()
