"""HubMixin: save an object in a folder, push it to the Hub, and load it from either by the same name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

# The Hub's own rule: letters, digits, - _ . inside each of at most two parts, no -- nor .., no .git at the end.
REPO_ID = re.compile(r"(?!.*(--|\.\.))(\w([\w.-]*\w)?/)?\w([\w.-]{0,94}\w)?(?<!\.git)")


class HubError(OSError):
    """The Hub could not be reached, or refused a request. What it holds is not known then: it is not absent.

    Attributes:
        status: The HTTP status that the Hub answered with; None if there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(message)
        self.status = status


class Where(TypedDict, total=False):
    """Options of every ``from_pretrained``: where in a repository to load from, and how."""

    revision: str | None
    subfolder: str
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


class Push(TypedDict, total=False):
    """Options of every ``push_to_hub``."""

    revision: str | None
    subfolder: str
    tag: str | None
    private: bool | None
    create_pr: bool
    commit_message: str | None
    token: str | bool | None


class HubMixin:
    """A mixin with ``push_to_hub``, which also finds the folder that ``from_pretrained`` loads from.

    A subclass names its files and defines ``save_pretrained(folder)``.
    """

    FILES: ClassVar[tuple[str, ...]]
    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = ()
    MODEL_BESIDE: ClassVar[bool] = False  # whether it may write model.safetensors, which must replace no other model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files into ``folder``."""
        raise NotImplementedError

    def push_to_hub(self, repo_id: str, **how: Unpack[Push]) -> str:
        """Push to a repository of the Hub in one commit; the repository is created if it does not exist.

        If the repository has a README.md, only its metadata and the part that the library wrote are replaced. Paths of
        this machine are not pushed.

        Args:
            repo_id: The repository, such as ``"me/bert-sst2-imp-90"``.
            how: Options as in huggingface_hub: ``revision`` (a branch, created if it does not exist), ``subfolder``,
                ``tag`` (moved if it exists), ``private``, ``create_pr``, ``commit_message``, ``token``.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            HubError: The Hub cannot be reached, or refuses: somebody else has pushed in the meantime (status 412), for
                example. Nothing was pushed, unless the message says otherwise.
            ValueError: The repository is not named by an id.
        """
        if not REPO_ID.fullmatch(str(repo_id)):
            raise ValueError(
                f"repo_id must be the id of a repository on the Hub, such as me/bert-sst2-imp-90; received "
                f"{str(repo_id)!r}. Use save_pretrained to write into a folder."
            )
        return hub_module().push(self, str(repo_id), **how)

    def without_local_paths(self) -> Self:
        """Return the object without paths of this machine, which is what is pushed."""
        return self

    @classmethod
    def _folder(cls, source: str | Path, **where: Unpack[Where]) -> Path:
        return find_folder(source, cls.FILES, optional=cls.OPTIONAL_FILES, **where)


def find_folder(
    source: str | Path,
    files: Sequence[str],
    *,
    optional: Sequence[str] = (),
    further: Callable[[Path], Sequence[str]] | None = None,
    **where: Unpack[Where],
) -> Path:
    """Find the folder to read from: ``source`` itself, or the downloaded files of a repository, all of one commit.

    Args:
        source: A folder, or the id of a repository on the Hub. A folder that exists wins.
        files: Names of the files that must exist.
        optional: Names of files that may be missing.
        further: Given the folder with those files, names the others that they speak of. They are downloaded too.
        where: Options of the Hub; see :class:`Where`.

    Raises:
        FileNotFoundError: The source is neither a folder nor the id of a repository, or the repository or a file in it
            does not exist.
        HubError: The Hub cannot be reached or refuses, and the files are not in the cache.
        TypeError: An option is unknown.
        ValueError: Options of the Hub are given with a folder.
    """
    if unknown := where.keys() - Where.__annotations__.keys():
        near = difflib.get_close_matches(min(unknown), Where.__annotations__, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise TypeError(f"options must be among {', '.join(Where.__annotations__)}; received {min(unknown)!r}.{hint}")
    subfolder = where.get("subfolder") or ""
    if not is_repository(source):
        if given := [name for name, value in where.items() if name != "subfolder" and value]:
            raise ValueError(f"{given[0]} must come with a repository on the Hub; received the folder {source}.")
        return Path(source) / subfolder
    return hub_module().fetch(str(source), files, optional=optional, further=further, **where)


def is_repository(source: str | Path) -> bool:
    """Whether a source is the id of a repository on the Hub, and not a folder.

    Raises:
        FileNotFoundError: The source cannot be either.
    """
    if isinstance(source, Path) or Path(source).is_dir():
        return False
    if not REPO_ID.fullmatch(source):
        raise FileNotFoundError(
            f"the source must be a folder or the id of a repository on the Hub; received {source!r}, which is neither."
        )
    return True


def hub_module() -> ModuleType:
    """Import the module that talks to the Hub, when something is pushed or pulled; this is the only import upwards."""
    from ..hf import hub

    return hub
