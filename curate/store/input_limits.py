"""What one input may cost, so that a broken or hostile one is told, and does not take the machine's memory or days."""

from __future__ import annotations

from dataclasses import dataclass, fields

from curate.errors import require

BLANKS = 1 << 20  # bytes of white space before the first row
SMALL = 1 << 26  # bytes that may be unpacked from whatever


@dataclass(frozen=True)
class InputLimits:
    """Limits of an input. On the command line `--limit NAME=VALUE`."""

    row_mib: float = 32.0
    """Length of one row of text (JSON or CSV), in MiB: reading it takes about ten times as much memory."""
    ratio: float = 250.0
    """How many times its size a packed file may unpack to, beyond the first 64 MiB."""
    unpacked_gib: float = 1024.0
    """What a packed file may unpack to, in GiB."""

    def __post_init__(self) -> None:
        for field in fields(self):
            require(f"--limit {field.name}", 0 < getattr(self, field.name) < float("inf"), "a number above 0")

    @property
    def row(self) -> int:
        """The most bytes, or characters, of one row."""
        return max(1, int(self.row_mib * (1 << 20)))

    def exceeded(self, packed: int, unpacked: int) -> str:
        """Which limit so many unpacked bytes are beyond, and how it is raised; '' for none."""
        if unpacked > self.unpacked_gib * (1 << 30):
            return f"unpacks to more than {self.unpacked_gib:g} GiB; --limit unpacked_gib=GIB allows more"
        if unpacked > max(SMALL, self.ratio * packed):
            return (
                f"unpacks to more than {self.ratio:g} times its size ({unpacked:,} bytes of {packed:,} so far); "
                "--limit ratio=N allows more"
            )
        return ""

    def too_long(self, size: int, unit: str) -> str:
        """The reason for which a row is rejected that is beyond `row`."""
        return f"is {size:,} {unit} long, and a row has at most {self.row_mib:g} MiB (--limit row_mib=MIB allows more)"
