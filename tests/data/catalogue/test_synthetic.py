"""The synthetic catalogue: real files, the paper's proportions, the same bytes for the same seed, shared factors."""

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from m5ds.data.catalogue import synthetic, synthetic_media
from m5ds.data.catalogue.synthetic import make_catalogue
from m5ds.data.catalogue.synthetic_media import COLOURS, Look

MODALITIES = {"image": "images", "video": "videos", "audio": "audios"}


def records(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def pattern(record):
    present = [name for name, field in MODALITIES.items() if record[field]]
    return tuple(present + ["text"] * bool(record["title"]) + ["table"] * bool(record["attributes"]))


def hashes(directory):
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    directory = tmp_path_factory.mktemp("catalogue")
    make_catalogue(directory, 60, seed=0)
    return directory


@pytest.fixture(scope="module")
def plans():
    return synthetic._plan(4000, 0, shuffle_pairs=False)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path, catalogue):
    make_catalogue(tmp_path / "again", 60, seed=0)
    assert hashes(tmp_path / "again") == hashes(catalogue)
    make_catalogue(tmp_path / "other", 12, seed=1)
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(catalogue).values())


def test_every_listed_file_exists_and_every_file_is_listed(catalogue):
    listed = {
        path for record in records(catalogue / "items.jsonl") for field in MODALITIES.values() for path in record[field]
    }
    assert listed == set(hashes(catalogue)) - {"items.jsonl"}


def test_media_are_of_all_promised_kinds_and_all_but_the_damaged_decode(catalogue):
    suffixes, damaged = Counter(), []
    for record in records(catalogue / "items.jsonl"):
        for path in record["images"]:
            try:
                Image.open(catalogue / path).load()
            except (UnidentifiedImageError, OSError):
                damaged.append(path)
            suffixes[Path(path).suffix] += 1
        for path in (*record["videos"], *record["audios"]):
            try:
                with av.open(str(catalogue / path)) as container:
                    stream = container.streams[0]
                    assert sum(1 for _ in container.decode(stream)) >= 8
                    codec = stream.codec_context.codec.canonical_name
            except av.FFmpegError:
                damaged.append(path)
                codec = None
            suffixes[Path(path).suffix, codec] += 1
    codecs = {(".mp4", "h264"), (".webm", "vp9"), (".wav", "pcm_s16le"), (".ogg", "opus")}
    assert set(suffixes) >= codecs | {".jpg", ".png"}
    assert sorted(Path(path).parent.name for path in damaged) == ["audios", "images", "videos"]


def test_incomplete_products_follow_the_papers_proportions(plans):
    counts = Counter(plan.present for plan in plans)
    total = len(plans)
    incomplete = 1 - counts[("image", "text", "table", "video", "audio")] / total
    unimodal = sum(count for present, count in counts.items() if len(present) == 1) / total
    no_image = sum(count for present, count in counts.items() if "image" not in present) / total
    video_without_audio = sum(
        count for present, count in counts.items() if ("video" in present) != ("audio" in present)
    )
    assert 0.17 < incomplete < 0.23
    assert 0.03 < unimodal < 0.07
    assert 0.007 < no_image < 0.02
    assert video_without_audio / total < 0.01
    assert sum(synthetic.PATTERNS.values()) == pytest.approx(1)


def test_catalogue_shows_the_planned_modalities(catalogue):
    plans = synthetic._plan(60, 0, shuffle_pairs=False)
    for plan, record in zip(plans, records(catalogue / "items.jsonl"), strict=True):
        assert set(pattern(record)) == set(plan.present)


def test_categories_have_a_long_tail(plans):
    counts = sorted(Counter((plan.label.shape, plan.label.texture) for plan in plans).values(), reverse=True)
    assert len(counts) == 24
    assert counts[0] > 5 * counts[-1]
    assert counts[-1] > 10


def test_groups_are_small_and_share_a_picture(catalogue, plans):
    sizes = Counter(plan.group for plan in plans)
    assert max(sizes.values()) <= 5
    assert sum(count for count in sizes.values() if count <= 2) > 0.95 * len(plans)
    by_group = {}
    for record in records(catalogue / "items.jsonl"):
        by_group.setdefault(record["share_group"], []).append(record)
    sharing = [group for group in by_group.values() if len(group) > 1 and all(record["images"] for record in group)]
    assert sharing
    assert all(set.intersection(*(set(record["images"]) for record in group)) for group in sharing)
    owners = Counter()
    for record in records(catalogue / "items.jsonl"):
        owners.update({(path, record["share_group"]) for path in record["images"]})
    assert max(Counter(path for path, _ in owners).values()) == 1


def test_titles_are_chinese_and_english(catalogue):
    titles = [record["title"] for record in records(catalogue / "items.jsonl") if record["title"]]
    chinese = sum(any("一" <= letter <= "鿿" for letter in title) for title in titles)
    assert 0.2 * len(titles) < chinese < 0.6 * len(titles)


def test_held_out_products_are_mostly_distinguishable(plans):
    looks = Counter(plan.label for plan in plans[:250])
    assert sum(count for count in looks.values() if count == 1) > 0.95 * 250


