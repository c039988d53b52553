"""Writing into OUT: every failure becomes one sentence, and what is there is replaced only by something whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from mmssl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

UMASK = os.umask(0o022)
os.umask(UMASK)  # it can only be read by setting it, which is not safe once there are threads

REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, then give the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, then give the same command again",
    errno.EFBIG: "it would exceed the size allowed here (ulimit -f): raise it, then give the same command again",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.EACCES: "permission is denied: choose another --out, or change the rights of that folder",
    errno.EPERM: "permission is denied: choose another --out, or change the rights of that folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another --out",
    errno.EEXIST: "a file of that name is in the way: choose another --out",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn failures to write `path` into UserError naming it and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(
            error.errno or 0, f"{error.strerror or error}: mend that, then give the same command again"
        )
        raise UserError(f"{path} could not be written, since {remedy}.") from error
    except SafetensorError as error:  # carries the cause in its text only
        for number, remedy in REMEDIES.items():
            if f"os error {number})" in str(error) or os.strerror(number) in str(error):
                raise UserError(f"{path} could not be written, since {remedy}.") from error
        raise UserError(f"{path} could not be written: {error}.") from error


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically. Raises UserError where it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, ensure_ascii=False)
                sync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors with the rights that every new file gets: the library's own are the owner's alone, so that
    nobody else on a cluster could load an encoder."""
    from safetensors.torch import save_file  # processes that only verify media do without torch

    save_file(dict(tensors), file, metadata=metadata)
    os.chmod(file, 0o666 & ~UMASK)


def sync(descriptor: int) -> None:
    """fsync; a file system that has none (EINVAL) keeps what it can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
