"""Model folders on their way from the Hub and to it: what their files are called, fetching and pushing them."""

import fnmatch
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

# What `from_pretrained` may be told about where a repository comes from.
FETCHING = ("revision", "token", "cache_dir", "local_files_only", "force_download")
# What pushing may be told.
PUSHING = ("repo_id", "private", "token", "commit_message", "commit_description", "revision", "create_pr", "tags")
# Folders of the components of a pipeline that is led by representations.
REPRESENTATION_PARTS = ("representation_model", "representation_scheduler", "representation_encoder")
# What belongs to a model, of all that a training run leaves in its folder.
PUBLISHED = (
    "config.json",
    "model*.safetensors",
    "model*.safetensors.index*.json",
    "diffusion_pytorch_model*.safetensors",
    "preprocessor_config.json",
    "model_index.json",
    "scheduler/*",
    "model/*.py",
    *(f"{part}/*" for part in REPRESENTATION_PARTS),
    "*.py",
    "requirements.txt",
    "README.md",
    "LICENSE",
    "pictures/*",
    ".eval_results/*",
)


# What loading a folder may raise that is damaged, or holds something else.
UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, EOFError),
    *(StrictDataclassError, SafetensorError, pickle.UnpicklingError),
)
_BESIDE_WEIGHTS = ("*_config.json", "config.json", "model_index.json", "scheduler/*", "diffusion_pytorch_model*")


def weight_patterns(variant: str | None = None) -> list[str]:
    """Patterns of the files that hold the weights of one variant, whole or in shards."""
    middle = f".{variant}" if variant else ""
    shard = "-" + "[0-9]" * 5 + "-of-" + "[0-9]" * 5
    files = [f"model{middle}{part}.{suffix}" for part in ("", shard) for suffix in ("safetensors", "bin")]
    indices = [f"model.safetensors.index{middle}.json"]
    return files + indices


def remove_other_weights(folder: str | os.PathLike, variant: str | None = None):
    """Removes weights that an earlier save left in a folder and that would be loaded instead of the last ones."""
    folder = Path(folder)
    middle = f".{variant}" if variant else ""
    index, whole = folder / f"model.safetensors.index{middle}.json", folder / f"model{middle}.safetensors"
    if index.exists() and whole.exists():
        # The newer of the two is what was saved last.
        stale = index if whole.stat().st_mtime_ns >= index.stat().st_mtime_ns else whole
        stale.unlink()
    if whole.exists():
        for shard in folder.glob(weight_patterns(variant)[2]):
            shard.unlink()


def fetch_folder(name: str, patterns: Sequence[str], **fetching: Any) -> str:
    """
    A repository's files that match `patterns`, in the cache.

    Args:
        name (`str`): `org/name` on the Hub.
        fetching: what `snapshot_download` takes: see [`FETCHING`].

    Raises:
        OSError: in one line, where there is no such repository or revision, or it cannot be reached.
    """
    with explained(name, fetching.get("revision"), fetching.get("token")):
        return snapshot_download(name, allow_patterns=list(patterns), **fetching)


def model_folder(
    name_or_path: str | os.PathLike, variant: str | None = None, parts: Sequence[str] = (), **fetching: Any
) -> str:
    """
    The folder itself or, for a name on the Hub, its copy in the cache, with all that a model or a tokenizer is loaded
    from.

    Args:
        name_or_path (`str` or `os.PathLike`): the folder or name.
        variant (`str`, *optional*): which weights.
        parts (`Sequence[str]`): folders of more components of a pipeline.
        fetching: what `snapshot_download` takes: see [`FETCHING`].

    Raises:
        OSError: in one line, where there is no such folder or repository, or it cannot be reached.
    """
    if os.path.isdir(name_or_path):
        return os.fspath(name_or_path)
    patterns = [*_BESIDE_WEIGHTS, *weight_patterns(variant), *(f"{part}/*" for part in parts)]
    return fetch_folder(os.fspath(name_or_path), patterns, **fetching)


