"""Tables and trees as others keep them, read into a Manifest."""

from medlt.data.layouts.tables import NIH_FINDINGS, from_csv, from_nih, patient_split

__all__ = ["NIH_FINDINGS", "from_csv", "from_nih", "patient_split"]
