"""NumPy files from strangers: what they claim to hold is read before anything is."""

from __future__ import annotations

import ast
import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import BundleError

# NumPy writes 128 for any array of up to 10 dimensions.
_MAX_HEADER_BYTES = 1024


def read_npy(data: bytes, file: str) -> NDArray[np.float32]:
    """One float32 array from a .npy file whose header claims exactly the bytes that follow it.

    Arguments:
        data: the file's bytes.
        file: its name, for the message.

    Raises:
        BundleError: not a .npy file, another dtype, or the claim is not true.
    """
    # Read here rather than by NumPy, whose reader also repairs and warns about headers of 20 years ago.
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        if data[:8] != b"\x93NUMPY\x01\x00" or len(data) < start or start > _MAX_HEADER_BYTES:
            raise ValueError("no header of version 1.0")
        header = ast.literal_eval(data[10:start].decode("ascii").strip())
        shape = header["shape"]
        if set(header) != {"descr", "fortran_order", "shape"} or type(shape) is not tuple:
            raise ValueError("a header with other fields")
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise BundleError(f"{file} must be a .npy file. Received: {str(error)[:100]}") from None
    plain = all(type(dim) is int and dim >= 0 for dim in shape)
    if header["descr"] != "<f4" or header["fortran_order"] is not False or not plain:
        raise BundleError(
            f"{file} must hold float32 in C order. Received: {str(header['descr'])[:50]}, shape {str(shape)[:100]}"
        )
    present = len(data) - start
    if math.prod(shape) * 4 != present:
        raise BundleError(f"{file} must hold the {math.prod(shape) * 4} bytes that it claims. Received: {present}")
    values: NDArray[Any] = np.frombuffer(data, np.dtype("<f4"), offset=start)
    try:
        return values.astype(np.float32).reshape(shape)
    except ValueError:  # More dimensions than NumPy knows, or sides beyond all bounds beside one of 0.
        raise BundleError(f"{file} must have the shape of an array. Received: {str(shape)[:100]}") from None


def write_npy(array: NDArray[np.float32]) -> bytes:
    """A float32 array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return buffer.getvalue()


def check_npz(data: bytes, file: str, names: tuple[str, ...]) -> None:
    """Make sure that an .npz file is safe to load: exactly these float32 arrays, stored uncompressed, true claims.

    Raises:
        BundleError: it is not.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sorted(entry.filename for entry in entries) != sorted(f"{name}.npy" for name in names):
                found = [entry.filename for entry in entries][:5]
                raise BundleError(f"{file} must hold {', '.join(names)}. Received: {found}")
            for entry in entries:
                stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
                if not stored or entry.file_size > len(data) or entry.flag_bits & 1:
                    raise BundleError(f"{file} must be stored uncompressed. Received: {entry.filename} is not")
                read_npy(archive.read(entry), f"{file}: {entry.filename}")
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise BundleError(f"{file} must be an .npz file. Received: {str(error)[:100]}") from None
