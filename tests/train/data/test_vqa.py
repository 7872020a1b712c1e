"""easy-VQA and VQA v2: words, regions, noise, answers' scores, bad files."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from tests.train import tiny_vqa
from tests.train.tiny_vqa import EASY_TEST, EASY_TRAIN, FEATURES, QUESTIONS, REGIONS, question_id
from train.data import easy_vqa
from train.data.easy_vqa import EasyVQA, add_contrast
from train.data.visual_questions import encode_words, question_words
from train.data.vqa_v2 import VQAv2, read_regions
from train.data.word_vectors import read_glove
from train.registry import ConfigError
from train.tasks.vqa_answers import corpus_accuracy


@pytest.fixture
def easy(tmp_path):
    pytest.importorskip("PIL", reason="easy-VQA's pictures are read by Pillow")
    tiny_vqa.write_easy_vqa(tmp_path)

    def make(**settings) -> EasyVQA:
        sizes = {"batch_size": 2, "eval_batch_size": 3, "validation_fraction": 0.4}
        return EasyVQA(**{"folder": str(tmp_path), **sizes, **settings})

    return make


@pytest.fixture
def vqa(tmp_path):
    tiny_vqa.write_vqa(tmp_path, transposed=True)

    def make(**settings) -> VQAv2:
        sizes = {"batch_size": 3, "eval_batch_size": 2, "max_words": 5, "max_regions": 4}
        folder = {"folder": str(tmp_path), "region_features": FEATURES, "answers_above": 1}
        return VQAv2(**{**folder, **sizes, **settings})

    return make


@pytest.fixture(params=["easy", "vqa"])
def source(request):
    return request.getfixturevalue(request.param)


def whole(data, split) -> dict[str, np.ndarray]:
    """A split's examples in one batch, without padding."""
    batches = list(data.eval_batches(split))
    return {x: np.concatenate([one[x][one["mask"]] for one in batches]) for x in batches[0]}


# Both sources


def test_batches_have_the_shapes_that_the_model_is_built_for(source) -> None:
    data = source()
    model, rows = data.metadata.model, data.batch_size
    easy = type(data) is EasyVQA
    words, regions, features = (7, 64, 256) if easy else (5, 4, FEATURES)
    expected = {
        "question": ((rows, words), np.int32),
        "question_mask": ((rows, words), np.bool_),
        "image": ((rows, regions, features), np.float32),
        "image_mask": ((rows, regions), np.bool_),
        "score": ((rows, model["num_answers"]), np.float32),
        "label": ((rows,), np.int32),
        "id": ((rows,), np.int32),
        "mask": ((rows,), np.bool_),
    }
    for batch in (data.example_batch(), next(data.train_batches())):
        assert {x: (array.shape, array.dtype) for x, array in batch.items()} == expected
        assert batch["mask"].all()
        assert batch["question_mask"].any(axis=1).all()
    assert model["region_features"] == features
    assert model["region_positions"] == (regions if easy else 0)
    assert model["vocabulary_size"] == len(data.words)
    assert model["num_answers"] == len(data.answers)


def test_every_example_is_evaluated_once_and_in_order(source) -> None:
    data = source()
    for split, size in data.examples.items():
        batches = list(data.eval_batches(split))
        assert {len(batch["mask"]) for batch in batches} == {data.eval_batch_size}
        ids = whole(data, split)["id"]
        assert len(ids) == len(set(ids.tolist())) == size == len(data.references(split).people)
    assert set(data.examples) == {
        split + noise for split in data.clean_splits for noise in ("", "_noisy")
    }


def test_training_depends_on_seed_and_step_alone(source) -> None:
    some = source(seed=1).train_batches()
    batches = [next(some) for _ in range(9)]
    resumed = source(seed=1).train_batches(4)
    for batch in batches[4:]:
        again = next(resumed)
        for name, array in batch.items():
            np.testing.assert_array_equal(array, again[name])
    other = source(seed=2).train_batches()
    assert any((batch["id"] != next(other)["id"]).any() for batch in batches)


