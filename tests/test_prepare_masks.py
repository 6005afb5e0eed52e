"""Masks: whatever form they come in, the same ids; what is wrong with them is told."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.camera import FrameWarp
from osn_gs.preprocess.frames import FramesRecord, SourceFrame, frame_path, write_frames_record
from osn_gs.preprocess.mask_checks import IdSwitch, find_gaps, find_switches
from osn_gs.preprocess.mask_numbering import fill_small_parts
from osn_gs.preprocess.masks import MasksConfig, import_masks, read_object_ids
from osn_gs.preprocess.pictures import object_palette

NUM_FRAMES = 6
SIZE = (96, 64)  # width, height
COLOURS = np.array([(0, 0, 0), (30, 30, 200), (200, 30, 30)], dtype=np.uint8)


def true_ids(num_frames=NUM_FRAMES):
    """Two boxes of 36x45 px that move by a pixel a frame (and out of the picture, if there are many)."""
    ids = np.zeros((num_frames, SIZE[1], SIZE[0]), dtype=np.uint8)
    for frame in range(num_frames):
        ids[frame, 10:55, 6 + frame : 42 + frame] = 1
        ids[frame, 8:53, 50 + frame : 86 + frame] = 2
    return ids


def make_scene(folder, names=(), indices=None, warp=None):
    """A scene folder after the frames step; a video's frames where there are no `names`."""
    indices = range(NUM_FRAMES) if indices is None else indices
    frames = tuple(
        SourceFrame(index, names[place] if names else "", None if names else index / 10, 1.0)
        for place, index in enumerate(indices)
    )
    warp = warp or FrameWarp(SIZE, (0, 0, *SIZE), SIZE)
    write_frames_record(folder, FramesRecord(frames, warp, None, None))
    frame_path(folder, 0).parent.mkdir()
    for number in range(len(frames)):
        Image.new("RGB", warp.size, (90, 90, 90)).save(frame_path(folder, number))
    return folder


def write_each(folder, masks, save, name="{:05d}.png", first=0):
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        path = folder / name.format(number + first)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, mask)
    return folder


def save_indexed(path, ids, palette=None):
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette((object_palette() if palette is None else palette).tobytes())
    image.save(path)


def save_picture(path, pixels):
    Image.fromarray(pixels).save(path)


def imported(scene, masks, **options):
    """Ids, advice and report of the masks step."""
    advice = import_masks(scene, scene, MasksConfig(masks=masks, **options))
    return read_object_ids(scene), advice, json.loads((scene / "prepare" / "masks.json").read_text())


def names_in(scene):
    return json.loads((scene / "scene.json").read_text())["objects"]


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path / "scene")


# Forms


def indexed(folder, ids):
    return write_each(folder, ids, save_indexed)


def indexed_with_void(folder, ids):
    """VOC paints borders 255: here the first row, which is background."""
    marked = ids.copy()
    marked[:, 0] = 255
    return write_each(folder, marked, save_indexed)


def indexed_with_renumbered_palettes(folder, ids):
    """What optimizers do: frame 3 lists its colours in another order."""

    def save(path, mask):
        swapped = path.stem == "00003"
        save_indexed(
            path, np.array([0, 2, 1], np.uint8)[mask] if swapped else mask, COLOURS[[0, 2, 1]] if swapped else COLOURS
        )

    return write_each(folder, ids, save)


def grey_of_any_values(folder, ids):
    return write_each(folder, np.array([0, 38, 75], np.uint8)[ids], save_picture)


def grey_of_16_bits(folder, ids):
    return write_each(folder, np.array([0, 1000, 60000], np.uint16)[ids], save_picture)


def colours(folder, ids):
    return write_each(folder, COLOURS[ids], save_picture)


def colours_on_transparent(folder, ids):
    pixels = np.concatenate(
        [np.array([(9, 9, 9), (0, 0, 200), (200, 0, 0)], np.uint8)[ids], 255 * (ids > 0)[..., None]], -1
    )
    return write_each(folder, pixels.astype(np.uint8), save_picture)


