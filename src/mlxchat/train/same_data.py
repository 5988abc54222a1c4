"""Whether a run that goes on finds what it began with: files of that name, text and revision.

What is told here takes a look at each file; the whole is compared when it is read (`KnownShards`).
"""

from collections.abc import Sequence
from pathlib import Path

from mlxchat.checkpoint.layout import TrainerState
from mlxchat.data.fingerprint import agree, frames, replaced
from mlxchat.errors import MlxchatError

_PUT_BACK = "name another run with --model-tag, or begin anew with --fresh."


def require_same_files(tag: str, folder: Path, data_dir: Path | None, begun: TrainerState) -> None:
    """Compare the files that are in a folder with those of their names that a run began with.

    Args:
        tag: the run's name.
        folder: where its shards are to be read from.
        data_dir: what the settings say of that.
        begun: the state of the run as it was saved.

    Raises:
        MlxchatError: one is another file, or the folder is another one and there is nothing to
            compare its files with.
    """
    before = begun.settings.get("data_dir")
    comparable = bool(begun.data) and begun.fingerprints.keys() >= set(begun.data)
    if not comparable and before != (data_dir and str(data_dir)):
        raise MlxchatError(
            f"The run {tag} began with {_said(before)}, not with {_said(data_dir)}, and nothing "
            "was saved to tell whether their files are the same.",
            f"Give it what it began with, {_PUT_BACK}",
        )
    for name, found in frames(folder, begun.data).items():
        if not agree(begun.fingerprints.get(name, found), found):
            raise replaced(folder / name)


def require_revision(tag: str, folder: Path, found: str | None, begun_with: str | None) -> None:
    """Compare revisions of the hub, where both are known.

    Raises:
        MlxchatError: they differ.
    """
    if begun_with and found and found != begun_with:
        raise MlxchatError(
            f"The run {tag} began with revision {begun_with} of its dataset; the shards in "
            f"{folder} are of {found}.",
            f"Put those back that it began with, {_PUT_BACK}",
        )


def require_names(tag: str, folder: Path, begun_with: Sequence[str], names: Sequence[str]) -> None:
    """All files that a run began with must be there.

    Args:
        tag: the run's name.
        folder: of the dataset.
        begun_with: their names.
        names: of the files that are there, or can be fetched.

    Raises:
        MlxchatError: some are missing.
    """
    if missing := [name for name in begun_with if name not in names]:
        raise MlxchatError(
            f"The run {tag} began with data that is not there: {', '.join(missing[:3])}.",
            f"Put it back into {folder}, {_PUT_BACK}",
        )


def _said(data_dir: Path | str | None) -> str:
    return f"--data-dir {data_dir}" if data_dir else "the dataset's own folder"