def test_a_question_reads_as_its_words(source) -> None:
    data = source()
    for split in data.clean_splits:
        batch = whole(data, split)
        for identity, ids, mask in zip(
            batch["id"], batch["question"], batch["question_mask"], strict=True
        ):
            words = question_words(data.question_text(identity))[: len(ids)]
            assert mask.tolist() == [True] * len(words) + [False] * (len(ids) - len(words))
            read = [data.words[x] for x in ids[mask]]
            assert read == [x if x in data.words else "[unknown]" for x in words]
            assert not ids[~mask].any()
    with pytest.raises(ValueError, match="no question with the id 999"):
        data.question_text(999)


def test_noise_changes_regions_alone_and_is_of_the_given_strength(source) -> None:
    data = source(noise_std=3.0)
    clean, noisy = (whole(data, split) for split in ("validation", "validation_noisy"))
    for name in set(clean) - {"image"}:
        np.testing.assert_array_equal(clean[name], noisy[name])
    noise = noisy["image"] - clean["image"]
    assert not noise[~clean["image_mask"]].any()
    valid = noise[clean["image_mask"]]
    assert (valid != 0).all()
    # Five standard deviations of the estimates.
    assert abs(valid.mean()) < 5 * 3.0 / np.sqrt(valid.size)
    assert abs(valid.std() / 3.0 - 1) < 5 / np.sqrt(2 * valid.size)
    flat = [x[m][0] for x, m in zip(noise, clean["image_mask"], strict=True)]
    assert len(np.unique(np.stack(flat), axis=0)) == len(flat)  # no two questions share theirs


def test_noise_depends_on_its_seed_and_the_question_alone(source) -> None:
    noisy = whole(source(), "validation_noisy")["image"]
    same = whole(source(seed=5, batch_size=1, eval_batch_size=1), "validation_noisy")["image"]
    np.testing.assert_array_equal(noisy, same)
    assert (noisy != whole(source(noise_seed=1), "validation_noisy")["image"]).any()


def test_questions_without_words_read_as_one_unknown_word(easy, tmp_path) -> None:
    for part in ("train", "test"):
        path = tmp_path / part / "questions.json"
        asked = json.loads(path.read_text())
        path.write_text(json.dumps([["?", *rest] for _, *rest in asked]))
    data = easy()
    assert data.example_batch()["question"].shape[1] == 1
    assert whole(data, "test")["question"].tolist() == [[1], [1]]


