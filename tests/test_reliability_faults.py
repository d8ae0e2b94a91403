"""Which test holds which of the faults of reliability.md; and the DICOM faults no reader test has.

``FAULTS``: number -> 'file::test', relative to tests/.
"""

import ast
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from tests.io.made import ct_slice
from vesalius.core.errors import DataError
from vesalius.io import read_image

TESTS = Path(__file__).parent
OWED = set(range(1, 61))
_NIFTI, _DICOM, _LABELS, _READ = "io/test_nifti.py::", "io/test_dicom.py::", "io/test_labels.py::", "datasets/test_read_case.py::"
_RUN, _API, _LOOP, _HERE = "test_reliability.py::", "engine/test_api.py::", "engine/test_training.py::", "test_reliability_faults.py::"
_PAGE, _TOOLS, _STORE, _GATE = (f"serve/test_{name}.py::" for name in ("page", "page_tools", "store", "security"))
_PICTURES, _ATOMIC, _ITK, _CHECK = "io/test_pictures.py::", "io/test_atomic.py::", "io/test_itk.py::", "datasets/test_checks.py::"

FAULTS = {
    1: (_NIFTI + "test_truncated", _NIFTI + "test_last_bytes_gone"),
    2: (_NIFTI + "test_any_flipped_bit_of_the_payload", _NIFTI + "test_wrong_crc_or_isize"),
    3: (_NIFTI + "test_members_padding_and_garbage",),
    4: (_NIFTI + "test_misnamed",),
    5: (_NIFTI + "test_five_ways_of_no_file",),
    6: (_NIFTI + "test_giant_dimensions_allocate_nothing",),
    7: (_NIFTI + "test_impossible_fields", _NIFTI + "test_colour_and_singletons"),
    8: (_NIFTI + "test_impossible_spacing", _NIFTI + "test_implausible_spacing", _NIFTI + "test_units_become_mm"),
    9: (_NIFTI + "test_no_form_follows_the_declared_policy",),
    10: (_NIFTI + "test_conflicting_forms", _NIFTI + "test_conflict_tolerance"),
    11: (_NIFTI + "test_shear", _NIFTI + "test_singular", "io/test_trips.py::test_48_orientations"),
    12: (_NIFTI + "test_colour_and_singletons", _LABELS + "test_time_series_are_refused"),
    13: (_READ + "test_other_grid_names_both_files", _CHECK + "test_one_bad_case_is_an_error_and_the_others_go_on"),
    14: (_READ + "test_label_within_tolerance_takes_the_images_grid", _READ + "test_other_grid_names_both_files"),
    15: (
        "datasets/test_sides.py::test_names_tell_on_which_side_an_organ_lies",
        "datasets/test_sides.py::test_without_telling_names_the_other_cases_tell",
    ),
    16: (_LABELS + "test_unknown_values_are_listed", _LABELS + "test_fractions_are_refused"),
    17: ("metrics/test_empty_masks.py::test_the_empty_mask_table",),
    18: ("metrics/test_surface.py::test_equals_surface_distance_on_degenerate_masks",),
    19: (_RUN + "test_a_constant_image_and_one_full_of_nan", _NIFTI + "test_nan_and_infinity"),
    20: (_NIFTI + "test_rescaling", _NIFTI + "test_huge_slope_is_refused_not_infinite", _NIFTI + "test_rescaled_beyond_int16"),
    21: tuple(_DICOM + t for t in ("test_missing_slice", "test_double_slice", "test_uneven_slices", "test_localizer_in_the_series"))
    + tuple(_DICOM + t for t in ("test_several_series", "test_gantry_tilt")),
    22: (_DICOM + "test_sorted_by_position_not_by_name_or_number",),
    23: tuple(_DICOM + t for t in ("test_pictures_without_a_place", "test_pixel_spacing_wins_over_the_detector"))
    + tuple(_DICOM + t for t in ("test_enhanced_multiframe", "test_orientations_match_simpleitk", "test_bad_direction_cosines")),
    24: (_DICOM + "test_monochrome1_is_inverted", _DICOM + "test_packaged_files_equal_simpleitk"),
    25: (_DICOM + "test_deflated_bomb", _HERE + "test_codecs_that_are_missing_or_cut", _DICOM + "test_packaged_files_equal_simpleitk"),
    26: (_DICOM + "test_deep_sequences", _DICOM + "test_packaged_files_that_are_refused", _HERE + "test_a_charset_of_nonsense_is_read"),
    27: (_DICOM + "test_promises_beyond_the_file",),
    28: (_DICOM + "test_hostile_uids_never_become_paths", _GATE + "test_names_never_become_paths")
    + ("serve/test_work.py::test_file_names_are_safe_and_stay_apart",),
    29: tuple(_PICTURES + t for t in ("test_bombs", "test_exif_orientation", "test_cmyk_and_deep_colour_are_refused"))
    + (_PICTURES + "test_sixteen_bits", _PICTURES + "test_palette_and_transparency")
    + (_LABELS + "test_lossy_files_are_refused", _LABELS + "test_soft_edges_are_refused"),
    30: tuple("io/test_wsi.py::" + t for t in ("test_corrupt_tile_is_one_clear_error", "test_truncated_file", "test_bad_tile_side"))
    + ("io/test_wsi.py::test_resolution_of_a_screen_is_not_believed", "io/test_wsi.py::test_what_is_no_slide"),
    31: (_ITK + "test_detached_data_outside", _ITK + "test_promises_beyond_the_file", _ITK + "test_damaged_compressed_data"),
    32: ("serve/test_imports.py::test_archives_are_not_taken",),
    33: ("serve/test_imports.py::test_archives_are_not_taken",),
    34: ("io/test_arrays.py::test_objects_are_never_unpickled",),
    35: (_RUN + "test_damaged_checkpoints_are_refused",),
    36: (_LOOP + "test_checkpoint_of_another_shape_names_the_difference", _RUN + "test_plain_mistakes_in_a_runs_files"),
    37: (_RUN + "test_plain_mistakes_in_a_runs_files", "test_cli.py::test_mistakes_are_one_sentence"),
    38: (_ATOMIC + "test_killed_at_any_moment", _LOOP + "test_killed_process_resumes"),
    39: (_LOOP + "test_resume_is_bit_equal", _RUN + "test_a_signal_saves_and_resumes_bitwise"),
    40: (_ATOMIC + "test_a_disk_that_fills_up", _RUN + "test_disk_full_keeps_the_last_checkpoint"),
    41: (_RUN + "test_what_does_not_fit_is_said_before", _API + "test_running_out_of_memory_is_tried_once_in_blocks"),
    42: (_API + "test_a_gpu_that_is_not_there", _API + "test_torchs_own_errors_are_explained"),
    43: (_RUN + "test_a_failing_worker_names_the_case", _API + "test_torchs_own_errors_are_explained"),
    44: (_RUN + "test_blocks_equal_the_whole", _API + "test_a_dataset_larger_than_memory_goes_in_blocks"),
    45: (_RUN + "test_thin_small_and_odd_volumes",),
    46: (_API + "test_one_voxel_to_normalise_is_said_before_the_first_update",),
    47: (_LOOP + "test_a_loss_that_is_not_finite_stops_with_the_last_good_weights",),
    48: (_RUN + "test_no_foreground_at_all_is_one_sentence", _RUN + "test_one_case_is_enough_to_say_what_is_missing")
    + (_CHECK + "test_duplicates_leak",),
    49: (_RUN + "test_a_signal_saves_and_resumes_bitwise", _RUN + "test_sigterm_to_the_whole_group")
    + (_RUN + "test_a_prediction_ends_at_sigterm_with_whole_files", _RUN + "test_letters_a_terminal_cannot_show"),
    50: (_RUN + "test_locale_clock_and_workers_do_not_matter", _RUN + "test_a_clock_that_jumps_back"),
    51: (_LOOP + "test_two_processes_do_not_share_a_folder",),
    52: (_STORE + "test_the_second_of_two_gets_a_conflict_and_both_versions_stay", _STORE + "test_ten_people_at_once_lose_nothing")
    + (_PAGE + "test_two_people_on_one_case", "serve/test_together.py::test_nobody_overwrites_the_labels_of_another"),
    53: (_PAGE + "test_a_server_that_goes_away", _PAGE + "test_a_full_disk", _TOOLS + "test_drafts_of_another_project_at_the_same_address"),
    54: tuple(_GATE + t for t in ("test_a_huge_upload_is_refused_by_its_length_alone", "test_bodies_end_at_the_limit"))
    + (_GATE + "test_a_body_that_dawdles_is_given_up", _GATE + "test_a_form_of_very_many_parts_is_refused")
    + ("serve/test_patience.py::test_headers_that_do_not_come_are_given_up",),
    55: (_GATE + "test_other_hosts_and_sites_are_refused",),
    56: (_GATE + "test_names_never_become_paths", _GATE + "test_links_out_of_the_project_are_not_followed"),
    57: (_STORE + "test_labels_are_text_and_nothing_else", "datasets/test_export.py::test_no_spreadsheet_runs_what_is_in_the_table")
    + (_GATE + "test_pages_may_do_little_and_answers_are_not_kept", "report/test_tables.py::test_files"),
    58: (_GATE + "test_wrong_tokens", _GATE + "test_nothing_is_told_without_the_token", _GATE + "test_the_log_names_nobody")
    + (_GATE + "test_the_link_sets_a_cookie_and_leaves_no_token_in_the_url",),
    59: (_RUN + "test_nothing_of_the_patient_leaves_the_header", _DICOM + "test_hostile_uids_never_become_paths"),
    60: (_LOOP + "test_workers_change_nothing", _LOOP + "test_same_seed_same_numbers_other_seed_other_numbers"),
}


