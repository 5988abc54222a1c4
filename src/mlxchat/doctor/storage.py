"""Checks of the disk that mlxchat's home is on, by trying what saving relies on."""

from pathlib import Path

from mlxchat.counts import round_size
from mlxchat.disk import RESERVE
from mlxchat.doctor.check import STORING, Check, Verdict, doubtful, good, wrong
from mlxchat.doctor.host import Host
from mlxchat.doctor.probes import LINKING, LOCKING, RENAMING, SYNCING, WRITING
from mlxchat.errors import command

ENOUGH_DISK = 5 * 10**9  # eight shards, a tokenizer and two steps of depth 12 with their optimizer
SLOW_SYNC = 1.0  # seconds for a megabyte

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "9p", "fuse.sshfs"}
CARDS = {"exfat", "msdos", "vfat", "fat", "fat32"}
VOLATILE = {"tmpfs", "ramfs"}
CLOUDS = {  # folders that a program keeps the same as a server's, and what that is
    "Library/Mobile Documents": "iCloud Drive",
    "Library/CloudStorage": "a cloud drive",
    "Dropbox": "Dropbox",
    "OneDrive": "OneDrive",
    "Google Drive": "Google Drive",
}
MAYBE_CLOUDS = ("Desktop", "Documents")  # of a Mac


def cloud(path: Path, user_home: Path | None, mac: bool) -> str:
    """Return the cloud that a folder is kept in, or may be; "" if there is none.

    >>> cloud(Path("/Users/ada/Documents/models"), Path("/Users/ada"), mac=True)
    'perhaps iCloud Drive'
    """
    if user_home is None:
        return ""
    for folder, name in CLOUDS.items():
        if path.is_relative_to(user_home / folder):
            return name
    if mac and any(path.is_relative_to(user_home / folder) for folder in MAYBE_CLOUDS):
        return "perhaps iCloud Drive"
    return ""


def _refused(host: Host) -> str:
    """Return why nothing can be written to mlxchat's home."""
    return host.measure(WRITING, home=str(host.home.root)).refused


def _with_home(host: Host) -> str:
    return "the home is not writable" if _refused(host) else ""


def _home(host: Host) -> Verdict:
    root = host.home.root
    kind = host.file_system().kind
    value = f"{root}, {kind}"
    if refused := _refused(host):
        return wrong(
            value,
            f"Nothing can be written there ({refused}).",
            "Check its permissions, or choose another folder with MLXCHAT_HOME.",
        )
    if name := cloud(root, host.user_home(), host.system() == "Darwin"):
        return doubtful(
            value,
            f"It is in {name}, which uploads every saved file and may remove it from this disk.",
        )
    if kind in NETWORK:
        return doubtful(
            value, "Saving to a network drive is slow, and the drive may disconnect during a run."
        )
    if kind in CARDS:
        return doubtful(
            value,
            "This file system has no journal and no hard links: a power cut can damage it, and "
            "checkpoints that would share files are copied.",
        )
    if kind in VOLATILE:
        return doubtful(value, "This is memory: everything saved here is lost on a restart.")
    return good(value)


def _space(host: Host) -> Verdict:
    free = host.free_disk()
    value = f"{round_size(free)} free"
    if free < RESERVE:
        return wrong(value, "Downloads must leave 1 GB free, so nothing can be downloaded.")
    if free < ENOUGH_DISK:
        return doubtful(value, "A few shards and checkpoints of a large model would fill this.")
    return good(value)


def _sync(host: Host) -> Verdict:
    tried = host.measure(SYNCING, home=str(host.home.root))
    value = f"{1000 * tried.seconds:,.0f} ms"
    if tried.refused and tried.instead:
        return doubtful(
            f"by {tried.instead}",
            f"F_FULLFSYNC was refused ({tried.refused}): saved data may stay in the drive's "
            "cache, so a power cut can lose the last checkpoint.",
        )
    if tried.refused:
        return wrong("refused", f"The disk cannot be flushed ({tried.refused}).")
    if tried.seconds > SLOW_SYNC:
        return doubtful(value, "The disk is slow, and training waits for it at every save.")
    return good(value)


def _lock(host: Host) -> Verdict:
    tried = host.measure(LOCKING, home=str(host.home.root))
    if tried.refused and tried.instead:
        return doubtful(
            f"by {tried.instead}",
            f"The system's lock was refused ({tried.refused}). A lock file is used instead; if a "
            "process on another machine dies, you have to delete it by hand.",
        )
    if tried.refused:
        return doubtful(
            "none", f"Two processes could write to the same run: locking failed ({tried.refused})."
        )
    return good("kept")


def _rename(host: Host) -> Verdict:
    tried = host.measure(RENAMING, home=str(host.home.root))
    if not tried.renamed:
        return wrong(
            "incomplete", "A renamed folder lost its file, or still exists under its old name."
        )
    two = "two names" if tried.case_sensitive else "one name"
    return good("whole", f"Names that differ only in case, such as d4 and D4, are {two} here.")


def _link(host: Host) -> Verdict:
    tried = host.measure(LINKING, home=str(host.home.root))
    if tried.refused:
        return doubtful("none", f"The disk has no hard links ({tried.refused}).")
    return good("made")


ELSEWHERE = "Use MLXCHAT_HOME to choose a folder on a local disk."
STORAGE_CHECKS = (
    Check(
        name="home",
        measures="The folder of data and models: its file system, and whether it is writable.",
        limit="a local disk, outside cloud folders",
        remedy=ELSEWHERE,
        commands=STORING,
        examine=_home,
    ),
    Check(
        name="space",
        measures="Free space on the disk of that folder.",
        limit=f"at least {ENOUGH_DISK // 10**9} GB",
        remedy=(
            f"Free some space, such as that of old checkpoints: {command('checkpoints prune')}. Or "
            "choose another disk with MLXCHAT_HOME."
        ),
        commands=STORING,
        examine=_space,
    ),
    Check(
        name="sync",
        measures="Whether a saved file reaches the drive itself, and how long that takes "
        "for a megabyte.",
        limit=f"at most {SLOW_SYNC:g} s",
        remedy=ELSEWHERE,
        commands=STORING,
        examine=_sync,
        absent=_with_home,
    ),
    Check(
        name="lock",
        measures="Whether a file locked by one process is refused to another.",
        limit="kept",
        remedy=(
            "Do not start two runs with the same name at a time, or use MLXCHAT_HOME to choose a "
            "folder on a local disk."
        ),
        commands=STORING,
        examine=_lock,
        absent=_with_home,
    ),
    Check(
        name="rename",
        measures=(
            "Whether a folder is renamed atomically, so that a checkpoint is saved completely or "
            "not at all."
        ),
        limit="whole",
        remedy=ELSEWHERE,
        commands=STORING,
        examine=_rename,
        absent=_with_home,
    ),
    Check(
        name="link",
        measures=(
            "Whether a file can have two names (hard links), so that a checkpoint kept twice is "
            "stored once."
        ),
        limit="made",
        remedy="You need not do anything: files are copied instead, which takes time and space.",
        commands=STORING,
        examine=_link,
        absent=_with_home,
    ),
)