def test_what_cannot_be_is_refused(source) -> None:
    kind = type(source()).__name__
    with pytest.raises(ConfigError, match=f"{kind} has no split 'validatoin'; did you mean"):
        source().eval_batches("validatoin")
    with pytest.raises(ConfigError, match=f"{kind} has no split 'dev_noisy'"):
        source().references("dev_noisy")
    for settings, message in (
        ({"batch_size": 0}, "data.batch_size is 0; expected >= 1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size is 0"),
        ({"max_words": -1}, "data.max_words is -1; expected >= 0"),
        ({"noise_std": -1.0}, "data.noise_std is -1.0; expected a number >= 0"),
        ({"noise_std": float("nan")}, "data.noise_std is nan"),
        ({"noise_seed": -1}, "data.noise_seed is -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            source(**settings)


def test_words_are_cut_as_published() -> None:
    assert question_words("What's THE red/blue, T-shirt's (#1) \"size\"?!") == [
        "whats", "the", "red", "blue", "t", "shirts", "1", "size",
    ]  # fmt: skip
    words = ("[padding]", "[unknown]", "red", "cat")
    encoded = encode_words(["Red cat?", "a red cat", "?!"], words, 3)
    assert encoded.tolist() == [[2, 3, 0], [1, 2, 3], [1, 0, 0]]
    assert encode_words(["red red red cat"], words, 2).tolist() == [[2, 2]]


# easy-VQA


def test_regions_are_the_slices_of_the_picture(easy) -> None:
    data = easy(patch_size=16)
    train = whole(data, "train")
    pictures = {}
    for identity in train["id"]:
        pictures[EASY_TRAIN[identity][2]] = add_contrast(data.picture(identity)[None])[0]
    pixels = np.stack(list(pictures.values())).reshape(-1, 4)  # each picture counts once
    pixels = pixels.astype(np.float64)
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    for split in data.clean_splits:
        batch = whole(data, split)
        assert batch["image_mask"].all()
        for identity, regions in zip(batch["id"], batch["image"], strict=True):
            picture = (add_contrast(data.picture(identity)[None])[0] - mean) / std
            for row in range(4):
                for column in range(4):
                    place = slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)
                    np.testing.assert_allclose(
                        regions[4 * row + column], picture[place].reshape(-1), atol=1e-4
                    )


def test_contrast_is_the_distance_from_the_median_colour() -> None:
    picture = np.full((1, 4, 4, 3), (250, 240, 230), np.uint8)
    picture[0, 0, :2] = (250, 240, 0), (0, 0, 230)
    contrast = add_contrast(picture)
    np.testing.assert_array_equal(contrast[..., :3], picture)
    expected = [(230**2 / 3) ** 0.5, ((250**2 + 240**2) / 3) ** 0.5]
    np.testing.assert_allclose(contrast[0, 0, :2, 3], expected, atol=0.5)
    assert not contrast[0, 1:, :, 3].any()


def test_a_channel_that_never_changes_is_zero(easy, tmp_path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for path in (tmp_path / "train" / "images").iterdir():
        pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        pixels[..., 1] = 77
        Image.fromarray(pixels).save(path)
    image = whole(easy(), "train")["image"].reshape(-1, 4)
    assert not image[:, 1].any()
    np.testing.assert_allclose(image[:, [0, 2]].std(axis=0), 1, atol=0.05)


def test_the_picture_of_a_question_is_that_of_its_file(easy, tmp_path) -> None:
    from PIL import Image

    data = easy()
    for identity, (part, (*_, image)) in enumerate(
        [("train", x) for x in EASY_TRAIN] + [("test", x) for x in EASY_TEST]
    ):
        expected = np.asarray(Image.open(tmp_path / part / "images" / f"{image}.png"))
        np.testing.assert_array_equal(data.picture(identity), expected)
    with pytest.raises(ValueError, match="no question with the id 9"):
        data.picture(len(EASY_TRAIN) + len(EASY_TEST))


def test_no_picture_both_trains_and_validates(easy) -> None:
    for seed in range(4):
        data = easy(split_seed=seed)
        parts = [
            {EASY_TRAIN[x][2] for x in whole(data, split)["id"]}
            for split in ("train", "validation")
        ]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {0, 1, 2, 3, 4}
        assert len(parts[1]) == 2  # 0.4 of five
        assert data.examples["train"] + data.examples["validation"] == len(EASY_TRAIN)
    ids = [tuple(whole(easy(split_seed=x), "validation")["id"]) for x in range(4)]
    assert len(set(ids)) > 1
    assert tuple(whole(easy(split_seed=0, seed=9), "validation")["id"]) == ids[0]


def test_labels_are_the_answers_of_the_file(easy) -> None:
    data = easy()
    for split, asked in (("train", EASY_TRAIN), ("test", EASY_TEST)):
        batch, first = whole(data, split), 0 if split == "train" else len(EASY_TRAIN)
        answers = [data.answers[x] for x in batch["label"]]
        assert answers == [asked[x - first][1] for x in batch["id"]]
        np.testing.assert_array_equal(batch["score"], np.eye(4)[batch["label"]])
        assert corpus_accuracy(answers, data.references(split).people) == 1.0
    wrong = ["yes", answers[1]]
    assert corpus_accuracy(wrong, data.references("test").people) == 0.5


def test_words_come_from_training_and_the_longest_question_gives_the_length(easy) -> None:
    data = easy()
    assert data.example_batch()["question"].shape[1] == 7  # "is there a circle in the image"
    assert "mauve" not in data.words
    batch = whole(data, "test")
    assert [data.words[x] for x in batch["question"][0][:5]] == [
        "is", "there", "a", "[unknown]", "shape",
    ]  # fmt: skip
    assert whole(easy(max_words=2), "test")["question_mask"].sum(axis=1).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 7}, "data.patch_size is 7; expected a divisor of 64"),
        ({"patch_size": 0}, "data.patch_size is 0; expected >= 1"),
        ({"validation_fraction": 1.0}, "data.validation_fraction is 1.0"),
        ({"split_seed": -1}, "data.split_seed is -1"),
    ],
)
def test_easy_settings_out_of_range_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        EasyVQA(**settings)


