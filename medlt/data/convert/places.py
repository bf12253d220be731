"""Where a conversion writes: what may leave, what only its owner may read, and the lists of failures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medlt.files import require_no_links
from medlt.folders import subfolder


@dataclass(frozen=True)
class Places:
    """The folders of a conversion into `out`.

    With de-identification, `release` (OUT/release) holds what may leave, and `private` (OUT/private, owner only) what
    leads back to the source. Without it both are OUT, and `state` and `sources` are for the owner only.
    """

    out: Path
    deidentified: bool
    digits: int = 0
    """Of the subfolders of images/, dicom/ and quarantine/, see `medlt.folders`; 0 for none."""

    @property
    def release(self) -> Path:
        """Return the folder of images/, dicom/ and manifest.parquet."""
        return self.out / "release" if self.deidentified else self.out

    @property
    def private(self) -> Path:
        """Return the folder of sources.csv, crosswalk.csv, dropped.csv and quarantine/."""
        return self.out / "private" if self.deidentified else self.out

    @property
    def state(self) -> Path:
        """Return the folder of the journal."""
        return self.out / "private" / "journal" if self.deidentified else self.out / ".convert"

    @property
    def sources(self) -> Path:
        """Return the table of source ids and file names."""
        return self.private / "sources.csv"

    @property
    def crosswalk(self) -> Path:
        """Return the table that leads from identifiers of the source to released images."""
        return self.private / "crosswalk.csv"

    @property
    def downloads(self) -> Path:
        """Return the folder of the files that a DICOMweb server delivered."""
        return self.out / "private" / "downloads" if self.deidentified else self.out / ".downloads"

    @property
    def quarantine(self) -> Path:
        """Return the folder of files whose pixels must not be released before a person has seen them."""
        return self.private / "quarantine"

    def image(self, name: str, uid: str, several: bool) -> str:
        """Return the path of an image below `release`; `uid` is that of its file.

        `several`: the file has several frames, which are in a folder of their own.
        """
        return f"images/{subfolder(uid, self.digits)}{f'{uid}/' if several else ''}{name}"

    def dicom(self, uid: str, held: bool) -> Path:
        """Return the de-identified file of an image: in the release, or in the quarantine if it is `held` back."""
        folder = self.quarantine if held else self.release / "dicom"
        return folder / f"{subfolder(uid, self.digits)}{uid}.dcm"

    def make(self) -> None:
        """Make the folders of the images, private ones for their owner only; remove what a killed worker left there.

        The caller holds the lock of the journal, which excludes other runs. Raises InputError for a link in OUT.
        """
        for folder in {self.out, self.release, self.private}:
            if folder.is_dir():
                require_no_links(folder)
        folders = {self.release / "images": 0o755}
        if self.deidentified:
            folders |= {self.release / "dicom": 0o755, self.private: 0o700, self.quarantine: 0o700}
        for folder, mode in folders.items():
            folder.mkdir(mode, parents=True, exist_ok=True)
            for torn in folder.rglob(".*.tmp*"):
                torn.unlink()
