"""doctor: what this installation has, and how to get what is missing."""

from __future__ import annotations

from typing import Any

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import as_json_option
from curate.text_table import table


@click.command()
@click.option("--no-measure", is_flag=True, help="Do not measure how fast the devices multiply.")
@as_json_option
def doctor(no_measure: bool, as_json: bool) -> None:
    """Show versions, devices with the dtype and attention of their models and how fast they multiply, threads, and
    optional parts with how to get them.

    The measurement takes about half a second for each device.
    """
    r = curate.doctor(measure=not no_measure)
    versions = ", ".join(f"{name} {found or 'missing'}" for name, found in r.versions.items())
    columns = {"name": "device", "memory": "memory", "dtype": "dtype by auto", "attention": "attention"}
    columns |= {} if no_measure else {"float32": "float32", "bfloat16": "bfloat16"}
    parts = {"part": "optional part", "version": "version", "how": "to get it"}
    lines = [f"curate {r.curate}, Python {r.python}, {r.system}", versions, ""]
    lines += [table([_device(device) for device in r.devices], columns), ""]
    lines += [table([{**part, "version": part["version"] or "missing"} for part in r.parts], parts)]
    say(r, as_json, "\n".join(lines) + notes(r.notes))


def _device(device: dict[str, Any]) -> dict[str, str]:
    """Memory in GiB, rates in GFLOP/s or TFLOP/s."""
    told = {key: device[key] for key in ("name", "dtype", "attention")}
    told["memory"] = f"{device['memory'] / 2**30:,.1f} GiB"
    for dtype in ("float32", "bfloat16"):
        if rate := device.get(dtype):
            told[dtype] = f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.1f} GFLOP/s"
        else:
            told[dtype] = "none"
    return told
