"""A private run of more images than a folder holds keeps its claim; its tables still name every image where it is."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medlt.privacy import claim


def test_a_claim_covers_images_in_subfolders(
    private_run: Path, tmp_path: Path, spread: Callable[[Path, Path, int], Path]
) -> None:
    run = spread(private_run, tmp_path / "run", 3)
    assert claim(run).reasons == ()
    assert claim(run).epsilon == claim(private_run).epsilon
    table = pd.read_csv(run / "images" / "metadata.csv", dtype=str)
    assert table["file_name"].str.contains("/").all()
    swapped = table.assign(file_name=[*table["file_name"].iloc[1:], table["file_name"].iloc[0]])
    flat = pd.read_csv(private_run / "images" / "metadata.csv", dtype=str)
    for other in (swapped, flat):
        other.to_csv(run / "images" / "metadata.csv", index=False)
        assert claim(run).reasons[0].startswith("images/metadata.csv is not the table of these images")
