"""Uploading by the real client, to a stand-in for the hub."""

import pytest

from align_jax import pretrained
from tests.pretrained import hub_server
from tests.pretrained.tiny_models import CONFIGS, initialised


@pytest.fixture
def hub(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def folder(tmp_path):
    model, params = initialised(CONFIGS["bert"], "classification", labels=3, pooling="mean")
    pretrained.save(tmp_path / "mine", model, params)
    return tmp_path / "mine"


@pytest.mark.parametrize("private", [True, False])
def test_every_file_arrives_as_it_is(hub, folder, private) -> None:
    url = pretrained.push_to_hub(folder, "ann/reviews", private=private, token="hf_secret")
    assert url == f"{hub.url}/ann/reviews"
    assert hub.repositories["ann/reviews"]["visibility"] == ("private" if private else "public")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"README.md", "align_jax.safetensors", "modeling_align_jax.py"} <= set(hub.files)
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.fault(
    "The hub refuses an upload, or cannot be reached", "One line with the reason, without the token"
)
def test_what_the_hub_refuses_is_said_in_one_line_without_the_token(hub, folder) -> None:
    hub.refuses = True
    with pytest.raises(pretrained.PretrainedError, match="Could not upload .* 403") as caught:
        pretrained.push_to_hub(folder, "ann/reviews", token="hf_secret")
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)
    hub.refuses = False
    with pytest.raises(pretrained.PretrainedError, match=r"to 'a/b/c': HFValidationError"):
        pretrained.push_to_hub(folder, "a/b/c", token="hf_secret")
    assert hub.files == {}


def test_a_folder_without_a_model_is_not_uploaded(hub, tmp_path) -> None:
    with pytest.raises(pretrained.PretrainedError, match=r"holds no config.json; expected a fold"):
        pretrained.push_to_hub(tmp_path, "ann/reviews")
    assert hub.repositories == {}
