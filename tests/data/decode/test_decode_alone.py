"""What the decoders do with a damaged file among others, and with clips that are to be seen turned."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from media_samples import item, picture_HWC

from m5ds.data.decode import image as decode_image
from m5ds.data.decode import video as decode_video
from m5ds.data.decode.media import Crop, crop_box
from m5ds.data.decode.resize import cut_and_resize

ITEMS = [item(data) for data in (b"good", b"bad", b"x", b"fine")]


class Fails:
    """A runtime that refuses every call with `bad` in it, and says what it was asked for."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def images(self, files, alpha):
        self.asked.append((list(files), alpha))
        if b"bad" in files:
            raise RuntimeError("damaged")
        return [torch.full((1, 1, 4 if alpha else 3), 100, dtype=torch.uint8) for _ in files]

    def videos(self, files, places):
        self.asked.append((list(files), list(places)))
        if b"bad" in files:
            raise RuntimeError("damaged")
        return [[f"{data.decode()}{place}" for place in row] for data, row in zip(files, places, strict=True)]


def test_a_damaged_clip_is_left_out_of_its_group() -> None:
    runtime, kept = Fails(), {}
    places = [[0], [1], [2, 3], [4]]
    decode_video._by_dali(runtime, ITEMS, [0, 1, 2, 3], places, kept.__setitem__)
    assert [files for files, _ in runtime.asked] == [
        [one.data for one in ITEMS],
        [b"good"],
        [b"bad"],
        [b"x"],
        [b"fine"],
    ]
    assert [chosen for _, chosen in runtime.asked] == [places, [[0]], [[1]], [[2, 3]], [[4]]]
    assert kept == {0: ["good0"], 2: ["x2", "x3"], 3: ["fine4"]}
    decode_video._by_dali(runtime, ITEMS, [1], [[1]], kept.__setitem__)
    assert len(runtime.asked) == 6 and 1 not in kept, "asked for once alone"


@pytest.mark.parametrize("alpha", [False, True])
def test_a_damaged_picture_is_left_out_of_its_group(alpha: bool) -> None:
    runtime, kept = Fails(), {}
    decode_image._by_dali(
        runtime, ITEMS, [0, 1, 3], alpha, lambda indices, pictures: kept.update(zip(indices, pictures, strict=True))
    )
    assert runtime.asked == [
        ([b"good", b"bad", b"fine"], alpha),
        ([b"good"], alpha),
        ([b"bad"], alpha),
        ([b"fine"], alpha),
    ]
    # 100 at an opacity of 100 / 255 on white.
    assert {index: picture.flatten().tolist() for index, picture in kept.items()} == dict.fromkeys(
        (0, 3), [194 if alpha else 100] * 3
    )
    decode_image._by_dali(runtime, ITEMS, [1], alpha, lambda indices, pictures: None)
    assert len(runtime.asked) == 5


@pytest.mark.parametrize("crop", [None, Crop(0.1, 0.9, 0.8, 0.2)])
@pytest.mark.parametrize(("rotation", "turns"), [(None, 0), (0, 0), (90, 1), (-90, 3), (180, 2), (270, 3), (89.6, 1)])
def test_a_clip_is_cut_as_it_is_seen(monkeypatch: pytest.MonkeyPatch, rotation, turns: int, crop: Crop | None) -> None:
    picture = picture_HWC(24, 40)
    frame = SimpleNamespace(width=40, height=24, rotation=rotation, to_ndarray=lambda: picture)
    reformatter = SimpleNamespace(reformat=lambda given, *, format, threads: given if format == "rgb24" else None)
    monkeypatch.setattr(decode_video, "VideoReformatter", lambda: reformatter)
    monkeypatch.setattr(decode_video, "pictures_at", lambda clip, times, make: [make(frame)] * len(times))
    made = decode_video._by_pyav(Fails(), None, [0.1, 0.2], 8, crop)
    seen = np.rot90(picture, turns).copy()
    expected = cut_and_resize([torch.from_numpy(seen)], [crop_box(*seen.shape[:2], crop)], 8, torch.device("cpu"))[0]
    assert made.shape == (2, 8, 8, 3)
    assert (made.int() - expected.int()).abs().max() <= 1, "rounding goes by rows first"
