"""Downloads of published weights: only when the user asks, atomic, and compared with their checksums."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from jaxmd_thermal.errors import DownloadError, InputError, OutputError
from jaxmd_thermal.io.registry import Model, WeightFile, by_hand, cache_folder, check_file, home_of

TIMEOUT = 30
"""s without an answer of the server."""
_CHUNK = 2**16
_DISK = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT}


def download(model: Model, root: str | Path | None = None, progress: Callable[[WeightFile, int], None] | None = None):
    """Fetch the files of a model that are missing or damaged; those that are right are left alone.

    Args:
      model: from `registry.MODELS`.
      root: folder to put them below, the user's cache if None.
      progress: called with a file and the bytes of it that have arrived.

    Returns: the folder that holds the files.

    Raises:
      DownloadError: no public address, no network, or the server's file is another one; says what to do by hand.
      OutputError: the folder cannot be written, or the disk is full.
    """
    root = cache_folder() if root is None else Path(root).expanduser()
    folder = home_of(model, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to '{folder}': {error.strerror or error}; choose another --to") from error
    for file in model.files:
        try:
            check_file(model, file, folder / file.name)
        except InputError:
            _fetch(model, file, folder, root, progress)
    return folder


def _fetch(model: Model, file: WeightFile, folder: Path, root: Path, progress) -> None:
    import pooch

    remedy = by_hand(model, root)
    if file.url is None:
        raise DownloadError(f"'{file.name}' of '{model.name}' cannot be downloaded. {remedy}")
    pooch.get_logger().setLevel("ERROR")  # what it tells is told by the command, and its errors are raised
    downloader = pooch.HTTPDownloader(
        progressbar=_Counter(file, progress) if progress else False, chunk_size=_CHUNK, timeout=TIMEOUT
    )
    try:
        # Written to a temporary file, which takes the name only once its checksum is right.
        pooch.retrieve(
            file.url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=downloader
        )
        (folder / file.name).chmod(0o644)  # temporary files are private, weights in a shared folder are not
    except OSError as error:
        if error.errno in _DISK:
            raise OutputError(f"cannot write to '{folder}': {error.strerror or error}; choose another --to") from error
        raise DownloadError(
            f"cannot download '{file.name}' of '{model.name}' ({_first_line(error)}): check the network and try again. "
            f"{remedy}"
        ) from error
    except ValueError as error:
        raise DownloadError(
            f"{file.url} is not the file that '{model.name}' was checked with ({error}): nothing was kept. Try again; if "
            f"it stays so, the server has changed the file. {remedy}"
        ) from error


class _Counter:
    """What pooch takes for a progress bar: its counts, passed on as bytes that have arrived."""

    total = 0

    def __init__(self, file: WeightFile, progress: Callable[[WeightFile, int], None]):
        self.file, self.progress, self.done = file, progress, 0

    def update(self, n: int) -> None:
        self.done += n
        self.progress(self.file, min(self.done, self.file.size))

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _first_line(error: OSError) -> str:
    # The innermost reason: the messages around it repeat the address, which is told anyway.
    cause = getattr(error.args[0], "reason", error) if error.args else error
    text = str(cause).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