def test_a_split_without_pictures_is_refused(easy) -> None:
    with pytest.raises(ConfigError, match="of 5 pictures, 0 would validate"):
        _ = easy(validation_fraction=0.01).examples
    with pytest.raises(ConfigError, match="of 5 pictures, 5 would validate"):
        _ = easy(validation_fraction=0.99).examples


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "train/questions.json is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({}, r"should be a list of \[question, answer, picture\]"),
        ([], "should be a list"),
        ([["is it?", "yes"]], "entry 0 should be"),
        ([["is it?", "yes", 0], {"question": "is it?"}], "entry 1 should be"),
        ([["is it?", "yes", True]], "entry 0 should be"),
        ([["is it?", "yes", -1]], "entry 0 should be"),
        ([["is it?", 1, 0]], "entry 0 should be"),
        ([["is it?", "perhaps", 0]], "entry 0 has the answer 'perhaps', which answers.txt"),
    ],
)
def test_bad_files_of_easy_vqa_are_explained(easy, tmp_path, content, message) -> None:
    path = tmp_path / "train" / "questions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        _ = easy().examples


def test_bad_lists_of_answers_are_explained(easy, tmp_path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\nyes\n")
    with pytest.raises(ConfigError, match="each of them once"):
        _ = easy().answers
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="answers.txt cannot be read"):
        _ = easy().answers
    path.unlink()
    with pytest.raises(ConfigError, match="answers.txt cannot be read"):
        _ = easy().answers


