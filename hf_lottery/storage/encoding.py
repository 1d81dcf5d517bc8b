"""Bits and bytes: bool tensors packed into uint8, plain or as one zstd frame, and the nested bits of a series.

Reading trusts nothing: every length is checked before memory of that length is allocated, and the result is at most
``MAX_RATIO`` times as large as the bytes in the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard
from torch import Tensor

ENCODINGS = ("bits", "zstd")
MAX_RATIO = 64  # the most packed bytes that one byte of a frame may stand for
_LEVEL = 17  # within 1 % of level 19 on trained networks, at two thirds of its time
_MAX_WINDOW = 8 * 2**20
_MAGIC = b"\x28\xb5\x2f\xfd"


class MaskFileError(ValueError):
    """A mask file is malformed, damaged, or of a newer format."""


def packed_size(count: int) -> int:
    """Return how many bytes ``count`` bits need."""
    return -(-count // 8)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8 ``[ceil(numel / 8)]``: row-major, least significant bit first."""
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_bits`: the first ``prod(shape)`` bits of uint8 ``packed`` as a bool tensor of ``shape``."""
    bits = np.unpackbits(packed.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(list(shape))


def count_ones(mask: Tensor) -> int:
    """Count the True values of a bool tensor on any device; several times faster than its ``sum()``."""
    return int(np.count_nonzero(mask.numpy(force=True)))


def encode(packed: Tensor, *, compress: bool) -> tuple[Tensor, str]:
    """Return the bytes to store for packed bits, uint8 ``[bytes]``, and the name of their encoding.

    Args:
        packed: The packed bits.
        compress: Whether a zstd frame may take their place where it is smaller, though not so much smaller that a
            reader would have to distrust it.
    """
    if compress:
        frame = zstandard.ZstdCompressor(level=_LEVEL).compress(packed.numpy().tobytes())
        if len(frame) < len(packed) <= MAX_RATIO * len(frame):
            return torch.from_numpy(np.frombuffer(frame, np.uint8).copy()), "zstd"
    return packed, "bits"


def read_packed(file: Any, key: str, count: int, encoding: str, path: Path) -> Tensor:
    """Read the tensor ``key``, which must encode ``count`` bits, from an open safetensors file as packed uint8.

    Raises:
        MaskFileError: The tensor has another dtype or length, its frame is damaged or dishonest, or its padding is not
            zero.
    """
    size, stored = packed_size(count), file.get_slice(key)
    shape = stored.get_shape()
    fits = shape == [size] if encoding == "bits" else len(shape) == 1 and shape[0] < size <= MAX_RATIO * shape[0]
    # The sizes are compared before anything is allocated: a huge shape in the config costs nothing.
    if stored.get_dtype() != "U8" or not fits:
        wanted = f"[{size}]" if encoding == "bits" else f"[{-(-size // MAX_RATIO)} to {size - 1}]"
        raise MaskFileError(
            f"{path}: {key!r:.80} must be uint8 {wanted} for {count} bits as {encoding}; "
            f"received {stored.get_dtype()} {shape!r:.80}."
        )
    packed = file.get_tensor(key)
    if encoding == "zstd":
        packed = _decompress(packed, size, f"{path}: {key!r:.80}")
    if count % 8 and int(packed[-1]) >> (count % 8):
        raise MaskFileError(f"{path}: the padding bits of {key!r:.80} must be zero; received {int(packed[-1]):#010b}.")
    return packed


def read_bits(file: Any, key: str, count: int, path: Path, *, encoding: str = "bits") -> Tensor:
    """Read the same as :func:`read_packed`, as bool ``[count]``."""
    return unpack_bits(read_packed(file, key, count, encoding, path), (count,))


def _decompress(frame: Tensor, size: int, where: str) -> Tensor:
    """Decompress ``frame``, which must be one zstd frame of ``size`` bytes."""
    data = frame.numpy().tobytes()
    try:
        header = zstandard.get_frame_parameters(data)
        # A skippable frame has a header too, with a size and neither a window nor a content.
        stated = (data[:4] == _MAGIC, header.content_size, header.dict_id)
        if stated != (True, size, 0) or header.window_size > _MAX_WINDOW:
            raise MaskFileError(
                f"{where} must be a zstd frame of {size} bytes, without a dictionary, with a window of at most "
                f"{_MAX_WINDOW}; received {header.content_size} bytes, dictionary {header.dict_id}, "
                f"window {header.window_size}."
            )
        packed = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MaskFileError(f"{where} must be one whole zstd frame; received: {error}.") from error
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())


class NestedBits(NamedTuple):
    """One parameter at all levels of a series. Each level has one bit for each weight that the level before keeps.

    Attributes:
        shape: The shape of the parameter.
        kept: How many weights each level keeps; never more than the level before.
        packed: The bits of each level. None where a level keeps all of them or none, as ``kept`` says it already.

    Example:
        >>> levels = [torch.tensor([True, False, True, True]), torch.tensor([False, False, True, False])]
        >>> bits = nest(levels[1], levels[0], nest(levels[0]))
        >>> bits.kept, [packed.tolist() for packed in bits.packed]
        ((3, 1), [[13], [2]])
        >>> bits.level(1)
        tensor([False, False,  True, False])
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]
    packed: tuple[Tensor | None, ...]

    def candidates(self, number: int) -> int:
        """Return how many weights a level has bits for: those that the level before keeps."""
        return self.kept[number - 1] if number else math.prod(self.shape)

    def until(self, number: int) -> NestedBits:
        """Return the bits of the levels up to ``number``, which share memory with these."""
        return NestedBits(self.shape, self.kept[: number + 1], self.packed[: number + 1])

    def level(self, number: int) -> Tensor:
        """Return the mask of a level, bool of ``shape``."""
        above = np.ones(self.kept[number], np.bool_)
        # From the last level to the first, every array is only as long as the number of weights that the level before
        # keeps. In the other direction all arrays would be of full size.
        for below in range(number, -1, -1):
            packed, count = self.packed[below], self.candidates(below)
            if packed is not None:
                bits = unpack_bits(packed, (count,)).numpy()
                spread = np.zeros(count, np.bool_)
                spread[bits] = above
                above = spread
            elif not self.kept[below]:
                above = np.zeros(count, np.bool_)
        return torch.from_numpy(above).reshape(list(self.shape))


def nest(level: Tensor, before: Tensor | None = None, above: NestedBits | None = None) -> NestedBits:
    """Nest one more mask, so that a series of any length is made with two masks in memory.

    Args:
        level: The mask, a bool tensor on the CPU. It keeps only weights that ``before`` keeps.
        before: The mask of the level before, of the same shape; None for the first level.
        above: The bits of the levels before; None for the first level.
    """
    bits = level.reshape(-1).numpy()
    if before is not None:
        bits = bits[before.reshape(-1).numpy()]
    kept = int(np.count_nonzero(bits))
    packed = None if kept in (0, len(bits)) else pack_bits(torch.from_numpy(bits))
    counts, levels = (above.kept, above.packed) if above else ((), ())
    return NestedBits(tuple(level.shape), (*counts, kept), (*levels, packed))
