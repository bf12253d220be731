"""The speed of the conversion, beside common loops and tools, and beside the codec alone.

    python benchmarks/convert.py [--files 200] [--rounds 3] [--with FOLDER]

The benchmark writes FILES radiographs of 2048x2500 with 12 bits stored, in every transfer syntax, and converts them
to 8-bit PNG files of 512 px. Each tool runs in a separate process on one core. It reads files from the page cache,
writes to the same disk, and converts one file first to warm up. The clock is CPU time, user and system, with child
processes, so the figures are files per second of one core, whatever else the machine does. The figure is the median
of the rounds; the tools take turns. A tool that needs more than 20 CPU seconds for all files is stopped; other tools
get an eighth of the files. FOLDER is a site-packages with dicom2jpg, dicomsdl and pylibjpeg-libjpeg (pydicom reads no
JPEG lossless without it), which medlt does not install. A missing tool is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import convert_files

Method = Callable[[Path, Path], None]


def medlt(path: Path, out: Path) -> None:
    """medlt, preset viewer: the whole work on a file, digests of input and output included."""
    from medlt.data.convert.one import convert_one
    from medlt.data.convert.settings import ConversionSettings

    (out / "images").mkdir(exist_ok=True)
    assert not convert_one(path, out, ConversionSettings(size=512)).reason


def medlt_deidentified(path: Path, out: Path) -> None:
    """The same, with the de-identified DICOM file: text detection, new header, rebuilt pixels."""
    from medlt.data.convert import ConversionSettings, Places
    from medlt.data.convert.one import convert_one
    from medlt.data.deidentify import Profile

    Places(out, True).make()
    settings = ConversionSettings(size=512, profile=Profile.parse("basic"), key=bytes(range(32)))
    assert not convert_one(path, out, settings).reason


def floor(path: Path, out: Path) -> None:
    """Reading the file and the codec's decode, nothing else."""
    from medlt.data.dicom.guard import open_bytes, stored_values

    stored_values(open_bytes(path.read_bytes(), path)[0], path)


def digest(path: Path, out: Path) -> None:
    """What medlt's record of the input costs at least."""
    from blake3 import blake3

    blake3(path.read_bytes()).digest()


def plain(path: Path, out: Path) -> None:
    """The loop of a tutorial: pydicom, VOI LUT, min-max, Pillow."""
    import numpy as np
    import pydicom
    from PIL import Image
    from pydicom.pixels import apply_voi_lut

    data = pydicom.dcmread(path)
    x = apply_voi_lut(data.pixel_array, data).astype(float)
    x = ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)
    Image.fromarray(x).resize((512, 625), Image.Resampling.BOX).save(out / f"{path.stem}.png")


def plain_minmax(path: Path, out: Path) -> None:
    """The same without the VOI LUT, which is then wrong."""
    import numpy as np
    import pydicom
    from PIL import Image

    x = pydicom.dcmread(path).pixel_array.astype(float)
    x = ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)
    Image.fromarray(x).resize((512, 625), Image.Resampling.BOX).save(out / f"{path.stem}.png")


def monai(path: Path, out: Path) -> None:
    """MONAI LoadImage and min-max (no VOI LUT), Pillow."""
    import numpy as np
    from monai.transforms import LoadImage
    from PIL import Image

    x = np.asarray(LoadImage(image_only=True, reader="PydicomReader")(path)).squeeze().T
    x = ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)
    Image.fromarray(x).resize((512, 625), Image.Resampling.BOX).save(out / f"{path.stem}.png")


def dcmtk(path: Path, out: Path) -> None:
    """dcmtk's converter, first window, scaled by width."""
    command = ["dcmj2pnm", "+on", "+Wi", "1", "+Sxv", "512", str(path), str(out / f"{path.stem}.png")]
    subprocess.run(command, check=True, capture_output=True)


def dicom2jpg(path: Path, out: Path) -> None:
    """dicom2jpg, which writes full size only."""
    import dicom2jpg as other

    other.dicom2png(str(path), str(out))


def dicomsdl(path: Path, out: Path) -> None:
    """dicomsdl's decode and window, Pillow."""
    import dicomsdl as other
    import numpy as np
    from PIL import Image

    x = other.open(str(path)).pixelData().astype(float)
    x = ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)
    Image.fromarray(x).resize((512, 625), Image.Resampling.BOX).save(out / f"{path.stem}.png")


