from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeq.errors import CalibrationError, ConfigError
from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess, load_recipe
from edgeq.stages.calibrate import iterables
from edgeq.stages.calibrate.feeds import Feed, group_of, load_feed, split_feed

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ONE = (TensorInfo("x", F32, (1, 4)),)
ANY = (TensorInfo("x", F32, ("N", 4)),)
TWO = (TensorInfo("ids", I64, ("N", "L")), TensorInfo("mask", I64, ("N", "L")))
IMAGE = (TensorInfo("image", F32, ("N", 3, 16, 16)),)
SMALL = ImagePreprocess(crop=(16, 16), resize=20)


def rows(count: int) -> np.ndarray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


def values(feed: Feed, name: str = "x") -> list[list[float]]:
    return [sample[name].ravel().tolist() for sample in feed]


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (30, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


# --- sources that agree ------------------------------------------------------------------------


def sources(folder: Path) -> dict[str, Any]:
    data = rows(6)
    np.save(folder / "one.npy", data)
    np.savez(folder / "one.npz", x=data, labels=np.arange(6))
    np.savez_compressed(folder / "packed.npz", x=data)
    np.save(folder / "fortran.npy", np.asfortranarray(data))
    (folder / "many").mkdir()
    for i in range(6):
        np.save(folder / "many" / f"sample-{i}.npy", data[i : i + 1])
    (folder / "bare").mkdir()
    for i in range(6):
        np.savez(folder / "bare" / f"{i}.npz", x=data[i])
    (folder / "shards").mkdir()
    np.save(folder / "shards" / "a.npy", data[:4])
    np.save(folder / "shards" / "b.npy", data[4:])
    return {
        **{name: folder / name for name in ("one.npy", "one.npz", "packed.npz", "fortran.npy")},
        **{name: folder / name for name in ("many", "bare", "shards")},
        "array": data,
        "dict of arrays": {"x": data},
        "list": list(data),
        "list with batch axis": [row[None] for row in data],
        "list of dicts": [{"x": row, "label": 3} for row in data],
        "list of tuples": [(row[None], 7) for row in data],
        "generator": (row for row in data),
        "batched": [data[:4], data[4:]],
    }


SOURCES = [
    *("one.npy", "one.npz", "packed.npz", "fortran.npy", "many", "bare", "shards", "array", "dict of arrays"),
    *("list", "list with batch axis", "list of dicts", "list of tuples", "generator", "batched"),
]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    feed = load_feed(sources(tmp_path)[name], ONE)
    assert values(feed) == rows(6).tolist()
    assert values(feed) == rows(6).tolist(), "the second pass differs"
    assert len(feed) == 6
    sample = next(iter(feed))["x"]
    assert (sample.dtype, sample.shape) == (np.float32, (1, 4))
    assert [s["x"].ravel().tolist() for s in feed.samples(start=4)] == rows(6)[4:].tolist()


@pytest.mark.parametrize("name", SOURCES)
def test_fingerprints_follow_the_content(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = load_feed(sources(tmp_path / "a")[name], ONE)
    same = load_feed(sources(tmp_path / "b")[name], ONE)
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != load_feed(rows(6) + 1, ONE).fingerprint
    if name == "one.npz":
        np.savez(tmp_path / "a" / "one.npz", x=rows(6) + 1)
        assert first.fingerprint != load_feed(tmp_path / "a" / "one.npz", ONE).fingerprint


def test_a_dynamic_batch_takes_items_as_they_are() -> None:
    assert [s["x"].shape for s in load_feed([rows(4), rows(2)], ANY)] == [(4, 4), (2, 4)]
    assert [s["x"].shape for s in load_feed(rows(5), ANY, batch=2)] == [(2, 4), (2, 4), (1, 4)]


def test_a_fixed_batch_leaves_out_the_remainder() -> None:
    inputs = (TensorInfo("x", F32, (2, 4)),)
    assert [s["x"].shape for s in load_feed(rows(5), inputs)] == [(2, 4), (2, 4)]
    with pytest.raises(CalibrationError, match="1 calibration samples do not fill one batch of 2"):
        load_feed(rows(1), inputs)


def test_inputs_without_a_common_batch_axis_are_left_whole() -> None:
    inputs = (TensorInfo("x", F32, (1, 4)), TensorInfo("state", F32, (2, 1, 3)), TensorInfo("rate", I64, ()))
    sample = {"x": rows(1), "state": np.zeros((2, 1, 3), np.float32), "rate": np.int64(16000)}
    feed = load_feed([sample, sample], inputs)
    assert len(feed) == 2
    assert next(iter(feed))["state"].shape == (2, 1, 3)


def test_a_torch_dataloader(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    dataset = TensorDataset(torch.from_numpy(rows(10)), torch.arange(10))
    feed = load_feed(DataLoader(dataset, batch_size=4, shuffle=True), ONE)
    assert len(feed) == 10
    assert sorted(values(feed)) == rows(10).tolist()
    assert values(feed) == values(feed), "a shuffling loader must be read once"
    assert [s["x"].shape[0] for s in load_feed(DataLoader(dataset, batch_size=4), ANY)] == [4, 4, 2]


def test_torch_tensors_that_require_grad() -> None:
    torch = pytest.importorskip("torch")
    assert values(load_feed([torch.ones(1, 4, requires_grad=True)], ONE)) == [[1.0] * 4]


def test_count_of_an_endless_iterable() -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield rows(1)

    assert len(load_feed(endless(), ONE, count=5)) == 5


def test_an_endless_iterable_without_a_count_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterables, "_MOST_SPOOLED", 1 << 16)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield rows(1)

    with pytest.raises(CalibrationError, match="of calibration samples after 4096 items"):
        load_feed(endless(), ONE)


def test_count_draws_by_seed_and_keeps_the_order() -> None:
    drawn = values(load_feed(rows(100), ONE, count=10))
    assert len(drawn) == 10
    assert drawn == sorted(drawn)
    assert drawn == values(load_feed(rows(100), ONE, count=10))
    assert drawn != values(load_feed(rows(100), ONE, count=10, seed=1))


def test_a_count_beyond_the_data_uses_all_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        feed = load_feed(rows(3), ONE, count=50)
    assert len(feed) == 3
    assert "50 calibration samples asked for, 3 available: using all" in caplog.text
    assert "50 were asked for" in feed.description


# --- casts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("int32", "int64"), ("int64", "int32"), ("bool", "int64"), ("float64", "float32"), ("float32", "float16")],
)
def test_casts_that_lose_nothing_are_made(given: str, wanted: str) -> None:
    inputs = (TensorInfo("x", np.dtype(wanted), (1, 4)),)
    sample = next(iter(load_feed([np.ones((1, 4), given)], inputs)))["x"]
    assert sample.dtype == wanted
    assert sample.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("array", "wanted", "text"),
    [
        (np.ones((1, 4), np.float32), "int64", "wants int64, got float32: this is no safe cast"),
        (np.ones((1, 4), np.uint8), "float32", "wants float32, got uint8: this is no safe cast"),
        (np.full((1, 4), 2**40), "int32", "wants int32, got int64: its values do not fit"),
        (np.full((1, 4), 1e30, np.float32), "float16", "wants float16, got float32: its values do not fit"),
        (-np.ones((1, 4), np.int64), "uint8", "its values do not fit"),
    ],
)
def test_casts_that_lose_something_are_refused(array: np.ndarray, wanted: str, text: str) -> None:
    feed = load_feed([array], (TensorInfo("x", np.dtype(wanted), (1, 4)),))
    with pytest.raises(CalibrationError, match=text):
        next(iter(feed))


