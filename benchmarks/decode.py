"""The batched decode beside the better of two ways: one image at a time, and all at once.

    python benchmarks/decode.py [CODEC_FOLDER] [--size 128] [--count 32] [--rounds 5]

The same latents are decoded in three ways, in turns: one call per image, one call for all, and medlt's Decoder, at
its first call and after its own measurements. Printed are images per second for a few counts, the best of the rounds,
which a shared machine disturbs least. Without a folder the codecs are the untrained small AutoencoderKL of medlt and
an AutoencoderTiny of TAESD's size. Target: Decoder / better >= 0.95, which is the spread of the measurement.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import table
from torch import Tensor

from medlt.diffusion.autoencoder import autoencoder
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.decode import TURNS, Decoder
from medlt.rng import noise_like


def codecs(folder: Path | None) -> dict[str, AutoencoderCodec]:
    """What is measured, by name."""
    if folder is not None:
        return {folder.name: load_codec(folder, "cpu")}
    from diffusers import AutoencoderTiny

    return {
        "AutoencoderKL, width 32": AutoencoderCodec(autoencoder(4, 32, 3), "cpu"),
        "AutoencoderTiny, TAESD size": AutoencoderCodec(AutoencoderTiny(), "cpu"),
    }


def seconds(decode: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """Wall time of decoding z once."""
    began = time.perf_counter()
    decode(z)
    return time.perf_counter() - began


def measure(codec: AutoencoderCodec, z: Tensor, rounds: int) -> list[float]:
    """Images a second: one at a time, all at once, Decoder at first, Decoder later."""
    decoder = Decoder(codec)
    codec.decode(z[:2])
    first = seconds(decoder, z)
    while min(len(spent) for spent in decoder._seconds.values()) < TURNS:
        decoder(z.repeat(-(-decoder._slice // len(z)), 1, 1, 1))
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda z: torch.cat([codec.decode(row) for row in torch.split(z, 1)]),
        codec.decode,
        decoder,
    ]
    spent = [[seconds(way, z) for way in ways] for _ in range(rounds)]
    one, whole, later = (len(z) / min(column) for column in zip(*spent, strict=True))
    return [one, whole, len(z) / first, later]


def main() -> None:
    """Every codec and count, one line each."""
    read = argparse.ArgumentParser()
    read.add_argument("folder", nargs="?", type=Path)
    read.add_argument("--size", type=int, default=128)
    read.add_argument("--count", type=int, default=32)
    read.add_argument("--rounds", type=int, default=5)
    args = read.parse_args()
    lines = [
        "| codec | images | one at a time | all at once | Decoder, first call | Decoder | Decoder / better |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, codec in codecs(args.folder).items():
        side = args.size // codec.factor
        for count in (args.count // 4, args.count):
            one, whole, first, later = measure(
                codec, noise_like(range(count), (codec.channels, side, side)), args.rounds
            )
            ratio = later / max(one, whole)
            lines.append(f"| {name} | {count} | {one:.1f} | {whole:.1f} | {first:.1f} | {later:.1f} | {ratio:.2f} |")
    threads = f"Images a second, {args.size} px, {torch.get_num_threads()} torch threads, best of {args.rounds} rounds."
    table("decode", [threads, "", *lines])


if __name__ == "__main__":
    main()