def dicomsdl_table(path: Path, out: Path) -> None:
    """The fastest loop that we know: dicomsdl's decode, a 16-bit table for the window, OpenCV; no digest, no checks."""
    import cv2
    import dicomsdl as other
    import numpy as np

    data = other.open(str(path))
    centre, width = float(data.WindowCenter), float(data.WindowWidth)
    levels = np.arange(65536)
    table = np.clip(((levels - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255).astype(np.uint8)
    shown = cv2.resize(table[data.pixelData(storedvalue=True)], (512, 625), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(out / f"{path.stem}.png"), shown, [cv2.IMWRITE_PNG_COMPRESSION, 1])


METHODS: dict[str, Method] = {
    "floor: read + decode": floor,
    "BLAKE3 of the file alone": digest,
    "medlt convert": medlt,
    "medlt convert --deidentify": medlt_deidentified,
    "pydicom + VOI + Pillow": plain,
    "pydicom + Pillow, no VOI": plain_minmax,
    "MONAI LoadImage + Pillow": monai,
    "dcmtk dcmj2pnm": dcmtk,
    "dicom2jpg": dicom2jpg,
    "dicomsdl + Pillow": dicomsdl,
    "dicomsdl + 16-bit table + OpenCV": dicomsdl_table,
}


LONGEST_S = 20.0
OURS = ("medlt convert", "medlt convert --deidentify", "floor: read + decode", "BLAKE3 of the file alone")


def child(method: str, folder: Path, limit: int) -> None:
    """Run one method over the files of a folder on one core; print files a CPU second and peak memory."""
    import cv2

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    files = sorted(folder.glob("*.dcm"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        out, warm = Path(place, "out"), Path(place, "warm")
        out.mkdir()
        warm.mkdir()
        METHODS[method](files[0], warm)
        began, spent = cpu_seconds(), [0.0]
        for path in files[:limit]:
            METHODS[method](path, out)
            spent.append(cpu_seconds() - began)
            if spent[-1] > LONGEST_S:
                break
        rate = (len(spent) - 1) / spent[-1]
    print(json.dumps({"rate": rate, "peak_mb": peak_mb()}))


def cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def peak_mb() -> float:
    """Peak resident memory since exec; ru_maxrss would remember the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_in_child(method: str, folder: Path, limit: int, extra: str) -> dict[str, float] | None:
    """The child's figures; None if it cannot do that (a tool or codec is missing)."""
    from medlt.engine import worker_environment

    with worker_environment():
        environment = dict(os.environ)
    if method not in OURS:
        environment = {k: v for k, v in environment.items() if not k.startswith("MALLOC_")}
    if method not in OURS:
        environment["PYTHONPATH"] = extra
    command = [sys.executable, __file__, "--child", method, str(folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def compared(folder: Path, files: int, rounds: int, extra: str) -> list[str]:
    """Table rows of one transfer syntax."""
    measured: dict[str, list[float]] = {method: [] for method in METHODS}
    peak: dict[str, float] = {}
    for _ in range(rounds):
        for method in METHODS:
            limit = files if method in OURS else max(4, files // 8)
            answer = measure_in_child(method, folder, limit, extra)
            if answer:
                measured[method].append(answer["rate"])
                peak[method] = answer["peak_mb"]
    ours, best = statistics.median(measured["medlt convert"]), statistics.median(measured["floor: read + decode"])
    lines = []
    for method, rates in measured.items():
        if rates:
            rate = statistics.median(rates)
            spread = f"{min(rates):.1f}-{max(rates):.1f}"
            lines.append(
                f"| {folder.name} | {method} | {rate:.1f} | {spread} | {ours / rate:.2f} | {peak[method]:.0f} |"
            )
        else:
            lines.append(f"| {folder.name} | {method} | cannot | | | |")
    return [*lines, f"| {folder.name} | *floor / medlt* | | | {best / ours:.2f} | |"]


def main() -> None:
    """All syntaxes, one table."""
    read = argparse.ArgumentParser()
    read.add_argument("--files", type=int, default=200)
    read.add_argument("--rounds", type=int, default=3)
    read.add_argument("--with", dest="extra", default="")
    read.add_argument("--only", default="")
    read.add_argument("--child", nargs=3)
    args = read.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]), int(args.child[2]))
    from common import table  # not in the children: it imports torch, whose memory is not medlt's

    place = Path(tempfile.mkdtemp(prefix="medlt-convert-"))
    lines = [
        "Files a CPU second on one core, median and range of the rounds; 'times' is medlt's rate over this one's.",
        "",
        "| transfer syntax | method | files/s | range | times | peak MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    try:
        for name in args.only.split(",") if args.only else convert_files.SYNTAXES:
            folder = convert_files.build(place / name, name, args.files)
            lines += compared(folder, args.files, args.rounds, args.extra)
            shutil.rmtree(folder)
        table("convert", lines)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
