"""The digits against scikit-learn's own arrays."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from train.data.digits import CHANGED, SPLITS, Digits


def rows(source: Digits, split: str) -> tuple[np.ndarray, np.ndarray]:
    batches = list(source.eval_batches(split))
    return tuple(
        np.concatenate([batch[name][batch["mask"]] for batch in batches])
        for name in ("image", "label")
    )


def test_the_splits_are_the_whole_data_set_without_overlap() -> None:
    images = np.concatenate([rows(Digits(), split)[0] for split in SPLITS])
    original = load_digits().images / 16.0
    assert images.shape == (1797, 8, 8, 1)
    flat = lambda x: np.sort(x.reshape(1797, 64).astype(np.float32).view("V256"), axis=0)  # noqa: E731
    assert (flat(images) == flat(original)).all()


def test_the_classes_are_equally_frequent_in_every_split() -> None:
    shares = [np.bincount(rows(Digits(), split)[1], minlength=10) for split in SPLITS]
    shares = [counts / counts.sum() for counts in shares]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.01)
    np.testing.assert_allclose(shares[0], shares[2], atol=0.01)


def test_the_split_does_not_depend_on_the_runs_seed() -> None:
    np.testing.assert_array_equal(rows(Digits(seed=0), "test")[1], rows(Digits(seed=1), "test")[1])


def test_a_subset_has_as_much_of_each_class_and_others_with_each_seed() -> None:
    """100 of 718 training images; the splits that measure stay as they are."""
    whole = Digits(test_fraction=0.5)
    pool = {image.tobytes() for image in rows(whole, "train")[0]}
    few = [Digits(seed=seed, test_fraction=0.5, train_examples=100) for seed in (0, 1)]
    images = [{image.tobytes() for image in rows(source, "train")[0]} for source in few]
    assert (whole.examples["train"], few[0].examples["train"]) == (718, 100)
    assert [len(x) for x in images] == [100, 100]
    assert all(x <= pool for x in images)
    assert len(images[0] & images[1]) < 40  # 14 are expected of two independent draws
    for source in few:
        assert set(np.bincount(rows(source, "train")[1])) <= {9, 10, 11}
        np.testing.assert_array_equal(rows(source, "test")[0], rows(whole, "test")[0])
        assert {x.tobytes() for x in next(source.train_batches())["image"]} <= pool
    again = Digits(seed=1, test_fraction=0.5, train_examples=100)
    np.testing.assert_array_equal(rows(again, "train")[0], rows(few[1], "train")[0])


def test_changed_images_are_those_of_the_test_noisy_or_turned() -> None:
    source = Digits()
    clean, labels = rows(source, "test")
    for split in CHANGED:
        images, again = rows(source, split)
        np.testing.assert_array_equal(again, labels)
        np.testing.assert_array_equal(images, rows(Digits(seed=5), split)[0])
        assert images.dtype == np.float32
        assert images.min() >= 0.0
        assert images.max() <= 1.0
        still, _ = rows(Digits(noise=0.0, rotation=0.0), split)
        np.testing.assert_allclose(still, clean, atol=1e-6)
    grey = np.abs(clean - 0.5) < 0.01  # noise of 0.1 keeps these off the edges, where it is clipped
    noise = (rows(Digits(noise=0.1), "test_noisy")[0] - clean)[grey]
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    assert abs(noise.mean()) < 0.01


def test_images_turn_about_their_middle_by_their_own_angle_up_to_the_limit() -> None:
    images = np.zeros((200, 8, 8, 1), np.float32)
    images[:, :, 3:5] = 1.0  # an upright bar: its angle is that of its longer axis
    turned = Digits(rotation=20.0)._rotated(images)[..., 0]
    y, x = np.mgrid[:8, :8] - 3.5
    moments = [(turned * weight).sum(axis=(1, 2)) for weight in (x * x, y * y, x * y)]
    angles = np.degrees(0.5 * np.arctan2(2 * moments[2], moments[1] - moments[0]))
    assert np.abs(angles).max() == pytest.approx(20.0, abs=3.0)
    assert angles.std() == pytest.approx(20.0 / np.sqrt(3.0), rel=0.15)
    assert abs(angles.mean()) < 3.0
    centre = (turned * x).sum(axis=(1, 2)) / turned.sum(axis=(1, 2))
    np.testing.assert_allclose(centre, 0.0, atol=1e-5)


def test_metadata_counts_the_splits() -> None:
    source = Digits(validation_fraction=0.2, test_fraction=0.3)
    counted = {split: len(rows(source, split)[1]) for split in (*SPLITS, *CHANGED)}
    assert counted == source.examples
    assert counted["test"] == pytest.approx(0.3 * 1797, abs=1)
    assert counted["validation"] == pytest.approx(0.2 * 1797, abs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5000}, "batch_size is 5000"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
        ({"train_examples": 9}, "train_examples is 9; expected 0, for all 1077 .* or 10"),
        ({"train_examples": -1}, "train_examples is -1"),
        ({"train_examples": 1068}, "train_examples is 1068; .* to 1067"),
        ({"train_examples": 50}, "batch_size is 64; expected 1 to 50"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"rotation": float("nan")}, "rotation is nan"),
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "leave nothing to train on"),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**settings)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        next(Digits().eval_batches("dev"))


def test_an_image_is_shown_as_it_is() -> None:
    batch = next(Digits().eval_batches("test"))
    shown = Digits().illustration(batch)
    assert shown.image.shape == (8, 8, 3)
    np.testing.assert_array_equal(
        shown.image[..., 0], (255 * batch["image"][0, ..., 0]).astype(int)
    )
    assert shown.answers[batch["label"][0]] in shown.title
