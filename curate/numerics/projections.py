"""Random projections of gradients to D dimensions that preserve inner products in expectation.

Each entry of a projection is a pure function of (seed, parameter name, index within the parameter), by SplitMix64's
finaliser over integers: so it is the same on a CPU and on any GPU, in every shard and worker, and is never stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from curate.errors import CurateError
from curate.hashing import key_of

Kind: TypeAlias = Literal["sjlt", "rademacher", "none"]

_WORD = 64  # signs per hashed word
_ROWS = 1 << 23  # entries of a dense projection in memory at once
_KEPT = 1 << 28  # bytes; sign vectors of up to a sixteenth of this are cached between batches


class Projector(ABC):
    """A linear map from gradients, parameter by parameter, to `dim` dimensions."""

    dim: int

    @abstractmethod
    def add(self, into: Tensor, name: str, gradients: Tensor) -> None:
        """Add the image of a parameter's gradients, [B, n], to `into`, [B, dim]."""

    @abstractmethod
    def flops(self, n: int) -> float:
        """FLOPs of projecting one sample's gradient of n elements."""


def projector(kind: Kind, dim: int, seed: int, nonzeros: int, sizes: Mapping[str, int]) -> Projector:
    """The projection for parameters of the given sizes (name -> number of elements).

    Raises CurateError if `dim` exceeds the total number of elements.
    """
    total = sum(sizes.values())
    if kind == "none":
        return Exact(sizes)
    if dim > total:
        raise CurateError(
            f"the projection has dim={dim}, and the parameters only {total} elements; use a smaller dim, or "
            "projector=none, which does not project."
        )
    return Rademacher(dim, seed) if kind == "rademacher" else Sjlt(dim, seed, nonzeros)


class Exact(Projector):
    """No projection: the parameters' gradients concatenated."""

    def __init__(self, sizes: Mapping[str, int]):
        self.dim, self._starts = 0, dict[str, int]()
        for name, n in sizes.items():
            self._starts[name], self.dim = self.dim, self.dim + n

    def add(self, into: Tensor, name: str, gradients: Tensor) -> None:
        start = self._starts[name]
        into[:, start : start + gradients.shape[1]] += gradients

    def flops(self, n: int) -> float:
        return 0.0


class Rademacher(Projector):
    """Random signs divided by sqrt(D): the projection of LESS and TRAK, regenerated block by block.

    Cost: 2 n D FLOPs per sample, and n D hashed signs per batch.
    """

    def __init__(self, dim: int, seed: int):
        self.dim, self._seed = dim, seed

    def add(self, into: Tensor, name: str, gradients: Tensor) -> None:
        size = max(1, _ROWS // self.dim)
        for start in range(0, gradients.shape[1], size):
            piece = gradients[:, start : start + size]
            into += piece @ self.entries(name, start, piece.shape[1], into.device).to(piece.dtype)

    def entries(self, name: str, start: int, count: int, device: torch.device) -> Tensor:
        """Rows `start` to `start + count` of the projection matrix, float32 [count, D]."""
        words = -(-self.dim // _WORD)
        index = torch.arange(start * words, (start + count) * words, device=device)
        hashed = _hash(_key(self._seed, "rademacher", name), index).view(count, words, 1)
        signs = _signs_of(hashed).flatten(1)[:, : self.dim]
        return signs.float() / self.dim**0.5

    def flops(self, n: int) -> float:
        return 2.0 * n * self.dim


class Sjlt(Projector):
    """A sparse Johnson-Lindenstrauss transform (Kane and Nelson 2014): every element is added, with a random sign, to
    `s` of the D output coordinates, divided by sqrt(s).

    Element i is at offset i mod D of block i // D. Each block is rotated by a random offset before it is added, so two
    elements of one block never collide, and two of different blocks collide with probability 1/D; whole blocks are
    added, at memory bandwidth. The signs are independent, so inner products are unbiased.

    Cost: 2 s n additions per sample, and s n hashed signs per batch.
    """

    def __init__(self, dim: int, seed: int, nonzeros: int = 1):
        if not 1 <= nonzeros <= dim:
            raise CurateError(
                f"nonzeros={nonzeros}: each element goes to at least one of the dim={dim} coordinates, and at "
                "most to all of them."
            )
        self.dim, self._seed, self._s = dim, seed, nonzeros

    def add(self, into: Tensor, name: str, gradients: Tensor) -> None:
        n = gradients.shape[1]
        for copy in range(self._s):
            signs, turns = self._layout(name, n, copy, into.device)
            signed = gradients * signs.to(gradients.dtype)
            if self._s > 1:
                signed /= self._s**0.5
            if into.is_cuda:
                self._gathered(into, signed, turns)
            else:
                self._turned(into, signed, turns.tolist())

    def _turned(self, into: Tensor, signed: Tensor, turns: list[int]) -> None:
        """Add each rotated block in two pieces, before and after the wrap-around."""
        for block, turn in enumerate(turns):
            piece = signed[:, block * self.dim : (block + 1) * self.dim]
            head = min(self.dim - turn, piece.shape[1])
            into[:, turn : turn + head] += piece[:, :head]
            if head < piece.shape[1]:
                into[:, : piece.shape[1] - head] += piece[:, head:]

    def _gathered(self, into: Tensor, signed: Tensor, turns: Tensor) -> None:
        """The same in a few GPU kernels: gather, for each output coordinate, its element of every block."""
        blocks = torch.nn.functional.pad(signed, (0, len(turns) * self.dim - signed.shape[1]))
        blocks = blocks.view(len(signed), len(turns), self.dim)
        places = (torch.arange(self.dim, device=into.device) - turns[:, None]) % self.dim
        into += blocks.gather(2, places.expand(len(signed), -1, -1)).sum(1)

    def _layout(self, name: str, n: int, copy: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = _key(self._seed, f"sjlt {copy}", name)
        turns = (
            _hash(_key(self._seed, f"sjlt {copy} turns", name), torch.arange(-(-n // self.dim), device=device))
        ) % (self.dim)
        return _kept_signs(key, n, str(device)) if n <= _KEPT // 16 else _signs(key, n, device), turns

    def flops(self, n: int) -> float:
        return 2.0 * self._s * n


# --- random signs and offsets ----------------------------------------------------------------------------


def _key(seed: int, purpose: str, name: str) -> int:
    return key_of(seed, purpose, name) - 2**63


def _hash(key: int, index: Tensor) -> Tensor:
    """64 random bits for each index, int64, by applying SplitMix64's finaliser twice (as in hashing.keyed_uniform)."""
    return _mixed(_mixed(index ^ key) + key)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical (unsigned) right shift; torch's own shift of int64 keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signs_of(words: Tensor) -> Tensor:
    """The bits of each word [..., 1], least significant first, as -1 and 1, int8 [..., 64]."""
    return _table(str(words.device))[words.view(torch.uint8).int()].flatten(-2)


@lru_cache
def _table(device: str) -> Tensor:
    """The bits of every byte as -1 and 1, int8 [256, 8]."""
    return (((torch.arange(256)[:, None] >> torch.arange(8)) & 1) * 2 - 1).to(torch.int8).to(device)


def _signs(key: int, n: int, device: torch.device) -> Tensor:
    """n signs, int8: bit i % 64 of word i // 64."""
    words = _hash(key, torch.arange(-(-n // _WORD), device=device))[:, None]
    return _signs_of(words).flatten()[:n]


@lru_cache(maxsize=1024)
def _kept_signs(key: int, n: int, device: str) -> Tensor:
    return _signs(key, n, torch.device(device))
