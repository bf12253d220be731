import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.data.columns import LONGEST, filename_problem, is_synthetic, safe_filename, text_problem, uids_in
from medlt.data.manifest import Manifest
from medlt.files import digest_file
from medlt.types import InputError

FINDINGS = ("A", "B", "No_Finding")


def of(table: pd.DataFrame, root: Path = Path("/images")) -> Manifest:
    return Manifest(table.set_index("uid"), FINDINGS, root)


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_labels_follow_uids_not_positions(table: pd.DataFrame) -> None:
    manifest = of(table)
    expected = np.array([[1, 0, 0], [np.nan, 0, 1]], np.float32)
    np.testing.assert_array_equal(manifest.labels(["u4", "u3"]), expected)
    np.testing.assert_array_equal(of(table[::-1]).labels(["u4", "u3"]), expected)
    assert manifest.labels().dtype == np.float32


def test_counts_add_up_and_skip_unknown(table: pd.DataFrame) -> None:
    counts = of(table).counts()
    assert counts.loc["A"].to_dict() == {"positive": 3, "negative": 2, "unknown": 1}
    assert (counts.sum(axis=1) == 6).all()


def test_a_soft_label_counts_as_positive_from_one_half(table: pd.DataFrame) -> None:
    soft = table.assign(synthetic=True, A=[0.5, 0.49, 0.9, 0.1, np.nan, 0.0])
    assert of(soft).counts().loc["A"].to_dict() == {"positive": 2, "negative": 3, "unknown": 1}


def test_tail_never_holds_the_no_finding_column(table: pd.DataFrame) -> None:
    train = of(table).split("train")
    assert train.no_finding == "No_Finding"
    assert train.tail(3) == ("A", "B")
    assert train.tail(2) == ("B",)
    assert train.tail(1) == ()


@pytest.mark.parametrize("name", ["No Finding", "no_finding", "NoFinding", "Normal"])
def test_no_finding_is_known_however_it_is_written(table: pd.DataFrame, name: str) -> None:
    rows = table.rename(columns={"No_Finding": name}).set_index("uid")
    assert Manifest(rows, ("A", name), Path("/")).no_finding == name
    assert Manifest(rows, ("A", "B"), Path("/")).no_finding is None