@cache
def named_in(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_its_tests():
    assert set(FAULTS) == OWED
    lost = {number: name for number, names in FAULTS.items() for name in names if name.split("::")[1] not in named_in(name.split("::")[0])}
    assert not lost


def _with_syntax(path: Path, uid: bytes) -> Path:
    content = path.read_bytes()
    known = b"1.2.840.10008.1.2.1\0"
    assert known in content
    path.write_bytes(content.replace(known, uid))
    return path


PIXELS = np.arange(63, dtype=np.uint16).reshape(7, 9)


@pytest.mark.parametrize("uid", [b"1.2.840.99999.1.2.1\0", b"1.2.840.10008.1.2.4\0"])
def test_codecs_that_are_missing_or_cut(tmp_path, uid):
    """25: an unknown transfer syntax is named; JPEG 2000 and RLE data that are cut are refused, never half a picture."""
    path = _with_syntax(ct_slice(tmp_path / "a.dcm", PIXELS, (0, 0, 0)), uid)
    with warnings.catch_warnings(), pytest.raises(DataError, match="cannot be decoded.*" + uid.decode().rstrip("\0")):
        warnings.simplefilter("ignore")
        read_image(path)
    for name in ("MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"):
        content = Path(get_testdata_file(name)).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        with warnings.catch_warnings(), pytest.raises(DataError, match="damaged or truncated"):
            warnings.simplefilter("ignore")
            read_image(tmp_path / name)


def test_a_charset_of_nonsense_is_read(tmp_path):
    """26: names are not shown, so that what they are written in does not matter."""
    path = ct_slice(tmp_path / "a.dcm", PIXELS, (0, 0, 0), SpecificCharacterSet="NOT_A_CHARSET")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(read_image(path).data.squeeze().T, PIXELS)