def test_modalities_share_their_look_but_for_a_few_noisy_titles(plans):
    differing = [name for plan in plans for name, look in plan.looks.items() if look != plan.label]
    assert set(differing) == {"text"}
    assert 0.01 < len(differing) / len(plans) < 0.03


def test_shuffled_pairs_keep_the_marginals_and_lose_the_correspondence(plans):
    shuffled = synthetic._plan(4000, 0, shuffle_pairs=True)
    for name in ("image", "table", "video", "audio"):
        assert Counter(plan.looks[name] for plan in shuffled) == Counter(plan.looks[name] for plan in plans)
    assert [plan.present for plan in shuffled] == [plan.present for plan in plans]
    for one, other in (("image", "text"), ("video", "audio"), ("text", "table")):
        equal = np.mean([plan.looks[one].colour == plan.looks[other].colour for plan in shuffled])
        assert abs(equal - 1 / len(COLOURS)) < 0.03


def test_a_picture_shows_its_colour_and_ground():
    for colour in range(len(COLOURS)):
        look = Look(colour, ground=1, shape=0, texture=0, size=3, direction=0)
        pixels_HWC = synthetic_media.picture_HWC(look, 80, 80, np.random.default_rng(0)).astype(int)
        nearest = np.abs(pixels_HWC[40, 44] - np.array(COLOURS)).sum(1).argmin()
        assert nearest == colour


def test_sounds_of_different_factors_differ_in_their_own_band():
    def strongest(look, low, high):
        sound = synthetic_media.sound_T(look, 1.1, np.random.default_rng(0))
        spectrum = np.abs(np.fft.rfft(sound))
        hertz = np.fft.rfftfreq(len(sound), 1 / synthetic_media.SAMPLE_RATE)
        inside = (hertz >= low) & (hertz < high)
        return hertz[inside][spectrum[inside].argmax()]

    for level in range(6):
        look = Look(colour=level, ground=level, shape=level, texture=2, size=1, direction=3)
        for tones, low, high in (
            (synthetic_media._COLOUR_HERTZ, 150, 700),
            (synthetic_media._GROUND_HERTZ, 800, 2400),
            (synthetic_media._SHAPE_HERTZ, 2700, 8000),
        ):
            assert np.abs(np.log(strongest(look, low, high) / np.array(tones))).argmin() == level


def test_fewer_than_one_product_is_refused(tmp_path):
    with pytest.raises(ValueError, match="quickstart_products"):
        make_catalogue(tmp_path, 0, seed=0)


@pytest.mark.parametrize(
    ("arguments", "expected"), [((24, 3, False), "8bf19cbbf401a44d"), ((24, 3, True), "1beaea97d448d4f3")]
)
def test_the_catalogue_is_the_one_of_the_published_figures(tmp_path, arguments, expected):
    """docs/results.md and the quickstart were measured on it: what is drawn, and in which order, must stay."""
    text = make_catalogue(tmp_path, *arguments).read_bytes()
    assert hashlib.sha256(text).hexdigest()[:16] == expected


def test_a_product_without_text_has_none_in_another_language_either():
    plan = next(plan for plan in synthetic._plan(200, 0, shuffle_pairs=False) if "text" not in plan.present)
    files = {"image": [], "video": [], "audio": []}
    translations = [synthetic._record(plan, files, np.random.default_rng(seed))["i18n"] for seed in range(60)]
    assert translations == [{}] * 60


class Noted:
    """Stands in for the media module: notes what is asked for, and draws nothing."""

    def __init__(self):
        self.pictures, self.clips, self.sounds, self.encoded = [], [], [], []

    def picture_HWC(self, look, height, width, rng):
        self.pictures.append((look, height, width, rng.bit_generator.state["state"]["state"]))
        return "picture"

    def clip_THWC(self, look, size, num_frames, rng):
        self.clips.append((look, size, num_frames))
        return "clip"

    def sound_T(self, look, seconds, rng):
        self.sounds.append((look, seconds))
        return "sound"

    def __getattr__(self, name):
        return lambda content, *given: self.encoded.append((name, content, *given)) or name.encode()


@pytest.fixture
def noted(monkeypatch):
    noted = Noted()
    monkeypatch.setattr(synthetic, "media", noted)
    return noted


def written(directory, plans, damaged=None, seed=9):
    """The records of the plans, whose media are only noted."""
    for folder in ("images", "videos", "audios"):
        (directory / "media" / folder).mkdir(parents=True, exist_ok=True)
    first = {plan.group: plan for plan in reversed(plans)}
    damaged = damaged or {"image": set(), "video": set(), "audio": set()}
    return [synthetic._write_product(directory, plan, first[plan.group], damaged, seed) for plan in plans]


