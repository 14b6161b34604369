"""What a Hub keeps: repositories with commits, branches and pull requests, and who may see them."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset", "space"]
Files = dict[str, bytes]

# What the Hub keeps outside of git, by the `.gitattributes` that it gives to new repositories.
LARGE_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".jpg", ".gif", ".tar", ".npz", ".pt")


class HubError(Exception):
    """What the Hub answers instead of what was asked for."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass
class Commit:
    """The whole tree at one point of a repository's history."""

    files: Files
    title: str
    parent: str | None

    @cached_property
    def sha(self) -> str:
        digest = hashlib.sha1(f"{self.parent} {self.title}".encode())
        for path in sorted(self.files):
            digest.update(path.encode() + b"\0" + hashlib.sha1(self.files[path]).digest())
        return digest.hexdigest()


@dataclass
class Repository:
    name: str
    kind: Kind
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def __post_init__(self):
        self.commit("main", {}, "initial commit", parent=None)

    @property
    def files(self) -> Files:
        """What is on the main branch."""
        return self.at("main").files

    def commit(self, reference: str, files: Files, title: str, parent: str | None) -> Commit:
        commit = Commit(files, title, parent)
        self.commits[commit.sha] = commit
        self.references[reference] = commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        sha = self.references.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def file(self, revision: str, path: str) -> bytes:
        files = self.at(revision).files
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return files[path]

    def open_pull_request(self) -> str:
        self.pull_requests += 1
        reference = f"refs/pr/{self.pull_requests}"
        self.references[reference] = self.references["main"]
        return reference


@dataclass
class Hub:
    """
    Everything that a Hub keeps, and who may see it.

    Args:
        users (`dict[str, str]`): names of users by their tokens.
    """

    users: dict[str, str] = field(default_factory=lambda: {"hf_right": "org"})
    repositories: dict[tuple[Kind, str], Repository] = field(default_factory=dict)
    large_files: Files = field(default_factory=dict)

    def create(
        self,
        name: str,
        files: Files | Path | None = None,
        kind: Kind = "model",
        private: bool = False,
        gated: bool = False,
    ) -> Repository:
        """A repository with files, or with those of a folder."""
        repository = Repository(name, kind, private, gated)
        self.repositories[kind, name] = repository
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        if files:
            repository.commit("main", dict(files), "files", repository.references["main"])
        return repository

    def find(self, kind: Kind, name: str, token: str | None) -> Repository:
        """
        Raises:
            HubError: where there is none, or none that the owner of the token may know of. Who is not logged in is
                not told which of them it is.
        """
        user = self.user_of(token)
        repository = self.repositories.get((kind, name))
        is_hidden = repository is None or (repository.private and user != name.split("/")[0])
        if not is_hidden:
            return repository
        if user is None:
            # The real one sends no code here, and is told by its https address.
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def check_access(self, repository: Repository, token: str | None):
        """Who may read the files of a gated repository."""
        if repository.gated and self.user_of(token) != repository.name.split("/")[0]:
            message = f"Access to {repository.kind} {repository.name} is restricted. You must have access to it."
            raise HubError(403 if token else 401, message, "GatedRepo")

    def check_owner(self, name: str, token: str | None) -> str:
        """Who may write to repositories of this name."""
        user = self.user_of(token)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if name.split("/")[0] != user:
            raise HubError(403, f"You don't have the rights to create or change {name}")
        return user

    def user_of(self, token: str | None) -> str | None:
        if token is None:
            return None
        if token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[token]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def large_file_oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE_SUFFIXES)


def describe_file(path: str, content: bytes) -> dict:
    """An entry of a tree, as the Hub gives it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_large(path):
        entry["lfs"] = {"oid": large_file_oid(content), "size": len(content), "pointerSize": 130}
    return entry


def describe_tree(files: Files, folder: str, recursive: bool) -> list[dict]:
    """
    The entries of a folder.

    Raises:
        HubError: where there is no such folder.
    """
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    parents = {str(parent) for path in inside for parent in Path(path).parents} - {"."}
    folders = [path for path in sorted(parents) if path.startswith(prefix)]
    entries = [{"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())} for path in folders]
    entries += [describe_file(path, inside[path]) for path in sorted(inside)]
    if recursive:
        return entries
    return [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