# --- bad samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([np.ones((1, 5), np.float32)], r"(?s)expected x: float32\[1, 4\], got float32\[1, 5\].*where: item 0"),
        ([np.ones((1, 1, 4), np.float32)], r"expected x: float32\[1, 4\], got shape \[1, 1, 4\]"),
        ([{"y": rows(1)}], r"no data for input x: float32\[1, 4\]; got nothing"),
        ([np.array([["a", "b", "c", "d"]])], "expected numbers, got"),
        ([object()], "expected numbers, got object of dtype object"),
        ([np.array([[1, np.nan, 2, 3]], np.float32)], "(?s)input 'x' holds NaN.*where: item 0"),
        ([], "the list given as calibration data holds no samples"),
        (iter(()), "holds no samples"),
        (5, "a int is no calibration data"),
    ],
)
def test_bad_samples(data: Any, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        list(load_feed(data, ONE))


def test_too_short_tuples_and_disagreeing_arrays() -> None:
    with pytest.raises(CalibrationError, match=r"1 arrays for 2 inputs \(ids, mask\)"):
        load_feed([(np.ones((1, 3), np.int64),)], TWO)
    ids, mask = np.ones((2, 3), np.int64), np.ones((1, 3), np.int64)
    with pytest.raises(CalibrationError, match="disagree on the number of samples"):
        load_feed([{"ids": ids, "mask": mask}], TWO)
    with pytest.raises(CalibrationError, match=r"expected mask: int64\[N, L\], got int64\[2, 4\]"):
        list(load_feed([{"ids": ids, "mask": np.ones((2, 4), np.int64)}], TWO))
    with pytest.raises(CalibrationError, match="samples of different shapes cannot form one batch"):
        list(
            load_feed(
                [np.ones((1, 3), np.float32), np.ones((1, 4), np.float32)], (TensorInfo("x", F32, ("N", "L")),), batch=2
            )
        )


# --- bad files -----------------------------------------------------------------------------------


def test_missing_data_lists_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"(?s)does not exist.*photos, sentences"):
        load_feed(tmp_path / "nowhere", ONE)