@contextmanager
def refused_pickles(name: str | os.PathLike | None) -> Iterator[None]:
    """
    While weights are loaded, for those that are not safetensors.

    Raises:
        ValueError: where they are a pickle that PyTorch will not read, which advises to read it nevertheless.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The weights in {name} are a pickle that is damaged or holds more than tensors. Nothing in it was run. "
            "Get them as safetensors."
        ) from error


@contextmanager
def explained(
    name: str, revision: str | None = None, token: str | bool | None = None, kind: str = "model"
) -> Iterator[None]:
    """
    Turns what can go wrong with a repository into one line that says what to do.

    Args:
        name, revision, token: what was asked for.
        kind (`str`): `"model"`, `"dataset"` or `"space"`.

    Raises:
        OSError: instead of any of the Hub's errors.
    """
    try:
        yield
    except HFValidationError as error:
        raise OSError(f"There is no folder {name}, and it cannot be the name of a repository on the Hub.") from error
    except GatedRepoError as error:
        raise OSError(_gated(name, kind, error.response.status_code)) from error
    except RepositoryNotFoundError as error:
        raise OSError(_not_found(name, kind, token)) from error
    except RevisionNotFoundError as error:
        raise OSError(f"{name} on the Hub has no revision {revision!r}: name a branch, a tag or a commit.") from error
    except IncompleteSnapshotError as error:
        raise OSError(
            f"Only a part of {name} is in the cache, and the Hub cannot be reached for the rest{_why_offline()}."
        ) from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"{name} is neither a folder here nor in the cache, and the Hub cannot be reached{_why_offline()}."
        ) from error
    except HfHubHTTPError as error:
        raise OSError(_refused(name, kind, token, error)) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise OSError(f"The Hub cannot be reached for {name}{_why_offline()}: {error}") from error


def _gated(name: str, kind: str, status: int) -> str:
    log_in = " and log in (`hf auth login`, or `HF_TOKEN`)" if status == 401 else ""
    prefix = "" if kind == "model" else f"{kind}s/"
    return f"{name} is gated: ask for access at {constants.ENDPOINT}/{prefix}{name}{log_in}."


def _not_found(name: str, kind: str, token: str | bool | None) -> str:
    access = "your token may not read it" if _is_logged_in(token) else "log in (`hf auth login`) or pass `token`"
    return f"{name} is neither a folder here nor a {kind} on the Hub; if it is private, {access}."


def _is_logged_in(token: str | bool | None) -> bool:
    return token is not False and (isinstance(token, str) or get_token() is not None)


def _why_offline() -> str:
    return " (`HF_HUB_OFFLINE` is set)" if constants.is_offline_mode() else ""


def _refused(name: str, kind: str, token: str | bool | None, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401 and not _is_logged_in(token):
        return _not_found(name, kind, token)
    if status == 401:
        return f"The Hub does not know the token that was sent for {name}: log in again (`hf auth login`)."
    if status == 403:
        return f"The token may not change {name}: it needs the right to write, and the name must be yours."
    return f"The Hub failed to serve {name}: {error}"


def check_repository(repo_id: str, token: str | bool | None = None, private: bool | None = None) -> str:
    """
    Makes sure that a repository can be written to, creating it if need be, so that a wrong token or name shows before
    any work is done.

    Returns:
        `str`: its full name.

    Raises:
        OSError: in one line, where the token is wrong or the name is another's.
    """
    if not _is_logged_in(token):
        raise OSError(
            f"Pushing to {repo_id} needs a token that may write: log in (`hf auth login`), or set `HF_TOKEN`."
        )
    with explained(repo_id, token=token):
        return _find_or_create(HfApi(token=token), repo_id, private)


def _find_or_create(api: HfApi, repo_id: str, private: bool | None) -> str:
    try:
        return api.create_repo(repo_id, private=private).repo_id
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            return api.create_repo(repo_id, exist_ok=True).repo_id
        if error.response.status_code not in (401, 402, 403) or not _may_write(api, repo_id):
            raise
        return repo_id


def _may_write(api: HfApi, repo_id: str) -> bool:
    """Whether it is another's repository that lets the token write."""
    try:
        api.auth_check(repo_id, write=True)
    except HfHubHTTPError:
        return False
    return True


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    variant: str | None = None,
    tags: Sequence[str] | None = None,
    also: Sequence[str] = (),
) -> str:
    """
    Uploads what belongs to the model in a folder, in one commit, and removes the weights that it replaces. What was
    uploaded by an interrupted push is not sent again.

    Args:
        repo_id (`str`): the repository, created if need be.
        revision (`str`, *optional*): a branch, created if need be.
        create_pr (`bool`): open a pull request rather than change the branch.
        variant (`str`, *optional*): which weights are replaced.
        tags (`Sequence[str]`, *optional*): tags for the card.
        also (`Sequence[str]`): patterns of more files to upload.

    Returns:
        `str`: the address of the commit, or of the pull request.

    Raises:
        OSError: in one line, where the token is wrong, the name is another's or the upload breaks off.
    """
    repo_id = check_repository(repo_id, token, private)
    api = HfApi(token=token)
    with explained(repo_id, revision, token), _explained_upload(repo_id):
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        _complete_card(folder, repo_id, api, list(tags or []))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            allow_patterns=[*PUBLISHED, *also],
            delete_patterns=weight_patterns(variant) if holds_weights(folder, variant) else None,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


