"""`curate doctor`: what this installation has: versions, devices, how fast they multiply, threads, optional parts."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.machine import usable_cores
from curate.models.rates import CLEARLY
from curate.results import Result
from curate.store.workspace import __version__

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch transformers accelerate peft datasets pyarrow duckdb polars numpy scipy tokenizers safetensors "
    "huggingface-hub aiohttp"
).split()
_PARTS = (  # what it is for, its module, the packages that may bring it, the extra
    ("nearest neighbours by FAISS", "faiss", ("faiss-cpu", "faiss-gpu"), "cpu` or `gpu"),
    ("the executor ray", "ray", ("ray",), "ray"),
    ("the mixer regmix's LightGBM", "lightgbm", ("lightgbm",), "mix"),
    ("the score fasttext's fastText", "fasttext", ("fasttext-community", "fasttext"), "fasttext"),
    ("the metric lm_eval", "lm_eval", ("lm-eval",), "lm-eval"),
    ("building the documents", "mkdocs", ("mkdocs-material",), "docs"),
    ("the test suite", "hypothesis", ("hypothesis",), "test"),
)
_DTYPES = ("float32", "bfloat16")
_SECONDS = 0.25  # for each rate
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass
class Doctor(Result):
    """What an installation has.

    versions: package -> version, '' if it is missing. devices: name, kind (cpu, cuda), memory in bytes, the dtype that
    model.dtype=auto is there, the attention that models of transformers run with in it, without and with a mask, and
    the rate of a matrix product in FLOP/s by dtype, measured (None: the device refuses it). cores: that this process
    may use. threads: that torch uses. variables: those of the environment that set numbers of threads. parts: what for,
    version ('' if missing), and how to get it. notes: what this means, in sentences.
    """

    curate: str
    python: str
    system: str
    versions: dict[str, str] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    cores: int = 0
    threads: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    parts: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def doctor(*, measure: bool = True) -> Doctor:
    """Versions, devices, rates, threads and optional parts of this installation. measure: whether to measure the rates,
    which takes about a quarter of a second for each device and dtype."""
    import torch

    told = Doctor(__version__, platform.python_version(), platform.platform())
    told.versions = {name: _version(name) for name in _PACKAGES}
    told.cores, told.threads = usable_cores(), torch.get_num_threads()
    told.variables = {name: os.environ[name] for name in _THREADS if name in os.environ}
    told.devices = [{"name": _processor(), "kind": "cpu", "memory": _memory()}]
    for i in range(torch.cuda.device_count()):
        its = torch.cuda.get_device_properties(i)
        told.devices.append({"name": f"cuda:{i} {its.name}", "kind": "cuda", "memory": its.total_memory})
    for i, device in enumerate(told.devices):
        place = torch.device("cpu" if device["kind"] == "cpu" else f"cuda:{i - 1}")
        device["dtype"] = "bfloat16" if device["kind"] == "cuda" else "float32"
        device["attention"] = _attention(place, getattr(torch, device["dtype"]))
        if measure:
            device.update({dtype: _rate(place, getattr(torch, dtype)) for dtype in _DTYPES})
            told.notes.append(_fast(device))
    told.notes += _of_threads(told)
    told.parts = [_part(*part) for part in _PARTS] + [_object_store(), _sandbox()]
    return told


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory() -> int:
    """The machine's memory in bytes; 0 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernel torch's attention (transformers' sdpa) has for heads of 64 numbers: of causal rows, which is what
    scores and trainings ask for; and with a mask, as packed rows and samples behind a shared prefix have."""
    import torch
    from torch.nn.attention import SDPBackend

    q = torch.empty(1, 8, 128, 64, dtype=dtype, device=device)
    mask = torch.ones(1, 1, 128, 128, dtype=torch.bool, device=device)
    choice = torch.ops.aten._fused_sdp_choice
    chosen = (choice(q, q, q, is_causal=True), choice(q, q, q, mask))
    plain, masked = (SDPBackend(one).name.lower().removesuffix("_attention") for one in chosen)
    return f"sdpa: {plain}" + (f", {masked} with a mask" if masked != plain else "")


# --- rates -----------------------------------------------------------------------------------------------


def _rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of a product of two square matrices; the size grows until one product takes a good part of the time."""
    import torch

    n, fastest = 256, 0.0
    until = time.perf_counter() + _SECONDS
    try:
        while True:
            a = torch.randn(n, n, device=device).to(dtype)
            seconds = min(_timed(a, device) for _ in range(2))  # the first one sets things up
            fastest = max(fastest, 2 * n**3 / seconds)
            if seconds * 8 < _SECONDS and n < 8192:  # the next takes about eight times as long
                n *= 2
            if time.perf_counter() + 2 * seconds > until:
                return fastest
    except RuntimeError:  # a dtype that the device does not have, or no memory left
        return fastest or None


def _timed(matrix: torch.Tensor, device: torch.device) -> float:
    """Seconds of a product of a matrix with itself."""
    import torch

    start = time.perf_counter()
    _ = matrix @ matrix
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _fast(device: dict[str, Any]) -> str:
    """Which dtype is fast on a device."""
    name, single, half = device["name"], device["float32"], device["bfloat16"]
    if not single or not half:
        return f"{name} multiplies in {'float32' if single else 'bfloat16'} only"
    if half > CLEARLY * single:
        takes = "bfloat16" if device["kind"] == "cuda" else "mixed_bfloat16"
        words = f"bfloat16 is {half / single:.1f} times as fast as float32; --set model.dtype={takes} takes it"
    elif single > CLEARLY * half:
        words = f"float32 is {single / half:.1f} times as fast as bfloat16; --set model.dtype=float32 takes it"
    else:
        words = "float32 and bfloat16 are about equally fast; bfloat16 takes half the memory"
    usual = "bfloat16" if device["kind"] == "cuda" else "float32"
    if device["kind"] == "cpu" and half > CLEARLY * single:
        usual += ", and mixed_bfloat16 for scores whose order that keeps,"
    return f"on {name} {words} (model.dtype=auto is {usual} there)"


# --- threads and parts -----------------------------------------------------------------------------------


def _of_threads(told: Doctor) -> Sequence[str]:
    given = ", ".join(f"{name}={value}" for name, value in told.variables.items())
    if told.threads < told.cores:
        why = f"{given} is set; unset it to use all" if given else "OMP_NUM_THREADS sets more"
        return [f"torch computes with {told.threads} threads on {told.cores} cores ({why})"]
    if told.threads > told.cores:
        return [f"torch computes with {told.threads} threads on {told.cores} cores: set OMP_NUM_THREADS={told.cores}"]
    return [f"torch computes with {told.threads} threads on {told.cores} cores"]


def _part(purpose: str, module: str, packages: Sequence[str], extra: str) -> dict[str, str]:
    there = find_spec(module) is not None
    versions = [f"{package} {found}" for package in packages if (found := _version(package))]
    first = extra.split("`")[0]
    how = f"the extra `{extra}`: pip install 'curate-lm[{first}]'"
    return {"part": purpose, "version": ", ".join(versions) or "there" if there else "", "how": "" if there else how}


def _sandbox() -> dict[str, str]:
    there = shutil.which("bwrap") is not None
    how = "your system's package: apt install bubblewrap"
    purpose = "a sandbox for programs that a model writes (pass_at_1)"
    return {"part": purpose, "version": "bubblewrap" if there else "", "how": "" if there else how}


def _object_store() -> dict[str, str]:
    there = find_spec("pyarrow._s3fs") is not None
    how = "a build of pyarrow with S3, as its wheels are: pip install -c constraints.txt pyarrow"
    return {
        "part": "workspaces in object stores (s3://)",
        "version": f"pyarrow {_version('pyarrow')}" if there else "",
        "how": "" if there else how,
    }