def test_empty_folders_and_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="the folder is empty"):
        load_feed(tmp_path, IMAGE, preprocess=SMALL)
    (tmp_path / "readme.txt").write_text("nothing to see")
    with pytest.raises(CalibrationError, match=r"the folder holds no pictures \(\.jpg"):
        load_feed(tmp_path, IMAGE, preprocess=SMALL)


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CalibrationError, match="the folder cannot be read: Permission denied"):
        load_feed(tmp_path, IMAGE, preprocess=SMALL)


def test_files_of_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(CalibrationError, match=r"a file with the ending '\.csv' is no calibration data"):
        load_feed(tmp_path / "data.csv", ONE)


def test_pictures_without_preprocessing_want_a_recipe(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    with pytest.raises(
        CalibrationError, match=r"(?s)how the model wants its pictures prepared.*remedy: write a recipe"
    ):
        load_feed(tmp_path, IMAGE)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00garbage"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_array_files(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"(?s)no readable numeric array file.*where: .*bad\.np"):
        load_feed(file, ONE)


def test_truncated_array_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(100))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:-500])
    with pytest.raises(CalibrationError, match="no readable numeric array file"):
        list(load_feed(tmp_path / "x.npy", ONE))
    np.savez(tmp_path / "x.npz", x=rows(10_000))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[100_000] ^= 255
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CalibrationError, match="no readable numeric array file"):
        list(load_feed(tmp_path / "x.npz", ONE))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle was loaded",))

    np.save(tmp_path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([Bomb()] * 4, object).reshape(1, 4))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(CalibrationError, match="no readable numeric array file"):
            list(load_feed(tmp_path / name, ONE))


def test_array_files_name_file_row_and_shapes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 5), np.float32))
    with pytest.raises(CalibrationError, match=r"(?s)expected x: float32\[1, 4\], got float32\[1, 5\].*x\.npy\[0\]"):
        list(load_feed(tmp_path / "x.npy", ONE))
    with pytest.raises(CalibrationError, match=r"a \.npy file holds one array, but the model has 2 inputs"):
        load_feed(tmp_path / "x.npy", TWO)
    np.savez(tmp_path / "x.npz", ids=np.ones((2, 3), np.int64))
    with pytest.raises(CalibrationError, match=r"no data for input mask: int64\[N, L\]; got ids"):
        load_feed(tmp_path / "x.npz", TWO)


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeq.stages.calibrate import arrays

    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((10000, 4), np.float32))
    monkeypatch.setattr(arrays, "_MOST_UNPACKED", 100_000)
    with pytest.raises(CalibrationError, match="the file unpacks to more than"):
        load_feed(tmp_path / "x.npz", ONE)


# --- recipes -------------------------------------------------------------------------------------


def write_recipe(folder: Path, **source: Any) -> Path:
    save_picture(folder / "pics" / "a.png")
    save_picture(folder / "pics" / "b.png", 1)
    lines = [f"{key} = {json.dumps(value)}" for key, value in source.items()]
    (folder / "own.toml").write_text(
        'summary = "mine"\n[source]\nkind = "images"\nlicence = "secret"\n'
        + "\n".join(lines)
        + '\n[preprocess]\nkind = "image"\ncrop = [16, 16]\nstretch = true\n'
    )
    return folder / "own.toml"