def test_split_and_where_keep_uid_and_order(table: pd.DataFrame) -> None:
    manifest = of(table)
    assert list(manifest.split("val").rows.index) == ["u4"]
    shuffled = (manifest.rows["A"] == 1).sample(frac=1, random_state=3)
    assert list(manifest.where(shuffled).rows.index) == ["u0", "u1", "u4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="split"), "missing column 'split'"),
        (lambda t: t.drop(columns=["A", "view"]), "missing column 'view' (and 1 more)"),
        (lambda t: t.assign(uid=["u0", "u0", "u1", "u1", "u2", "u3"]), "uid u0 appears more than once (and 1 more)"),
        (lambda t: t.assign(A=[2.0, 0, 0, 0, 0, 0]), "finding A, uid u0: label 2 is not 0, 1 or blank"),
        (lambda t: t.assign(B=[0, 0, -1, -1, 0, 0]), "finding B, uid u2: label -1 is not 0, 1 or blank (and 1 more)"),
        (lambda t: t.assign(A=[0.5, 0, 0, 0, 0, 0]), "finding A, uid u0: label 0.5"),
        (lambda t: t.assign(A=["yes", "0", "1", None, "0", "0"]), "finding A, uid u0: label 'yes'"),
        (lambda t: t.assign(A=[np.inf, 0, 0, 0, 0, 0]), "finding A, uid u0: label inf"),
        (lambda t: t.assign(patient_id="p"), "the patient of uid u0 is in splits test and train and val"),
        (lambda t: t.assign(split="training"), "uid u0: unknown split 'training' (and 5 more)"),
        (lambda t: t.assign(patient_id=["p0", None, "p1", "p2", "p3", "p4"]), "uid u1: patient_id is blank"),
        (lambda t: t.assign(path=["", "a", "b", "c", "d", "e"]), "uid u0: path is blank"),
        (lambda t: t.assign(uid=[None, "a", "b", "c", "d", "e"]), "1 row(s) have no uid"),
        (lambda t: t.assign(uid=["a/b", "c\\d", *"cdef"]), "uid 'a/b' holds a slash (and 1 more); uids are file names"),
        (lambda t: t.assign(uid=[".a", *"bcdef"]), "uid '.a' begins with a dot; uids are file names"),
        (lambda t: t.assign(uid=["a\nb", *"bcdef"]), "holds a line break or another character that cannot be printed"),
        (lambda t: t.assign(uid=[" a", *"bcdef"]), "uid ' a' begins or ends with a blank"),
        (lambda t: t.assign(uid=["é" * 101, *"bcdef"]), "is longer than 200 bytes"),
        (lambda t: t.assign(parents=["u1 u2", *[None] * 5]), "uid u0: parents is 'u1 u2'; give a list of uids"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(table: pd.DataFrame, change: object, message: str) -> None:
    with pytest.raises(InputError) as error:
        of(change(table))  # type: ignore[operator]
    assert message in one_line(error)


@pytest.mark.parametrize(
    ("findings", "message"), [((), "no finding"), (("A", "A"), "twice"), (("age",), "'age' cannot")]
)
def test_bad_finding_names(table: pd.DataFrame, findings: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Manifest(table.set_index("uid"), findings, Path("/"))


@pytest.mark.parametrize("name", ["run", "models", "finding", "seed", "weight", "method", "parents", "synthetic"])
def test_columns_of_synthetic_rows_cannot_be_findings(table: pd.DataFrame, name: str) -> None:
    """A run adds these columns to the rows; a label column of that name would be overwritten."""
    with pytest.raises(InputError, match=f"^.{name}. cannot be a finding"):
        Manifest(table.rename(columns={"A": name}).set_index("uid"), (name, "B", "No_Finding"), Path("/images"))


def test_soft_labels_only_where_synthetic(table: pd.DataFrame) -> None:
    soft = table.assign(A=[0.3, 1, 0, 0, 1, 0], synthetic=[True, False, False, False, False, False])
    assert of(soft).labels(["u0"])[0, 0] == np.float32(0.3)
    with pytest.raises(InputError, match=r"uid u0: label 0\.3"):
        of(soft.assign(synthetic=soft["synthetic"].to_numpy()[::-1]))
    with pytest.raises(InputError, match=r"uid u0: label 1\.2"):
        of(soft.assign(A=[1.2, 1, 0, 0, 1, 0]))


def test_a_finding_without_positive_in_train_is_named(table: pd.DataFrame) -> None:
    of(table).require_positives()
    with pytest.raises(InputError, match="finding B has no positive image in split train") as error:
        of(table.assign(B=[0, 0, 0, 0, 1, 1])).require_positives()
    one_line(error)
    with pytest.raises(InputError, match="split train has no row"):
        of(table).split("val").require_positives()


def test_missing_files_are_named_and_counted(folder: Path, table: pd.DataFrame) -> None:
    manifest = of(table, folder)
    manifest.check_files()
    (folder / "images/1.png").unlink()
    (folder / "images/4.png").unlink()
    with pytest.raises(InputError, match=r"images/1\.png: no such file \(uid u1\) \(and 1 more\)") as error:
        manifest.check_files()
    one_line(error)


def test_an_empty_or_absent_folder_is_told_as_such(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="the image folder is empty"):
        of(table, tmp_path).check_files()
    with pytest.raises(InputError, match="the image folder does not exist"):
        of(table, tmp_path / "nowhere").check_files()


def test_the_rows_given_are_not_changed(table: pd.DataFrame) -> None:
    rows = table.set_index("uid").astype({"B": int})
    before = rows.copy()
    manifest = Manifest(rows, FINDINGS, Path("/"))
    manifest.rows.loc["u0", "B"] = 1.0
    pd.testing.assert_frame_equal(rows, before)


def test_written_manifest_loads_in_plain_pandas_with_relative_paths(folder: Path, table: pd.DataFrame) -> None:
    of(table, folder).write(folder / "manifest.parquet")
    plain = pd.read_parquet(folder / "manifest.parquet")
    assert plain.index.name == "uid"
    assert list(plain["path"]) == list(table["path"])
    assert list(folder.glob("*.tmp*")) == []


def test_paths_reach_the_same_files_from_wherever_it_is_written(
    folder: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    manifest = of(table, Path("images/.."))
    for place in (folder / "manifest.parquet", folder / "deep/er/m.parquet", folder.parent / f"{folder.name}.parquet"):
        manifest.write(place)
        again = Manifest.read(place)
        again.check_files()
        assert [again.file(u).resolve() for u in again.rows.index] == [folder / p for p in table["path"]]
        assert again.digest() == manifest.digest()


def test_a_table_made_elsewhere_is_read_too(tmp_path: Path, table: pd.DataFrame) -> None:
    table.astype({"B": int}).to_parquet(tmp_path / "m.parquet")
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert manifest.findings == FINDINGS
    np.testing.assert_array_equal(manifest.labels(), of(table).labels())


def test_reading_what_is_no_manifest(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no such manifest"):
        Manifest.read(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_text("uid,path\n")
    with pytest.raises(InputError, match="not readable as parquet"):
        Manifest.read(tmp_path / "m.parquet")
    table[:0].to_parquet(tmp_path / "m.parquet")
    with pytest.raises(InputError, match="has no row"):
        Manifest.read(tmp_path / "m.parquet")
    table.drop(columns="patient_id").to_parquet(tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"m\.parquet: missing column 'patient_id'"):
        Manifest.read(tmp_path / "m.parquet")


def test_digest_ignores_order_and_place_but_nothing_else(table: pd.DataFrame) -> None:
    table = table.assign(content=list("abcdef"))
    digest = of(table).digest()
    assert of(table.sample(frac=1, random_state=1)).digest() == digest
    assert of(table, Path("/elsewhere")).digest() == digest
    assert of(table.assign(path=["images/9.png", *table["path"][1:]])).digest() == digest
    changes = (
        table.assign(A=[0.0, 1, 0, np.nan, 1, 0]),
        table.assign(A=[1.0, 1, 0, 0, 1, 0]),
        table.assign(uid=["x", *table["uid"][1:]]),
        table.assign(patient_id=["p9", "p9", *table["patient_id"][2:]]),
        table.assign(content=list("zbcdef")),
        table.assign(content=list("bacdef")),
        table.assign(split=["train", "train", "train", "val", "val", "test"]),
        table.assign(weight=0.3),
        table[1:],
    )
    assert len({digest, *(of(t).digest() for t in changes)}) == len(changes) + 1
    assert Manifest(table.set_index("uid"), ("B", "A"), Path("/")).digest() != digest


def test_digest_is_of_the_bytes_of_files_not_of_their_names(folder: Path, table: pd.DataFrame) -> None:
    digest = of(table, folder).digest()
    named = table.assign(content=[digest_file(folder / path) for path in table["path"]])
    assert of(named, Path("/nowhere")).digest() == digest
    assert of(named.assign(content=[None, *named["content"][1:]]), folder).digest() == digest
    (folder / "images/0.png").write_bytes((folder / "images/1.png").read_bytes())
    assert of(table, folder).digest() != digest
    (folder / "images/0.png").unlink()
    with pytest.raises(InputError, match=r"images/0\.png: No such file or directory \(uid u0\); check root") as error:
        of(table, folder).digest()
    one_line(error)


def test_whole_numbers_of_synthetic_rows_keep_every_digit_beside_real_rows(folder: Path, table: pd.DataFrame) -> None:
    real, seeds = of(table, folder), [2**63 - 1, 2**62 + 1, 0]
    rows = {"path": "images/0.png", "split": "train", "view": "PA", "synthetic": True, "seed": seeds, "A": 1.0}
    made = pd.DataFrame(rows, index=pd.Index(["s0", "s1", "s2"], name="uid"))
    made = made.assign(patient_id=made.index, slot=[0, 1, 2], fold=np.uint8(2), name="x")
    synthetic = Manifest(made, ("A",), folder)
    both = real.join(synthetic)
    both.write(folder / "manifest.parquet")
    for manifest in (both, Manifest.read(folder / "manifest.parquet"), real.join(both.where(both.rows["synthetic"]))):
        assert manifest.rows["seed"].dtype == "Int64"
        assert manifest.rows["seed"].loc[["s0", "s1", "s2"]].tolist() == seeds
        assert manifest.rows["seed"].isna().sum() == 6
        own = manifest.where(manifest.rows["synthetic"]).rows
        assert (own["seed"].dtype, own["slot"].dtype, own["fold"].dtype.kind) == (np.int64, np.int64, "u")
        assert own["seed"].tolist() == seeds


UIDS = ["Viral Pneumonia-1", "a, b", "Ärzte \u4f8b", "'quoted\"", "%2F~$"]


def test_uids_with_blanks_commas_and_any_letters_are_parents_one_by_one(folder: Path, table: pd.DataFrame) -> None:
    real = of(table.assign(uid=[*UIDS, "u5"]), folder)
    made = pd.DataFrame(
        {
            "path": "images/0.png",
            "split": "train",
            "view": "PA",
            "synthetic": True,
            "A": 1.0,
            "parents": [UIDS, UIDS[1:2], []],
        },
        index=pd.Index(["s0", "s1", "s2"], name="uid"),
    )
    both = real.join(Manifest(made.assign(patient_id=made.index), ("A",), folder))
    both.write(folder / "manifest.parquet")
    again = Manifest.read(folder / "manifest.parquet")
    pd.testing.assert_frame_equal(again.rows, both.rows)
    assert again.rows["parents"].tolist() == [[]] * 6 + [UIDS, UIDS[1:2], []]


@pytest.mark.parametrize(("value", "uids"), [(["a b"], ["a b"]), (("a",), ["a"]), (np.array(["a"], object), ["a"]),
                                             (None, []), (np.nan, []), (pd.NA, []), ([], [])])  # fmt: skip
def test_an_entry_of_parents(value: object, uids: list[str]) -> None:
    assert uids_in(value) == uids
    with pytest.raises(TypeError):
        uids_in("a b")


@given(st.text(min_size=1, max_size=LONGEST))
def test_a_uid_that_is_taken_names_a_file(tmp_path_factory: pytest.TempPathFactory, uid: str) -> None:
    if why := filename_problem(uid):
        mended = safe_filename(uid)
        assert why.startswith("is longer") or mended == "" or not filename_problem(mended)
        return
    assert safe_filename(uid) == uid
    folder = tmp_path_factory.mktemp("names")
    (folder / f".{uid}.12345.tmp.png").write_bytes(b"1")
    (folder / f"{uid}.png").write_bytes(b"1")
    assert [path.parent for path in folder.iterdir()] == [folder, folder]
    assert f"{uid}.png" in os.listdir(folder)


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "@SUM(A1)", "-1+1", "+cmd", "＝1+1", "'=1", "a\u202eb", "a\rb", "\ta", "x" * 300]
)
def test_a_name_that_a_table_cannot_hold_is_refused_in_one_line(folder: Path, table: pd.DataFrame, text: str) -> None:
    problem = re.escape(text_problem(text.strip()) or "holds a line break") if text.strip() else ""
    with pytest.raises(InputError, match=problem) as refused:
        Manifest(table.assign(uid=[text, *table["uid"][1:]]).set_index("uid"), FINDINGS, folder)
    assert one_line(refused).startswith("uid ")
    with pytest.raises(InputError) as refused:
        Manifest(table.rename(columns={"A": text}).set_index("uid"), (text, "B", "No_Finding"), folder)
    assert one_line(refused).startswith("finding ")
    if text.strip() == text:
        with pytest.raises(InputError, match=problem) as refused:
            Manifest(table.assign(patient_id=[text, *table["patient_id"][1:]]).set_index("uid"), FINDINGS, folder)
        assert text not in one_line(refused)  # an id of a patient is not for logs


@pytest.mark.parametrize("text", ["-1", "+2.5", "1e-3"])
def test_a_number_is_no_formula(folder: Path, table: pd.DataFrame, text: str) -> None:
    rows = table.assign(uid=[text, *table["uid"][1:]], patient_id=[text, *table["patient_id"][1:]])
    assert Manifest(rows.set_index("uid"), FINDINGS, folder).rows.index[0] == text


def test_join_keeps_both_and_checks_again(folder: Path, table: pd.DataFrame) -> None:
    real = of(table, folder)
    made = pd.DataFrame(
        {
            "uid": ["s0"],
            "path": ["../images/0.png"],
            "patient_id": ["synthetic-0"],
            "split": ["train"],
            "view": ["PA"],
            "A": [0.7],
            "synthetic": [True],
            "weight": [0.3],
            "parents": [["u0", "u2"]],
        }
    ).set_index("uid")
    (folder / "run").mkdir()
    both = real.join(Manifest(made, ("A",), folder / "run"))
    both.check_files()
    assert both.findings == FINDINGS
    assert list(both.rows["synthetic"]) == [False] * 6 + [True]
    assert list(both.rows["weight"]) == [1.0] * 6 + [0.3]
    np.testing.assert_array_equal(both.labels(["s0"]), np.array([[0.7, np.nan, np.nan]], np.float32))
    with pytest.raises(InputError, match="uid u0 appears more than once"):
        real.join(real)
    with pytest.raises(InputError, match="is in splits train and val"):
        real.join(Manifest(made.assign(patient_id="p0", split="val"), ("A",), folder / "run"))


NAME = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=9
)
UID = NAME.filter(lambda uid: not filename_problem(uid))
PATIENT = NAME.filter(lambda patient: not text_problem(patient.strip()))
LABEL = st.sampled_from((0.0, 1.0, np.nan))


@st.composite
def manifests(draw: st.DrawFn) -> pd.DataFrame:
    """Any uids, patients, unicode paths, labels and soft labels, with one split a patient."""
    uids = draw(st.lists(UID, min_size=1, max_size=8, unique=True))
    patients = draw(st.lists(PATIENT, min_size=len(uids), max_size=len(uids)))
    home = {p: draw(st.sampled_from(("train", "val", "test"))) for p in sorted(set(patients))}
    synthetic = draw(st.lists(st.booleans(), min_size=len(uids), max_size=len(uids)))
    soft = st.floats(0, 1, allow_subnormal=False)
    return pd.DataFrame(
        {
            "path": [draw(NAME.filter(lambda n: n not in (".", ".."))) for _ in uids],
            "patient_id": patients,
            "split": [home[p] for p in patients],
            "view": [draw(st.sampled_from(("PA", "AP", None))) for _ in uids],
            "age": [draw(st.one_of(st.integers(0, 120).map(float), st.just(np.nan))) for _ in uids],
            "synthetic": synthetic,
            "content": [draw(st.text("0123456789abcdef", min_size=4, max_size=4)) for _ in uids],
            "parents": [draw(st.lists(UID, max_size=3)) for _ in uids],
            "seed": [draw(st.integers(0, 2**63 - 1)) for _ in uids],
            "É pleural": [draw(soft if s else LABEL) for s in synthetic],
            "No Finding": [draw(LABEL) for _ in uids],
        },
        index=pd.Index(uids, name="uid"),
    )


@settings(max_examples=25)
@given(rows=manifests(), seed=st.integers(0, 99))
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, rows: pd.DataFrame, seed: int) -> None:
    folder = tmp_path_factory.mktemp("round")
    manifest = Manifest(rows, ("É pleural", "No Finding"), folder)
    manifest.write(folder / "manifest.parquet")
    again = Manifest.read(folder / "manifest.parquet")
    pd.testing.assert_frame_equal(again.rows, manifest.rows)
    assert again.findings == manifest.findings
    assert [again.file(u) for u in again.rows.index] == [manifest.file(u) for u in manifest.rows.index]
    assert again.digest() == manifest.digest()
    assert Manifest(rows.sample(frac=1, random_state=seed), manifest.findings, folder).digest() == manifest.digest()


def test_a_blank_or_no_column_means_a_real_row() -> None:
    rows = pd.DataFrame({"path": list("abcd")}, index=list("wxyz"))
    assert is_synthetic(rows).tolist() == [False] * 4
    mixed = rows.assign(synthetic=[True, None, float("nan"), False])
    assert is_synthetic(mixed).tolist() == [True, False, False, False]