def test_bad_pictures_are_explained(easy, tmp_path) -> None:
    from PIL import Image

    path = tmp_path / "train" / "images" / "3.png"
    whole_file = path.read_bytes()
    for content in (whole_file[: len(whole_file) // 2], b"no picture", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="3.png cannot be read as a PNG"):
            next(easy().train_batches())
    Image.new("RGB", (32, 64)).save(path)
    with pytest.raises(ConfigError, match="3.png has 32 x 64 pixels; expected 64 x 64"):
        next(easy().train_batches())
    path.unlink()
    with pytest.raises(ConfigError, match="3.png cannot be read"):
        next(easy().train_batches())


def test_a_missing_package_is_named_with_its_command(monkeypatch) -> None:
    monkeypatch.setattr(easy_vqa.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps easy-vqa==1\.0"):
        _ = EasyVQA().examples


@pytest.mark.slow
def test_the_real_easy_vqa() -> None:
    if importlib.util.find_spec("easy_vqa") is None:
        pytest.skip("easy-VQA is not installed: pip install --no-deps easy-vqa==1.0")
    pytest.importorskip("PIL", reason="easy-VQA's pictures are read by Pillow")
    data = EasyVQA()
    sizes = data.examples
    assert sizes["train"] + sizes["validation"] == 38_575
    assert sizes["test"] == sizes["test_noisy"] == 9_673
    assert len(data.answers) == 13
    images = {split: {x.image for x in data._questions[split]} for split in data.clean_splits}
    assert [len(images[split]) for split in data.clean_splits] == [3_600, 400, 1_000]
    assert not images["train"] & images["validation"]
    assert data.metadata.model == {
        "vocabulary_size": 28, "num_answers": 13, "region_features": 256,
        "region_positions": 64,
    }  # fmt: skip
    assert data.example_batch()["question"].shape[1] == 9

    test = whole(data, "test")
    assert (test["label"] >= 0).all()
    assert (test["question"] != 1).all()  # training knows all words
    answers = [data.answers[x] for x in test["label"]]
    assert corpus_accuracy(answers, data.references("test").people) == 1.0
    validation = whole(data, "validation")["image"]
    assert abs(validation.mean()) < 0.05
    assert abs(validation.std() - 1) < 0.05


# VQA v2


def test_regions_are_padded_and_cut(vqa) -> None:
    for split in ("train", "validation"):
        batch = whole(vqa(), split)
        for row, (image, *_) in enumerate(QUESTIONS[split]):
            kept = min(REGIONS[image], 4)
            mask = batch["image_mask"][row]
            assert mask.tolist() == [True] * kept + [False] * (4 - kept)
            np.testing.assert_array_equal(
                batch["image"][row][:kept], tiny_vqa.features(image)[:kept]
            )
            assert not batch["image"][row][kept:].any()
    assert max(REGIONS.values()) > 4 > min(REGIONS.values())  # both are tested


def test_transposed_features_are_read_as_straight_ones(vqa, tmp_path) -> None:
    transposed = whole(vqa(), "train")["image"]
    (tmp_path / "straight").mkdir()
    tiny_vqa.write_vqa(tmp_path / "straight", transposed=False)
    straight = whole(vqa(features=str(tmp_path / "straight" / "features")), "train")["image"]
    np.testing.assert_array_equal(transposed, straight)


def test_the_second_axis_decides_where_both_fit(tmp_path) -> None:
    square = np.arange(9, dtype=np.float64).reshape(3, 3)
    np.savez(tmp_path / "x.npz", x=square)
    regions = read_regions(tmp_path / "x.npz", features=3, limit=2)
    assert regions.dtype == np.float32
    np.testing.assert_array_equal(regions, square[:2])


def test_ids_and_references_are_those_of_the_files(vqa) -> None:
    data = vqa()
    for split, asked in QUESTIONS.items():
        ids = [question_id(image, number) for number, (image, *_) in enumerate(asked)]
        assert whole(data, split)["id"].tolist() == ids
        people = [tuple(answers) for *_, answers in asked]
        assert data.references(split) == (data.answers, people)
        assert data.references(f"{split}_noisy") == data.references(split)
        assert [data.question_text(x) for x in ids] == [text for _, text, _ in asked]


def test_scores_are_soft_and_labels_the_best_answer(vqa) -> None:
    data = vqa()
    # Three times "2" ("two" twice), four times "no", three times "yes", once "ghost".
    assert data.answers == ("yes", "2", "no")
    batch = whole(data, "train")
    expected = [
        [1, 0, 2 / 3],  # seven yes, two no
        [0, 1, 0],  # nine 2, as "two" is
        [1, 0, 1],  # six no, four yes: right, both of them
        [0, 1, 0],
        [0, 0, 0],  # not in the vocabulary
        [0, 0, 1],
        [1, 0, 0],
    ]
    np.testing.assert_allclose(batch["score"], expected, rtol=1e-6)
    assert batch["label"].tolist() == [0, 1, 2, 1, -1, 2, 0]
    assert (batch["score"].max(axis=1)[[0, 1, 2]] == 1).all()


def test_answers_that_occur_more_than_eight_times_are_chosen_from(tmp_path) -> None:
    def asked(answers: list[str], first: int) -> list[tiny_vqa.Asked]:
        return [(first, "what?", [answer] * 10) for answer in answers]

    train = asked(["rare"] * 8 + ["the Cat."] * 5 + ["dog"] * 10, 1)
    validation = asked(["cat"] * 4, 2)
    tiny_vqa.write_vqa(tmp_path, {"train": train, "validation": validation}, transposed=True)
    data = VQAv2(folder=str(tmp_path), region_features=FEATURES)
    assert data.answers == ("cat", "dog")  # nine and ten times, in order of appearance
    assert data.metadata.model == {
        "vocabulary_size": 3, "num_answers": 2, "region_features": FEATURES,
        "region_positions": 0,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="answers_above is 10, but the most frequent.* 10 times"):
        _ = VQAv2(folder=str(tmp_path), answers_above=10).answers


def test_words_are_numbered_as_they_first_appear(vqa) -> None:
    assert vqa().words[:9] == (
        "[padding]", "[unknown]", "is", "it", "red", "how", "many", "dogs", "the",
    )  # fmt: skip
    assert "zebra" in vqa().words  # of validation


def test_the_folder_comes_from_the_environment(vqa, tmp_path, monkeypatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "vqa").symlink_to(tmp_path)
    monkeypatch.setenv("ALIGN_JAX_DATA", str(tmp_path / "root"))
    assert vqa(folder="").examples == vqa().examples


def test_missing_files_are_named_before_the_first_step(vqa, tmp_path) -> None:
    tiny_vqa.features_path(tmp_path, "validation", 6).unlink()
    next(vqa().train_batches())
    with pytest.raises(ConfigError, match="COCO_val2014_000000000006.jpg.npz is missing"):
        vqa().eval_batches("validation")
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(ConfigError, match=r"train2014_annotations.json cannot be read.*visualqa"):
        _ = vqa().examples


class _Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: pathlib.Path):
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.touch, (self.trace,)


@pytest.mark.fault(
    "Pickled image features",
    "Refused; nothing is run",
)
def test_pickled_features_are_refused(vqa, tmp_path) -> None:
    path, trace = tiny_vqa.features_path(tmp_path, "train", 1), tmp_path / "trace"
    np.savez(path, x=np.array([_Trap(trace)], object))
    with pytest.raises(ConfigError, match=r"1.jpg.npz, an image's features, is no .*allow_pickle"):
        list(vqa().eval_batches("train"))
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["cut", "damaged", "locked", "text", "empty", "npy", "name"])
def test_corrupt_features_are_explained(vqa, tmp_path, kind) -> None:
    path = tiny_vqa.features_path(tmp_path, "train", 2)
    np.savez_compressed(path, x=np.ones((20, FEATURES)))
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "damaged":
        middle = len(content) // 3
        path.write_bytes(content[:middle] + bytes(20) + content[middle + 20 :])
    elif kind == "locked":
        entry = content.index(b"PK\x01\x02") + 8  # its flags, of which the first means encrypted
        path.write_bytes(content[:entry] + b"\x01" + content[entry + 1 :])
    elif kind == "text":
        path.write_text("not found")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones((3, FEATURES)))
    else:
        np.savez(path, features=np.ones((3, FEATURES)))
    with pytest.raises(ConfigError, match=r"000002.jpg.npz, an image's features, is no .npz"):
        list(vqa().eval_batches("train"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, FEATURES), np.nan), "has numbers that are not finite"),
        (np.full((2, FEATURES), -np.inf), "has numbers that are not finite"),
        (np.ones((2, FEATURES + 1)), r"'x' of float64 \[2, 7\]; expected floats \[regions, 6\]"),
        (np.ones(FEATURES), r"'x' of float64 \[6\]"),
        (np.ones((1, 2, FEATURES)), r"'x' of float64 \[1, 2, 6\]"),
        (np.ones((0, FEATURES)), r"'x' of float64 \[0, 6\]"),
        (np.ones((2, FEATURES), np.int64), r"'x' of int64 \[2, 6\]"),
    ],
)
def test_numbers_that_are_no_features_are_explained(vqa, tmp_path, array, message) -> None:
    np.savez(tiny_vqa.features_path(tmp_path, "train", 4), x=array)
    with pytest.raises(
        ConfigError, match=f"000004.jpg.npz, an image's features, (has an )?{message}"
    ):
        list(vqa().eval_batches("train"))