def test_a_recipe_brings_its_preprocessing_and_licence(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, path="pics", count=1)
    feed = load_feed(str(path), IMAGE, preprocess=SMALL)
    assert len(feed) == 1
    assert feed.licence == "secret"
    assert len(load_feed(path, IMAGE, count=2)) == 2
    assert load_feed(load_recipe(path), IMAGE).fingerprint == load_feed(path, IMAGE).fingerprint
    assert (
        load_feed(path, IMAGE).fingerprint != load_feed(tmp_path / "pics", IMAGE, preprocess=SMALL, count=1).fingerprint
    )


def test_recipes_that_lead_nowhere(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, path="elsewhere")
    with pytest.raises(CalibrationError, match="the data of calibration recipe 'own' does not exist"):
        load_feed(path, IMAGE)
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_feed("nothing.toml", IMAGE)


# --- splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("cat-2.jpg", "cat"),
        ("a/cat__017.png", "a/cat"),
        ("cat2.jpg", "cat2"),
        ("my-cat.jpg", "my-cat"),
        ("x-1-2.png", "x-1"),
        ("-3.png", "-3"),
        ("s.npy[4]", "s"),
        ("s-2.npy", "s"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_crops_of_one_photograph_stay_together(tmp_path: Path) -> None:
    for photo in range(8):
        for crop in range(3):
            save_picture(tmp_path / f"photo{photo}-{crop}.png", photo * 10 + crop)
    feed = load_feed(tmp_path, IMAGE, preprocess=SMALL)
    kept, held = split_feed(feed, fraction=0.25)
    assert (len(kept), len(held)) == (15, 9)  # eight are wanted, three come at a time
    groups = [{group_of(part.store.names[row]) for row in part.rows} for part in (kept, held)]
    assert not groups[0] & groups[1]
    assert sorted(kept.rows + held.rows) == list(feed.rows)
    again = split_feed(load_feed(tmp_path, IMAGE, preprocess=SMALL), fraction=0.25)
    assert [part.fingerprint for part in again] == [kept.fingerprint, held.fingerprint]


def test_neither_draw_nor_split_depends_on_where_the_data_lies(tmp_path: Path) -> None:
    feeds = []
    for folder in ("here", "there/deeper"):
        for photo in range(20):
            save_picture(tmp_path / folder / f"{photo}.png", photo)
        feeds.append(load_feed(tmp_path / folder, IMAGE, preprocess=SMALL, count=12))
    assert feeds[0].rows == feeds[1].rows != tuple(range(12))
    assert [part.rows for part in split_feed(feeds[0])] == [part.rows for part in split_feed(feeds[1])]


@pytest.mark.parametrize(("total", "held"), [(2, 1), (3, 1), (10, 5), (16, 8), (40, 8), (100, 20)])
def test_sizes_of_the_parts(total: int, held: int) -> None:
    kept, out = split_feed(load_feed(rows(total), ONE))
    assert (len(kept), len(out)) == (total - held, held)


@pytest.mark.parametrize(("total", "kept", "held"), [(64, 48, 16), (16, 8, 8), (67, 48, 16), (160, 128, 32)])
def test_the_parts_fill_batches_of_the_models_fixed_size(total: int, kept: int, held: int) -> None:
    eight = (TensorInfo("x", F32, (8, 4)),)
    parts = split_feed(load_feed(rows(total), eight))
    assert [len(part.rows) for part in parts] == [len(part.item_names) for part in parts] == [kept, held]
    assert all(sample["x"].shape == (8, 4) for part in parts for sample in part)


def test_groups_may_leave_a_remainder_of_a_fixed_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for photo in range(8):
        for crop in range(3):
            save_picture(tmp_path / f"photo{photo}-{crop}.png", photo * 10 + crop)
    four = (TensorInfo("image", F32, (4, 3, 16, 16)),)
    kept, held = split_feed(load_feed(tmp_path, four, preprocess=SMALL))
    assert (len(kept.rows), len(held.rows)) == (12, 8)  # of 15 and 9: the crops of a photograph stay together
    assert not {group_of(name) for name in kept.item_names} & {group_of(name) for name in held.item_names}
    assert "resembles" not in caplog.text


def test_one_group_is_split_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for frame in range(10):
        save_picture(tmp_path / f"video-{frame}.png", frame)
    with caplog.at_level(logging.WARNING):
        kept, held = split_feed(load_feed(tmp_path, IMAGE, preprocess=SMALL))
    assert (len(kept), len(held)) == (5, 5)
    assert "resembles the calibration part" in caplog.text


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(CalibrationError, match="1 sample cannot be split"):
        split_feed(load_feed(rows(1), ONE))
