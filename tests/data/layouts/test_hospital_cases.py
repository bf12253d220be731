"""Situations that users of public code reported with label tables and image trees, and the test of each.

`COVERED` names the test of every situation; those that no other file holds are below.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from medlt.data.layouts.cxr_lt import FINDINGS_2024
from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.types import InputError

TESTS = Path(__file__).parents[2]
COVERED = {
    "LongTailCXR: 19 single-label lists over a JPG tree, with orphans and broken files": (
        "data/layouts/test_mimic.py::test_the_lists_of_2022_give_one_manifest_however_spelt",
        "data/layouts/test_mimic.py::test_orphans_of_studies_go_both_ways",
        "data/test_validate.py::test_some_bad_files_are_told_all_bad_files_stop",
    ),
    "LongTailCXR: lists renamed as its own loader reads them; never other labels instead": (
        "data/layouts/test_mimic.py::test_the_lists_of_2022_give_one_manifest_however_spelt",
        "data/layouts/test_mimic.py::test_other_labels_are_never_taken_without_a_word",
    ),
    "mimic-code 1284: frontal views only": (
        "data/layouts/test_labels.py::test_views_are_chosen_by_projection_or_name",
    ),
    "chexpert-labeler 9: a blank is not mentioned": (
        "data/layouts/test_labels.py::test_a_table_of_a_labeler_needs_a_meaning_and_a_preset_gives_it",
        "data/layouts/test_mimic.py::test_a_release_of_a_labeler_means_what_its_authors_say",
    ),
    "torchxrayvision 144: -1 is unknown, No Finding makes the others absent": (
        "data/layouts/test_labels.py::test_labels_follow_the_rules_and_the_report_counts_what_changed",
    ),
    "torchxrayvision 172: Effusion and Pleural Effusion are one finding of two sets": (
        "data/layouts/test_labels.py::test_an_alias_joins_collections_and_takes_masks_along",
        "data/test_join.py::test_equal_numbers_are_other_patients_and_lacking_findings_are_unknown",
    ),
    "MIMIC-CXR-JPG 2.1.0: test studies read by radiologists": (
        "data/layouts/test_mimic.py::test_a_radiologists_labels_are_those_of_the_test_studies",
    ),
    "cxrlt24: the starting kit of task 1": (
        "data/layouts/test_hospital_cases.py::test_a_starting_kit_has_labels_of_the_train_part_alone",
    ),
    "cxr-lt-diss: resized copies under other folders": (
        "data/layouts/test_hospital_cases.py::test_resized_copies_of_a_subset_are_matched_and_the_rest_is_listed",
    ),
    "BenchMD 1: a DICOM tree under lists of JPG": (
        "data/layouts/test_mimic.py::test_images_may_be_dicom_and_lie_apart",
    ),
    "a download of some folders, its files linked": (
        "data/layouts/test_hospital_cases.py::test_resized_copies_of_a_subset_are_matched_and_the_rest_is_listed",
    ),
    "data lake: p10 to p19 are links": ("data/layouts/test_mimic.py::test_folders_of_patients_may_be_links",),
    "CXR-LT 2023 and 2024": (
        "data/layouts/test_cxr_lt.py::test_2023",
        "data/layouts/test_cxr_lt.py::test_2024_by_task",
        "data/layouts/test_cxr_lt.py::test_rows_of_zeros_need_a_choice_and_normal_is_no_finding",
    ),
    "CXR-LT 2024: Normal is a healthy partner": (
        "synthesis/test_pairing.py::test_manifest_and_plan_have_one_definition_of_no_finding",
    ),
    "CXR-LT 2026: no patients are published": (
        "data/layouts/test_published.py::test_brax_and_cxr_lt_2026_by_the_layout_csv",
    ),
    "CheXpert: the uid is in the path": (
        "data/layouts/test_published.py::test_chexpert_by_the_end_of_the_path",
        "data/layouts/test_spreadsheets.py::test_paths_with_other_folders_in_front",
    ),
    "PadChest: labels as the text of a list, names with .png": ("data/layouts/test_published.py::test_padchest_lists",),
    "VinDr: three readers of an image": ("data/layouts/test_published.py::test_vindr_readers",),
    "BRAX: -1, blanks and PngPath": ("data/layouts/test_published.py::test_brax_and_cxr_lt_2026_by_the_layout_csv",),
    "CheXGenBench: prompts of the images": ("export/test_images.py::test_prompts_go_with_the_images",),
    "LongTailCXR: training with added rows": ("export/test_images.py::test_longtailcxr_loads_in_its_own_data_set",),
    "Hugging Face: imagefolder": ("export/test_images.py::test_imagefolder_by_hugging_face",),
    "LongTailCXR: a single-label task with fused labels": (
        "classify/test_train.py::test_soft_labels_of_added_rows_are_divided_by_their_sum",
    ),
    "TEXTurePaper 42: torchrun": (
        "recipes/test_several_processes.py::test_a_start_by_torchrun_is_refused_before_anything_is_written",
    ),
    "two commands at once share what they train": (
        "recipes/test_several_processes.py::test_two_runs_that_share_artifacts_end_with_the_bytes_of_one",
        "test_store.py::test_processes_that_race_for_one_key_build_once_and_all_get_it",
    ),
}


@pytest.mark.parametrize("case", COVERED)
def test_every_situation_has_its_test(case: str) -> None:
    for one in COVERED[case]:
        file, _, name = one.partition("::")
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), one


DICOMS = [f"{n:08x}-aaaaaaaa-bbbbbbbb-cccccccc-dddddddd" for n in range(6)]


def place(n: int) -> str:
    return f"files/p1{n}/p1{n}000000/s5000000{n}/{DICOMS[n]}.jpg"


def listed(ids: range, findings: tuple[str, ...], **others: Any) -> dict[str, Any]:
    """Columns of a list with one finding an image."""
    labels = {name: [int(n % len(findings) == k) for n in ids] for k, name in enumerate(findings)}
    return {
        "dicom_id": [DICOMS[n] for n in ids],
        "subject_id": [f"1{n}000000" for n in ids],
        "study_id": [f"s5000000{n}" for n in ids],
        **labels,
        **others,
    }


def test_a_starting_kit_has_labels_of_the_train_part_alone(touch: Any, put: Any, read: Any) -> None:
    """As the organisers gave it before the end: the tables of the other parts name images and no label."""
    kit = "task1_development_starting_kit/"
    task = tuple(
        name for name in FINDINGS_2024 if name not in ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
    )
    put(f"{kit}train_labeled.csv", **listed(range(5), task, fpath=[place(n) for n in range(5)]))
    put(f"{kit}development.csv", **listed(range(5, 6), (), fpath=[place(5)]))
    src = touch(place(n) for n in range(6))
    with pytest.raises(InputError, match=r"no labels\.csv of CXR-LT 2024, the table of all findings; choose --task 1"):
        read("cxr-lt", src)
    result = read("cxr-lt", src, task="1")
    assert set(result.manifest.rows["split"]) == {"train"}
    assert result.manifest.rows.index.tolist() == DICOMS[:5]
    assert result.manifest.labels().sum() == 5


@pytest.mark.parametrize("folder", ["512/mimic-cxr-jpg-2.1.0/", ""])
def test_resized_copies_of_a_subset_are_matched_and_the_rest_is_listed(
    touch: Any, put: Any, read: Any, lost: Any, tmp_path: Path, folder: str
) -> None:
    """Two patients were never downloaded; the files of the others are links to another disk."""
    put("lists/mimic-cxr-lt_single-label_train.csv", **listed(range(6), FINDINGS, path=[place(n) for n in range(6)]))
    lists = touch(()) / "lists"
    copies = tmp_path / "resized" / folder
    for n in range(4):
        (tmp_path / f"disk-{n}").touch()
        (copies / place(n)).parent.mkdir(parents=True)
        (copies / place(n)).symlink_to(tmp_path / f"disk-{n}")
    result = read("mimic-cxr-lt", lists, images=tmp_path / "resized")
    assert list(result.manifest.rows["path"]) == [folder + place(n) for n in range(4)]
    assert lost(result, "label_without_image") == [place(4), place(5)]
    assert result.failures == 2
    result.manifest.check_files()