def test_media_are_of_the_documented_sizes(tmp_path, noted, plans):
    items = written(tmp_path, plans[:600])
    own = [picture for picture in noted.pictures if picture[1:3] != (80, 80)]
    sides = {side for _, height, width, _ in own for side in (height, width)}
    assert (min(sides), max(sides)) == (64, 96) and len(sides) == 33
    assert {size for _, size, _ in noted.clips} == {48} and {count for *_, count in noted.clips} == {8, 9, 10}
    seconds = [seconds for _, seconds in noted.sounds]
    assert 1.05 <= min(seconds) < 1.06 and 1.29 < max(seconds) < 1.3
    kinds = Counter(kind for kind, *_ in noted.encoded)
    assert set(kinds) == {"encode_jpeg", "encode_png", "encode_clip", "encode_wav", "encode_ogg"}
    clips = Counter(codec for kind, _, *codec in noted.encoded if kind == "encode_clip" for codec in codec)
    assert clips["vp9"] / clips.total() == pytest.approx(0.35, abs=0.06)
    assert kinds["encode_ogg"] / len(noted.sounds) == pytest.approx(0.25, abs=0.06)
    with_text = [item for item in items if item["title"]]
    assert sum(bool(item["i18n"]) for item in with_text) / len(with_text) == pytest.approx(0.1, abs=0.035)
    single = [item for plan, item in zip(plans, items, strict=False) if "image" in plan.present and not plan.variant]
    assert sum(len(item["images"]) == 2 for item in single) / len(single) == pytest.approx(0.1, abs=0.035)
    assert sum(item["images"][0].endswith("png") for item in single) / len(single) == pytest.approx(0.25, abs=0.06)


def test_variants_share_the_picture_of_their_groups_first_product(tmp_path, noted, plans):
    group = next(plan.group for plan in plans if plan.variant)
    members = [plan for plan in plans if plan.group == group]
    both = [replace(plan, present=("image",)) for plan in members]
    items = written(tmp_path, both, seed=9)
    shared = [picture for picture in noted.pictures if picture[1:3] == (80, 80)]
    state = np.random.default_rng([9, 3, group]).bit_generator.state["state"]["state"]
    assert shared == [(members[0].looks["image"], 80, 80, state)] * len(members)
    assert all(item["images"][-1] == f"media/images/group-{group:06d}.jpg" for item in items)
    assert [item["images"][0].split("/")[-1][:8] for item in items] == [f"{plan.index:06d}-0" for plan in both]


def test_one_product_in_ten_is_a_variant_of_the_one_before_in_the_next_size(plans):
    variants = [(one, other) for one, other in itertools.pairwise(plans) if one.group == other.group]
    assert len(variants) / len(plans) == pytest.approx(0.10, abs=0.015)
    for one, other in variants:
        assert other.label == replace(one.label, size=(one.label.size + 1) % 4) and one.variant and other.variant
    sizes = Counter(plan.group for plan in plans)
    assert all(plan.variant == (sizes[plan.group] > 1) for plan in plans)
    assert sum(plan.language == "zh" for plan in plans) / len(plans) == pytest.approx(0.40, abs=0.03)


@pytest.mark.parametrize(("num_products", "expected"), [(0, 0), (9, 0), (10, 1), (124, 1), (376, 2), (1000, 4)])
def test_of_a_thousand_files_four_are_damaged_and_of_ten_one(num_products, expected):
    plans = [SimpleNamespace(index=2 * number, present=("image", "audio")) for number in range(num_products)]
    damaged = synthetic._choose_damaged(plans, np.random.default_rng(0))
    assert {name: len(products) for name, products in damaged.items()} == {
        "image": expected,
        "video": 0,
        "audio": expected,
    }
    assert damaged["image"] <= {plan.index for plan in plans}


def test_no_file_is_chosen_twice_to_be_damaged(monkeypatch):
    monkeypatch.setattr(synthetic, "DAMAGED_SHARE", 1.0)
    plans = [SimpleNamespace(index=number, present=("video",)) for number in range(20)]
    assert synthetic._choose_damaged(plans, np.random.default_rng(0))["video"] == set(range(20))


def test_a_damaged_jpeg_is_cut_and_anything_else_is_noise():
    jpeg = b"\xff\xd8" + bytes(range(250)) * 2
    assert synthetic._damage(jpeg, np.random.default_rng(0)) == jpeg[:200]
    noise = synthetic._damage(b"RIFF" * 100, np.random.default_rng(0))
    assert noise == np.random.default_rng(0).bytes(400)


def test_only_a_products_first_file_is_damaged_and_a_picture_as_jpeg(tmp_path, noted, plans):
    several = [replace(plan, present=("image", "audio"), variant=False) for plan in plans[:300]]
    everything = {plan.index for plan in several}
    written(tmp_path, several, {"image": everything, "video": set(), "audio": everything})
    files = {path.name: path.read_bytes() for path in (tmp_path / "media").rglob("*.*")}
    for plan in several:
        name = f"{plan.index:06d}-0.jpg"
        assert name in files and files[name] != b"encode_jpeg" and len(files[name]) == 400
    seconds = {name: data for name, data in files.items() if name[6:8] == "-1"}
    assert set(seconds.values()) == {b"encode_jpeg", b"encode_png"}
    assert all(len(data) == 400 for name, data in files.items() if name.endswith(("wav", "ogg")))
