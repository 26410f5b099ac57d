from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curate.errors import CurateError, require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.methods.metrics._sandbox import bubblewrap_problem, run_python
from curate.models.answers import continuations, generate_answers

_ENDS = ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n```", "\n@")


@dataclass(frozen=True)
class PassAt1(Metric):
    """Share of programming problems whose tests the model's greedy answer passes (HumanEval's format).

    Formula: 1 where  prompt + answer + test + check(entry_point)  runs to its end without an error, else 0.

    A question is one line of HumanEval: its prompt is the function's head, and its fields `test` and `entry_point` are
    kept with it
    (`curate target humaneval HumanEval.jsonl.gz --split test --map prompt=prompt,completion=canonical_solution`). Each
    answer runs in a process of its own, two at a time, which may not start processes, open files or sockets, and has
    limits on time and memory.

    What this is not: a security boundary. The guard is Python, inside the process that it guards; it contains
    accidents, and code that is written to break out gets the rights of whoever runs `curate`. `sandbox=bubblewrap`
    runs the same inside a sandbox of the operating system's (bubblewrap: no file can be written, no network, an empty
    /tmp and /run, no other processes are seen), where code that breaks out can still read files, and use a hole of the
    kernel's. For malicious code use a disposable machine. Which sandbox it was is said and stored with the result.

    Cost: 2N FLOPs for every token of the prompt and of the generated answer; and the tests.

    Reference: Chen et al., "Evaluating Large Language Models Trained on Code" (HumanEval), 2021; with one greedy answer
    pass@1 is the share that passes.

    >>> meta = {"test": "", "entry_point": "one"}
    >>> PassAt1().program("def one():\\n", "    return 1\\ndef two():\\n    return 2", meta).split("\\n")[:2]
    ['def one():', '    return 1']
    """

    style: Literal["completion", "chat"] = "completion"
    """The model continues the prompt as a text; or is asked it in a chat, and the code block of its answer counts."""
    max_new_tokens: int = 512
    """Maximum number of tokens to generate."""
    seconds: float = 10.0
    """Time limit of a program."""
    megabytes: int = 1024
    """Memory limit of a program."""

    sandbox: Literal["auto", "none", "bubblewrap"] = "auto"
    """What is around the guard: nothing, bubblewrap (refused where it is missing), or that where it is there (auto)."""

    def __post_init__(self) -> None:
        bounds = (self.max_new_tokens, self.seconds, self.megabytes)
        require("pass_at_1.max_new_tokens, seconds and megabytes", min(bounds) > 0, "above 0")

    def require(self) -> None:
        if self.sandbox == "bubblewrap" and (problem := bubblewrap_problem()):
            raise CurateError(f"pass_at_1.sandbox=bubblewrap: {problem}; or set it to none, which contains accidents.")

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        self.require()
        problem = bubblewrap_problem() if self.sandbox == "auto" else ""
        wraps = self.sandbox != "none" and not problem
        heads = [next((m["content"] for m in q.messages or [] if m["role"] == "user"), "") for q in questions]
        if self.style == "chat":
            answers, error, usage = generate_answers(model, questions, self.max_new_tokens)
        else:
            answers, error, usage = continuations(model, heads, self.max_new_tokens)
        for i, question in enumerate(questions):
            if not {"test", "entry_point"} <= question.meta.keys():
                error[i] = error[i] or "has no fields test and entry_point"
        todo = np.flatnonzero(error == "").tolist()
        with ThreadPoolExecutor(2) as pool:
            programs = [self.program(heads[i], answers[i], questions[i].meta) for i in todo]
            ran = list(pool.map(lambda code: run_python(code, self.seconds, self.megabytes, wraps), programs))
        values = np.full(len(questions), np.nan)
        values[todo] = [result is None for result in ran]
        around = (
            "inside bubblewrap" if wraps else "without a sandbox of the system" + (f" ({problem})" if problem else "")
        )
        return EvalResult(values, error, usage, answers, f"pass_at_1 ran the programs {around}")

    def program(self, head: str, answers: str, meta: Any) -> str:
        """The program that must run to its end."""
        if self.style == "chat":
            block = (
                answers.partition("```python")[2].partition("```")[0] or answers.partition("```")[2].partition("```")[0]
            )
            body = f"{head}    pass\n\n{block or answers}"  # the head's imports and helpers, and then the whole answer
        else:
            ends = [answers.find(end) for end in _ENDS if end in answers]
            body = head + answers[: min(ends)] if ends else head + answers
        return f"{body}\n\n{meta['test']}\n\ncheck({meta['entry_point']})\n"