def change(where: str, **values):
    """A change of the first question's entry in the file of questions or annotations."""
    return lambda content: content[where][0].update(values)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("questions", "{", "is not JSON"),
        ("questions", "[]", "should have 'questions', of type list"),
        ("questions", '{"questions": []}', "holds no questions"),
        ("questions", '{"questions": [3]}', r"questions\[0\] should have 'question_id'"),
        (
            "questions",
            change("questions", question=3),
            r"\[0\] should have 'question', of type str",
        ),
        ("questions", change("questions", image_id="1"), "should have 'image_id', of type int"),
        ("questions", change("questions", question_id=True), "should have 'question_id', of type"),
        ("questions", change("questions", image_id=9), "about image 9 has no annotation of its"),
        ("questions", change("questions", question_id=1001), "question 1001 .* has no annotation"),
        ("questions", change("questions", question_id=77), "question 77 .* has no annotation"),
        ("questions", change("questions", question_id=2**31), "question_id is 2147483648"),
        ("questions", lambda content: content["questions"].pop(), "annotation of question 2006"),
        ("annotations", "[" * 100_000, "is not JSON"),
        ("annotations", '{"annotations": {}}', "should have 'annotations', of type list"),
        ("annotations", change("annotations", question_id=-1), "question_id is -1; expected 0 to"),
        ("annotations", change("annotations", question_id=1001), "annotation of question 1001 be"),
        ("annotations", change("annotations", answers=[]), r"annotations\[0\] has 0 answers"),
        ("annotations", change("annotations", answers=["yes"] * 10), "should have 'answer'"),
        ("annotations", change("annotations", multiple_choice_answer=None), "'multiple_choice_a"),
        ("annotations", lambda content: content["annotations"].pop(), "2006 .* has no annotation"),
    ],
)
def test_bad_files_of_vqa_are_explained(vqa, tmp_path, name, spoil, message) -> None:
    beginning = "v2_OpenEnded_mscoco" if name == "questions" else "v2_mscoco"
    path = tmp_path / f"{beginning}_train2014_{name}.json"
    if isinstance(spoil, str):
        path.write_text(spoil)
    else:
        content = json.loads(path.read_text())
        spoil(content)
        path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as caught:
        _ = vqa().examples
    assert path.name in str(caught.value)


