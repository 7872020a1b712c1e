"""From a folder that `save` wrote to the hub."""

from __future__ import annotations

import os
from pathlib import Path

from align_jax.pretrained.errors import PretrainedError, require


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str = "Upload a model of align_jax",
) -> str:
    """Uploads a model's folder to the hub, with its card.

    Args:
        folder: as `save` wrote it.
        repo_id: "OWNER/NAME", or "NAME" of your own; made if it is not there.
        private: whether only its owner sees a repository that is made here.
        token: of the hub; None takes the one of `hf auth login`, or of $HF_TOKEN.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        PretrainedError: the folder holds no model, or the hub refuses or cannot be reached.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> push_to_hub("no-such-folder", "ann/reviews")
        Traceback (most recent call last):
        align_jax.pretrained.errors.PretrainedError: 'no-such-folder' holds no config.json; ...
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise PretrainedError(
            f"{os.fspath(folder)!r} holds no config.json; expected a folder that `save` wrote."
        )
    hub = require("huggingface_hub", "Uploading a model")
    try:
        api = hub.HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=path, commit_message=message)
    # As with downloads, each kind of failure is a class of its own, some of them httpx's.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise PretrainedError(
            f"Could not upload {os.fspath(folder)!r} to {repo_id!r}: {reason} Check the name, that "
            "you are logged in (hf auth login, or $HF_TOKEN) with a token that may write, and the "
            "network."
        ) from error
    return str(made)
