"""Other de-identification tools, each run in its own interpreter."""

from __future__ import annotations

import subprocess
from pathlib import Path

RUNNERS = {
    "dicognito": """
from dicognito.anonymizer import Anonymizer
tool = Anonymizer(seed="bench")
def run(a, b):
    d = pydicom.dcmread(a); tool.anonymize(d); d.save_as(b)
""",
    "deid": """
from deid.dicom import get_identifiers, replace_identifiers
def run(a, b):
    ids = get_identifiers([str(a)], expand_sequences=True)
    replace_identifiers([str(a)], ids=ids, save=True, output_folder=str(b.parent), overwrite=True)
""",
    "dicom-anonymizer": """
from dicomanonymizer import anonymize_dicom_file
from dicomanonymizer.simpledicomanonymizer import initialize_actions
def run(a, b):
    anonymize_dicom_file(str(a), str(b), base_rules_gen=lambda: initialize_actions("dicomfields_2026c"))
""",
}
SHELL = """
import sys, time, warnings, logging, pydicom
from importlib.metadata import version
from pathlib import Path
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
{}
source, out = map(Path, sys.argv[1:3])
bad, spent = 0, []
for path in sorted(source.glob("*.dcm")):
    began = time.perf_counter()
    try:
        run(path, out / path.name)
    except Exception as error:
        bad += 1; print("failed", repr(error)[:300], file=sys.stderr)
    spent.append(time.perf_counter() - began)
print("\\nRESULT", version("{}"), bad, sorted(spent)[len(spent) // 2])
"""


def peer(name: str, python: str, source: Path, out: Path) -> tuple[str, float] | None:
    """Run another tool in its own interpreter: its version and median seconds a file, or None if it is not there."""
    code = SHELL.format(RUNNERS[name], name)
    done = subprocess.run([python, "-c", code, str(source), str(out)], capture_output=True, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not last:
        print(f"{name}: left out, {(done.stderr.splitlines() or ['no output'])[-1]}")
        return None
    if done.stderr:
        print(f"{name}: {done.stderr.splitlines()[-1]}")
    _, release, failed, spent = last[-1].split()
    return f"{name} {release}" + (f" ({failed} files failed)" if failed != "0" else ""), float(spent)
