"""A run on images at URLs is the run on the same images of a disk, to the byte."""

from pathlib import Path
from typing import Any

import fsspec

import medlt
from medlt.data.manifest import Manifest


def test_a_run_on_images_at_urls_makes_the_same_images(
    tiny_run: medlt.Run, tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    system, here = fsspec.filesystem("memory"), tiny_collection.manifest
    urls = {uid: f"memory://bucket/{uid}.dcm" for uid in here.rows.index}
    try:
        for uid, url in urls.items():
            system.pipe_file(url.removeprefix("memory:/"), here.local_file(uid).read_bytes())
        there = Manifest(here.rows.assign(path=[urls[uid] for uid in here.rows.index]), here.findings, here.root)
        run = medlt.augment(medlt.Collection(there), output_dir=tmp_path / "run", progress=False, **tiny_settings)
    finally:
        system.store.clear()
    assert run.id == tiny_run.id
    made, wanted = run.images(), tiny_run.images()
    assert list(made.rows.index) == list(wanted.rows.index)
    assert [file.read_bytes() for file in made] == [file.read_bytes() for file in wanted]
    assert set(run.manifest.rows["path"]) >= set(urls.values())
