"""Real chat templates, as TRL ships them, × kinds of conversation: which of the assistant's turns are supervised.

    python -m tests.bench.templates        a Markdown table, and in what words templates refuse

2/2: both turns are, and nothing else. 1/2*: one is; the star says that the sample is counted as one of which the
template does not show everything (calls, in one without tools). refuses: the template itself does. nothing: no span,
for a reason of ours. wrong: a span holds what another role said, or begins before the assistant's header.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from curate.models.rendering import Unrenderable
from curate.models.tokens import render
from tests.models.test_real_templates import CONVERSATIONS, NAMES, tokenizer_with

Messages = Sequence[Mapping[str, Any]]


def cell(name: str, messages: Messages) -> tuple[str, str]:
    """What becomes of a conversation, and the reason if nothing does."""
    try:
        shown = render(tokenizer_with(name), messages)
    except Unrenderable as reason:
        told = str(reason)
        return ("refuses" if told.startswith("its chat template refuses it: ") else "nothing"), told
    turns = [shown.text[start:stop] for start, stop in shown.spans]
    if _wrong(shown.spans, turns, messages):
        return "wrong", ""
    of = sum(message["role"] == "assistant" for message in messages)
    return f"{len(turns)}/{of}{'*' if shown.partial else ''}", ""


def _wrong(spans: Sequence[tuple[int, int]], turns: Sequence[str], messages: Messages) -> bool:
    others = [message["content"].strip() for message in messages if message["role"] != "assistant"]
    return any(start == 0 for start, _ in spans) or any(other in turn for other in others for turn in turns)


def main() -> None:
    kinds = list(CONVERSATIONS)
    reasons: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    print(f"| template | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}")
    for name in NAMES:
        cells = []
        for kind in kinds:
            what, reason = cell(name, CONVERSATIONS[kind])
            cells.append(what)
            counts[what if what.isalpha() else "supervised"] += 1
            if reason:
                reasons.setdefault(reason, []).append(f"{name} ({kind})")
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        f"\n{len(NAMES)} templates × {len(kinds)} conversations: {', '.join(f'{n} {k}' for k, n in counts.items())}.\n"
    )
    for reason, where in sorted(reasons.items()):
        print(f"- {reason}: {', '.join(where)}")


if __name__ == "__main__":
    main()