@contextmanager
def _explained_upload(repo_id: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as which the Hub's library gives up on a large file
        reason = f"{error} {error.__cause__ or ''}".replace("\n", " ").strip()
        raise OSError(
            f"The upload to {repo_id} broke off, and nothing there has changed: {reason}. Push again: what has "
            "arrived is not sent again."
        ) from error


def holds_weights(folder: str | os.PathLike, variant: str | None = None) -> bool:
    """Whether weights of that variant lie in a folder's root."""
    names = os.listdir(folder)
    return any(fnmatch.filter(names, pattern) for pattern in weight_patterns(variant))


def _complete_card(folder: str | os.PathLike, repo_id: str, api: HfApi, tags: list[str]):
    """Adds tags to the card, and a card that at least says how to load the model where there is none yet."""
    path = Path(folder, "README.md")
    if path.exists():
        card = ModelCard.load(path)
    elif api.file_exists(repo_id, "README.md"):
        if not tags:
            return
        card = ModelCard.load(api.hf_hub_download(repo_id, "README.md"))
    else:
        card = ModelCard(_short_card(repo_id, is_pipeline=Path(folder, "model_index.json").exists()))
    missing = [tag for tag in tags if tag not in (card.data.tags or [])]
    if missing or not path.exists():
        card.data.tags = [*(card.data.tags or []), *missing]
        card.save(path)


def _short_card(repo_id: str, is_pipeline: bool) -> str:
    library, door = ("diffusers", "DiffusionPipeline") if is_pipeline else ("transformers", "AutoModel")
    task = "unconditional-image-generation" if is_pipeline else "image-feature-extraction"
    data = ModelCardData(library_name=library, pipeline_tag=task, tags=["mage"])
    loading = f'from {library} import {door}\n\n{door}.from_pretrained("{repo_id}", trust_remote_code=True)'
    text = f"# {repo_id.split('/')[-1]}\n\nA [MAGE](https://arxiv.org/abs/2211.09117).\n\n```python\n{loading}\n```"
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


__all__ = [
    "UNREADABLE",
    "check_repository",
    "explained",
    "fetch_folder",
    "holds_weights",
    "model_folder",
    "push_folder",
    "refused_pickles",
    "remove_other_weights",
    "weight_patterns",
]