def soft_grey(folder, ids):
    """Edges blurred symmetrically, so that half way is the true edge."""
    images = [cv2.GaussianBlur(np.array([0, 100, 200], np.float32)[mask], (0, 0), 1.0) for mask in ids]
    return write_each(folder, np.round(images).astype(np.uint8), save_picture)


def lossy_grey(folder, ids):
    return write_each(folder, np.array([0, 100, 200], np.uint8)[ids], save_picture, "{:05d}.jpg")


def tool_output(folder, ids):
    """Track-Anything and others: masks in a folder beside pictures for people."""
    write_each(folder / "painted", COLOURS[ids], save_picture, "{:05d}.jpg")
    write_each(folder / "masks" / "clip", ids, np.save, "{:05d}.npy")
    return folder


def folder_per_object(folder, ids):
    """As Cutie's soft masks and SAM 2's --per_obj_png_file: nothing written where the object is not seen."""
    for k, name in ((1, "cat"), (2, "dog")):
        write_each(folder / name, 255 * (ids == k).astype(np.uint8), save_picture, "frame_{:05d}.png")
    return folder


def folder_per_object_soft(folder, ids):
    for k, name in ((1, "cat"), (2, "dog")):
        soft = [cv2.GaussianBlur((mask == k).astype(np.float32), (0, 0), 1.0) for mask in ids]
        write_each(folder / name, np.round(255 * np.array(soft)).astype(np.uint8), save_picture)
    return folder


def folder_per_frame(folder, ids):
    def save(path, mask):
        for k, name in ((1, "cat"), (2, "dog")):
            save_picture(path.with_name(f"{name}.png"), mask == k)

    return write_each(folder, ids, save, "{:05d}/cat.png")


def named_by_frame_and_object(folder, ids):
    def save(path, mask):
        for k in (1, 2):
            save_picture(path.with_name(f"{path.stem}_obj_{k}.png"), k * (mask == k).astype(np.uint8))

    return write_each(folder, ids, save)


def named_by_object_and_frame(folder, ids):
    def save(path, mask):
        for k, name in ((1, "cat"), (2, "dog")):
            save_picture(path.with_name(f"{name}_{path.name}"), 255 * (mask == k).astype(np.uint8))

    return write_each(folder, ids, save)


def arrays(folder, ids):
    return write_each(folder, ids.astype(np.int32), np.save, "{:05d}.npy")


def arrays_of_logits(folder, ids):
    """SAM 2's video predictor: [objects, 1, h, w]."""
    layers = np.stack([np.where(ids == k, 7.5, -9.25) for k in (1, 2)], axis=1)[:, :, None]
    return write_each(folder, layers, np.save, "{:05d}.npy")


def archives(folder, ids):
    def save(path, mask):
        np.savez(path, **{name: mask == k for k, name in ((2, "dog"), (1, "cat"))})

    return write_each(folder, ids, save, "{:05d}.npz")


def one_array(folder, ids):
    np.save(folder.with_suffix(".npy"), ids)
    return folder.with_suffix(".npy")


def one_array_of_layers(folder, ids):
    np.save(folder.with_suffix(".npy"), np.stack([ids == 1, ids == 2], axis=1))
    return folder.with_suffix(".npy")


def one_archive(folder, ids):
    np.savez_compressed(folder.with_suffix(".npz"), dog=ids == 2, cat=ids == 1)
    return folder.with_suffix(".npz")


EXACT_FORMS = (
    indexed,
    indexed_with_void,
    indexed_with_renumbered_palettes,
    grey_of_any_values,
    grey_of_16_bits,
    colours,
    colours_on_transparent,
    tool_output,
    folder_per_object,
    folder_per_frame,
    named_by_frame_and_object,
    named_by_object_and_frame,
    arrays,
    arrays_of_logits,
    archives,
    one_array,
    one_array_of_layers,
    one_archive,
)
SOFT_FORMS = (soft_grey, lossy_grey, folder_per_object_soft)


