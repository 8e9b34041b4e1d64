"""What `rayml data fetch` does: download, unpack, verify, and only then put in place."""

from __future__ import annotations

from pathlib import Path

from rayml import clothing
from rayml.archive import unpack
from rayml.cli.download import download
from rayml.errors import DataError, RaymlError, UsageError
from rayml.new_folder import PARTIAL, behind_links, drafted, is_new
from rayml.progress import Progress


def fetch_clothing(folder: Path, progress: Progress, *, url: str | None = None, archive: Path | None = None) -> bool:
    """Bring the clothing photos into a folder.

    Arguments:
        folder: new or empty, or one that holds them already.
        progress: told how far it is.
        url: where the archive is, if not at its own address.
        archive: an archive on this machine, instead of a download.

    Returns:
        Whether they were fetched; False if they were there already.

    Raises:
        UsageError: the folder holds something else, or cannot be made.
        DataError: the archive is not these photos. It is removed, unless it was given.
        RaymlError: see `download` and `unpack`.
    """
    folder = behind_links(folder)
    if _holds_something(folder):
        try:
            clothing.verify(folder)
        except DataError as error:
            raise UsageError(
                f"expected a new or an empty folder, or the clothing photos. Received: {folder} ({error.message})",
                "Name another folder, or remove this one.",
            ) from None
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Where a volume is mounted, nothing may be written beside it.
        part = folder / f"{PARTIAL}zip" if folder.exists() else folder.parent / f".{folder.name}.zip.part"
        with drafted(folder) as root:
            if archive is None:
                download(url or clothing.URL, part, clothing.LIMITS.max_bytes, clothing.ARCHIVE_MB, progress)
            elif not archive.is_file():
                raise UsageError(f"--archive must be a file. Received: {archive}")
            try:
                with progress.bar("unpack", clothing.PHOTOS, "files") as advance:
                    unpack(archive or part, root, clothing.wanted, clothing.LIMITS, advance)
                clothing.verify(root)
            except DataError as error:
                part.unlink(missing_ok=True)  # Going on with it would end the same way.
                raise DataError(error.message.replace(f"{root}/", ""), error.hint) from None
        part.unlink(missing_ok=True)
    except OSError as error:
        raise RaymlError(
            f"the photos cannot be written to {folder} ({error.strerror})", "Name a folder that can be written to."
        ) from None
    return True


def _holds_something(folder: Path) -> bool:
    try:
        return not is_new(folder)
    except OSError as error:
        raise UsageError(f"expected a folder. Received: {folder} ({error.strerror})") from None
