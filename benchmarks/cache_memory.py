"""Memory of caching latents against the number of images.

    python benchmarks/cache_memory.py [FEW MANY]

The benchmark caches FEW and MANY synthetic images of 64 px, each number in a separate process: once with the identity
codec (two numbers per pixel, the worst case for the disk) and once with the small AutoencoderKL. It reads all of them
back in pieces, and compares peak resident memory. Target: ratio < 1.2 for 500 and 5,000.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODECS = ("identity", "kl")


def child(kind: str, count: int) -> None:
    """Cache `count` images, read their statistics; print peak memory and time."""
    import torch

    from medlt.diffusion.autoencoder import autoencoder
    from medlt.diffusion.cache import cache_latents, channel_statistics
    from medlt.diffusion.codec import AutoencoderCodec
    from medlt.recipes._setup import peak_rss_mb
    from medlt.store import Store
    from medlt.testing import Discs, IdentityCodec
    from medlt.training.runtime import Runtime
    from medlt.types import Codec

    torch.set_num_threads(1)
    codec: Codec = IdentityCodec() if kind == "identity" else AutoencoderCodec(autoencoder(4, 16, 3), "cpu")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        images = Discs(count, 64)
        runtime = Runtime("cpu", "fp32", 1, 0)
        named = dict(zip(images.uids, images.uids, strict=True))
        cache = cache_latents(codec, images, contents=named, store=Store(Path(place)), dtype="float32", runtime=runtime)
        channel_statistics(cache, codec, cache.uids)
        size = (cache.folder / "moments.npy").stat().st_size
    assert len(cache) == count
    print(json.dumps({"mb": peak_rss_mb(), "seconds": time.perf_counter() - began, "disk": size / 2**20}))


def main(few: int, many: int) -> None:
    """Both codecs and counts, a table, the ratios."""
    from common import table

    lines = ["| codec | images | on disk, MiB | images/s | peak RSS, MB | ratio |", "|---|---:|---:|---:|---:|---:|"]
    for kind in CODECS:
        base = 0.0
        for count in (few, many):
            command = [sys.executable, __file__, "--child", kind, str(count)]
            measured = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            )
            base = base or measured["mb"]
            speed, ratio = count / measured["seconds"], measured["mb"] / base
            lines.append(
                f"| {kind} | {count} | {measured['disk']:.0f} | {speed:.0f} | {measured['mb']:.0f} | {ratio:.3f} |"
            )
    table("cache_memory", [*lines, "", "Target: ratio < 1.2."])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (500, 5000)))