@pytest.mark.parametrize("write", EXACT_FORMS)
def test_every_form_of_masks_gives_the_same_ids(scene, tmp_path, write):
    ids, _, report = imported(scene, write(tmp_path / "given", true_ids()))
    np.testing.assert_array_equal(ids, true_ids())
    assert ids.dtype == np.uint8
    assert [entry["frames"] for entry in report["objects"]] == [NUM_FRAMES] * 3


@pytest.mark.parametrize("write", SOFT_FORMS)
def test_soft_edges_are_cut_in_the_middle(scene, tmp_path, write):
    ids, _, _ = imported(scene, write(tmp_path / "given", true_ids()))
    wrong = ids != true_ids()
    assert wrong.mean() < 0.01  # corners are rounded
    away_from_edges = [cv2.erode(mask, np.ones((5, 5))) == cv2.dilate(mask, np.ones((5, 5))) for mask in true_ids()]
    assert not (wrong & away_from_edges).any()


def test_the_threshold_moves_the_edge_of_a_soft_mask(scene, tmp_path):
    masks = folder_per_object_soft(tmp_path / "given", true_ids())
    sizes = [np.count_nonzero(imported(scene, masks, mask_threshold=threshold)[0]) for threshold in (0.1, 0.5, 0.9)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_what_values_became_is_told_where_it_is_not_plain(scene, tmp_path):
    _, advice, report = imported(scene, grey_of_any_values(tmp_path / "given", true_ids()))
    assert any("38 is object 1, 75 is object 2" in line for line in advice)
    assert [entry["label"] for entry in report["objects"]] == ["0", "38", "75"]
    _, advice, _ = imported(scene, indexed(tmp_path / "plain", true_ids()))
    assert not any("is object" in line for line in advice)


def test_names_come_from_the_user_or_from_folders(scene, tmp_path):
    masks = folder_per_object(tmp_path / "given", true_ids())
    imported(scene, masks)
    assert names_in(scene) == ["background", "cat", "dog"]
    imported(scene, masks, object_names=("tom", "rex"))
    assert names_in(scene) == ["background", "tom", "rex"]
    with pytest.raises(ConfigError, match="1 names but masks show 2 objects"):
        imported(scene, masks, object_names=("tom",))


def test_names_come_from_prompts_saved_beside_the_masks(scene, tmp_path):
    masks = indexed(tmp_path / "given", true_ids())
    (masks / "prompts.json").write_text(json.dumps({"size": SIZE, "objects": ["cat", "dog"], "prompts": []}))
    imported(scene, masks)
    assert names_in(scene) == ["background", "cat", "dog"]


def test_the_background_can_have_any_value(scene, tmp_path):
    masks = write_each(tmp_path / "given", np.array([7, 0, 3], np.uint8)[true_ids()], save_picture)
    np.testing.assert_array_equal(imported(scene, masks, background="7")[0], true_ids())
    no_zero = write_each(tmp_path / "no_zero", np.array([7, 2, 3], np.uint8)[true_ids()], save_picture)
    ids, advice, _ = imported(scene, no_zero, background="7")
    np.testing.assert_array_equal(ids, true_ids())
    assert any("7 is taken as the background" in line for line in advice)
    with pytest.raises(ConfigError, match=r"'9', which no mask has; masks have 2, 3, 7"):
        imported(scene, no_zero, background="9")


def test_an_ignored_object_becomes_background(scene, tmp_path):
    ids, advice, report = imported(scene, folder_per_object(tmp_path / "given", true_ids()), ignore=("cat",))
    np.testing.assert_array_equal(ids, true_ids() == 2)
    assert report["merged_into_background"] == ["cat"]
    assert any("cat counted as background" in line for line in advice)


# Frames


def test_masks_are_matched_by_name(tmp_path):
    """Some images were left out: their masks are not used."""
    names = [f"{letter}.png" for letter in "acdfgh"]
    scene = make_scene(tmp_path / "scene", names)
    masks = write_each(tmp_path / "given", [np.zeros_like(true_ids()[0])] * 10, save_indexed, "z{}.png")
    for name, ids in zip(names, true_ids(), strict=True):
        save_indexed(masks / name, ids)
    ids, _, report = imported(scene, masks)
    np.testing.assert_array_equal(ids, true_ids())
    assert report["matched"] == "by name"


@pytest.mark.parametrize("first", [0, 1])
def test_masks_of_a_video_are_matched_by_number(tmp_path, first):
    """Every second frame from the third on; masks of all frames count from 0, or from 1 as ffmpeg does."""
    scene = make_scene(tmp_path / "scene", indices=range(2, 14, 2))
    masks = write_each(tmp_path / "given", true_ids(16), save_indexed, "mask_{}.png", first)
    ids, _, report = imported(scene, masks)
    np.testing.assert_array_equal(ids, true_ids(16)[2:14:2])
    assert f"the source's first frame being {first}" in report["matched"]


def test_numbers_in_image_names_count_more_than_their_order(tmp_path):
    scene = make_scene(tmp_path / "scene", [f"shot{number:03d}.jpg" for number in range(4, 10)])
    masks = write_each(tmp_path / "given", true_ids(12), save_indexed, "{}_mask.png")
    np.testing.assert_array_equal(imported(scene, masks)[0], true_ids(12)[4:10])


def test_as_many_masks_as_frames_are_taken_in_order(tmp_path):
    scene = make_scene(tmp_path / "scene", indices=range(20, 80, 10))
    ids, advice, _ = imported(scene, indexed(tmp_path / "given", true_ids()))
    np.testing.assert_array_equal(ids, true_ids())
    assert any("by order" in line for line in advice)


def test_an_array_over_the_whole_video_is_taken_by_frame_number(tmp_path):
    scene = make_scene(tmp_path / "scene", indices=range(1, 12, 2))
    np.testing.assert_array_equal(imported(scene, one_array(tmp_path / "given", true_ids(14)))[0], true_ids(14)[1:12:2])


def test_masks_that_belong_to_no_frame_are_refused(tmp_path):
    scene = make_scene(tmp_path / "scene", [f"{letter}.png" for letter in "acdfgh"])
    masks = write_each(tmp_path / "given", true_ids(4), save_indexed, "{}_of_another_0.png")
    with pytest.raises(
        DatasetError,
        match=r"4 masks, named 0_of_another_0 to 3_of_another_0, do not belong to the 6 frames \(a\.png to",
    ):
        imported(scene, masks)
    with pytest.raises(DatasetError, match=r"4 masks, in given\.npy"):
        imported(scene, one_array(tmp_path / "given", true_ids(4)))


def test_a_missing_mask_is_named_and_a_missing_object_is_absent(scene, tmp_path):
    masks = indexed(tmp_path / "given", true_ids())
    (masks / "00002.png").unlink()
    with pytest.raises(DatasetError, match=r"no mask for 1 of 6 frames: 2 \(the first is number 2 of the video\)"):
        imported(scene, masks)
    objects = folder_per_object(tmp_path / "objects", true_ids())
    for name in ("cat", "dog"):
        (objects / name / "frame_00002.png").unlink()
    ids, advice, _ = imported(scene, objects)
    assert not ids[2].any()
    assert any("no object has a file for frames 2;" in line for line in advice)


# Sizes


def test_masks_of_the_source_go_through_the_frames_warp(tmp_path):
    """The source is four times as wide and cropped; masks at the frames' size or half the source's mean the same."""
    crop = (40, 16, 4 * SIZE[0], 4 * SIZE[1])
    scene = make_scene(tmp_path / "scene", warp=FrameWarp((464, 288), crop, SIZE))
    large = np.zeros((NUM_FRAMES, 288, 464), dtype=np.uint8)
    large[:, 16 : 16 + crop[3], 40 : 40 + crop[2]] = np.kron(true_ids(), np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(imported(scene, indexed(tmp_path / "large", large))[0], true_ids())
    np.testing.assert_array_equal(imported(scene, indexed(tmp_path / "small", true_ids()))[0], true_ids())
    ids, advice, _ = imported(scene, indexed(tmp_path / "half", large[:, ::2, ::2]))
    np.testing.assert_array_equal(ids, true_ids())
    assert any("232x144" in line for line in advice)


def test_resizing_masks_invents_no_ids(scene, tmp_path):
    """Between the background (0) and object 2 nothing may turn into object 1."""
    small = np.ascontiguousarray(true_ids()[:, ::4, ::4])
    ids, _, _ = imported(scene, indexed(tmp_path / "given", small))
    np.testing.assert_array_equal(ids, np.kron(small, np.ones((4, 4))))


def test_masks_of_another_shape_are_refused(scene, tmp_path):
    with pytest.raises(DatasetError, match=r"00000\.png: mask is 96x50 but the source's images are 96x64"):
        imported(scene, indexed(tmp_path / "given", np.ascontiguousarray(true_ids()[:, :50])))


# What is wrong with masks


def test_empty_masks_are_refused(scene, tmp_path):
    with pytest.raises(DatasetError, match="masks are empty: all pixels of 6 frames"):
        imported(scene, indexed(tmp_path / "given", np.zeros_like(true_ids())))


def test_an_object_must_be_seen_in_three_frames(scene, tmp_path):
    ids = true_ids()
    ids[2:][ids[2:] == 2] = 0
    with pytest.raises(DatasetError, match=r"show object 2 in 2 of 6 frames.*--ignore 2"):
        imported(scene, indexed(tmp_path / "given", ids))
    assert imported(scene, tmp_path / "given", ignore=("2",))[0].max() == 1


def test_an_object_whose_files_are_empty_is_not_forgotten(scene, tmp_path):
    masks = folder_per_object(tmp_path / "given", true_ids())
    write_each(masks / "bird", np.zeros_like(true_ids()), save_picture, "frame_{:05d}.png")
    with pytest.raises(DatasetError, match="show object bird in 0 of 6 frames"):
        imported(scene, masks)


def test_masks_without_background_are_refused(scene, tmp_path):
    with pytest.raises(DatasetError, match="leave background in 0 of 6 frames"):
        imported(scene, one_archive(tmp_path / "given", 2 - (true_ids() == 1)))


def test_photographs_are_not_masks(scene, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    with pytest.raises(DatasetError, match="as in photographs"):
        imported(scene, write_each(tmp_path / "given", noise, save_picture))


def test_too_many_objects_are_refused(scene, tmp_path):
    ids = np.tile(np.arange(SIZE[0] * SIZE[1] // 16).reshape(SIZE[1] // 4, -1), (NUM_FRAMES, 1, 1))
    many = np.kron(ids, np.ones((4, 4))).astype(np.uint16)
    with pytest.raises(DatasetError, match="383 different values"):
        imported(scene, write_each(tmp_path / "given", many, np.save, "{}.npy"))


def bad_path(path):
    return path


def text_file(path):
    path.write_text("not masks")
    return path


def folder_of_notes(path):
    path.mkdir()
    (path / "readme.txt").write_text("soon")
    return path


def text_called_png(path):
    return write_each(path, ["not a picture"] * NUM_FRAMES, lambda file, text: file.write_text(text))


def cut_short(path):
    masks = write_each(path, true_ids(), save_picture)
    whole = (masks / "00001.png").read_bytes()
    (masks / "00001.png").write_bytes(whole[: len(whole) // 2])
    return masks


def python_objects(path):
    np.save(path.with_suffix(".npy"), np.array([{1: "mask"}]), allow_pickle=True)
    return path.with_suffix(".npy")


def negative_ids(path):
    return write_each(path, true_ids().astype(int) - 1, np.save, "{}.npy")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (bad_path, "no such file or folder"),
        (text_file, "is one file; expected a folder"),
        (folder_of_notes, r"no masks found; expected .*got 1 \.txt"),
        (text_called_png, r"00000\.png: cannot be read as a picture"),
        (cut_short, r"00001\.png: the picture is damaged"),
        (python_objects, r"given\.npy: cannot be read as NumPy arrays"),
        (negative_ids, r"0\.npy: values go from -1 to 1"),
    ],
)
def test_unreadable_masks_are_told_by_file(scene, tmp_path, write, message):
    with pytest.raises(DatasetError, match=message):
        imported(scene, write(tmp_path / "given"))
    assert not (scene / "segm_sam").exists()


def test_no_masks_leads_to_the_segmenter(scene):
    with pytest.raises(ConfigError, match=r"tools/segment\.py"):
        import_masks(scene, scene, MasksConfig())


def test_gaps_and_specks_are_told(scene, tmp_path):
    ids = true_ids()
    ids[2:4][ids[2:4] == 2] = 0
    ids[:, 60:62, 60:90:4] = 1
    _, advice, report = imported(scene, indexed(tmp_path / "given", ids))
    assert any("object 2 is away and back again: frames 2-3 " in line for line in advice)
    assert any("object 1 has 48 specks" in line for line in advice)
    assert report["objects"][2]["gaps"] == [[2, 3]]
    np.testing.assert_array_equal(imported(scene, tmp_path / "given", clean_masks=9)[0] == 1, true_ids() == 1)


def test_small_and_large_objects_are_told(scene, tmp_path):
    ids = np.zeros_like(true_ids())
    ids[:, 20:30, 10:20] = 2
    ids[:, 3:, 30:] = 1
    ids[:, :, 40:] = 1
    _, advice, _ = imported(scene, indexed(tmp_path / "given", ids))
    assert any("object 2 is only about 10 px wide" in line for line in advice)
    assert any("object 1 covers" in line for line in advice)


def test_gaps_lie_between_frames_that_show_the_object():
    seen = np.array([0, 1, 1, 0, 0, 1, 0, 1, 0], dtype=bool)
    assert find_gaps(seen) == ((3, 4), (6, 6))


def test_ids_that_change_places_are_found():
    ids = true_ids()
    assert find_switches(ids, 3) == ()
    swapped = ids.copy()
    swapped[3:] = np.array([0, 2, 1], np.uint8)[ids[3:]]
    assert find_switches(swapped, 3) == (IdSwitch(3, 1, 2), IdSwitch(3, 2, 1))
    renamed = ids.copy()
    renamed[3:][ids[3:] == 2] = 3
    assert find_switches(renamed, 4) == (IdSwitch(3, 2, 3),)


def test_small_parts_take_the_ids_around_them():
    ids = np.zeros((40, 40), dtype=np.uint8)
    ids[10:30, 10:30] = 1
    ids[15:25, 30:38] = 2
    dirty = ids.copy()
    dirty[20, 20] = 0  # a hole
    dirty[3:5, 3:5] = 2  # a speck
    np.testing.assert_array_equal(fill_small_parts(dirty, 5), ids)
    np.testing.assert_array_equal(fill_small_parts(dirty, 1), dirty)


def test_the_same_masks_give_the_same_bytes(tmp_path):
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        scene = make_scene(tmp_path / name / "clip")
        imported(scene, folder_per_object_soft(tmp_path / name / "given", true_ids()))
        files = [*sorted((scene / "segm_sam").iterdir()), scene / "scene.json", scene / "prepare" / "masks.png"]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_the_picture_shows_objects_in_their_colours(scene, tmp_path):
    imported(scene, indexed(tmp_path / "given", true_ids()))
    picture = np.asarray(Image.open(scene / "prepare" / "masks.png")).astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert ((red > green + 40) & (red > blue + 40)).sum() > NUM_FRAMES * 1000  # object 1: dark red over grey
    assert ((green > red + 40) & (green > blue + 40)).sum() > NUM_FRAMES * 1000
