"""What a run's records say that it ran on."""

import jax

from train.run.hardware import hardware


def test_names_device_version_and_precision() -> None:
    assert jax.__version__ in hardware()
    assert "matrix products" not in hardware()
    with jax.default_matmul_precision("BF16_BF16_F32"):
        assert hardware().endswith("matrix products BF16_BF16_F32")


def test_one_core_is_one(monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert "1 core of " in hardware()