def test_word_vectors_are_those_of_the_file(vqa, tmp_path) -> None:
    assert vqa().word_vectors is None
    assert vqa().metadata.parameters == {}
    vector = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    lines = [("the", -vector), ("red", vector), (". . red", 3 * vector), ("red", 2 * vector)]
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"{x} {' '.join(map(str, y))}\n" for x, y in lines))
    data = vqa(glove=str(path))
    found = dict(zip(data.words, data.word_vectors, strict=True))
    np.testing.assert_array_equal(found.pop("red"), vector)  # the first of both
    np.testing.assert_array_equal(found.pop("the"), -vector)
    assert not np.stack(list(found.values())).any()
    assert data.word_vectors.dtype == np.float32
    assert data.metadata.parameters["words"]["embedding"] is data.word_vectors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red 1 2\nblue 1\n", "line 2 should be a word and 2 numbers"),
        ("red 1 x\n", "line 1 should be a word and 2 finite numbers"),
        ("blue 1 2\nred 1 nan\n", "line 2 should be a word and 2 finite numbers"),
        ("red 1 \n", "line 1 should be a word and 2 finite numbers"),
        ("blue 1 2\n", "has none of the 1 words, with 2 numbers each"),
        ("red 1 2 3\n", "has none of the 1 words"),
        (b"\xff\xff 1 2\n", "cannot be read"),
        (None, "cannot be read.*Set data.glove"),
    ],
)
def test_bad_word_vectors_are_explained(tmp_path, content, message) -> None:
    path = tmp_path / "glove.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read_glove(path, ["red"], width=2)
