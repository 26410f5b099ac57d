from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.kinds.options import posed
from curate.methods.metrics._golds import golds
from curate.models.harness import harness_version, run_harness, task_manager
from curate.models.tokens import Unrenderable, rendered

_SCORES = {"sum": "acc", "chars": "acc_norm", "bytes": "acc_bytes"}
_DOCS = pa.schema(  # with types: from JSON, answers that are dates or numbers would become these
    [
        ("place", pa.int64()),
        ("prompt", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("options", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class LmEval(Metric):
    """The questions as a local task of lm-evaluation-harness, scored by its own code.

    Formula: its `acc`, `acc_norm` or `acc_bytes` (by=sum, chars, bytes) for output_type=multiple_choice, the options'
    log-likelihood; its `exact_match` for output_type=generate_until, of the whole text that is generated up to the
    model's end-of-text token with any right answer, ignoring case, with the filters of its default pipeline (none).

    The prompts follow the model's own template; the harness adds nothing to them, and tokenises them itself, so that
    control tokens in a question's text are parsed, whatever model.special_tokens says. Options are as in `choice`,
    right answers as in `exact_match`. Needs the extra `lm-eval` (pip install "curate-lm[lm-eval]"). Tasks of the
    harness itself, or of a folder: `curate evaluate RUN --task NAME --task-dir DIR`.

    Cost: a forward pass for every option, or for the prompt and every generated token; estimated as if each went
    through the model alone, without padding.

    Reference: https://github.com/EleutherAI/lm-evaluation-harness.

    >>> LmEval().task("docs.parquet")["output_type"]
    'multiple_choice'
    """

    version: ClassVar[int] = 2  # answers stay text; no other end of an answer than the model's

    output_type: Literal["multiple_choice", "generate_until"] = "multiple_choice"
    """Choose among the options; or generate the answer, which must match a right one exactly."""
    max_new_tokens: int = 64
    """Maximum number of tokens to generate."""
    by: Literal["sum", "chars", "bytes"] = "sum"
    """The log-likelihood of an option as a whole, or divided by its number of characters or bytes."""
    options: Literal["auto", "own", "subtask"] = "auto"
    """Whose options, as in `choice`."""

    def __post_init__(self) -> None:
        require(f"lm_eval.max_new_tokens={self.max_new_tokens}", self.max_new_tokens > 0, "above 0")

    def require(self) -> None:
        harness_version()

    def options_from(self) -> Literal["auto", "own", "subtask"]:
        return self.options

    def posed(self, question: Question) -> Question:
        return posed(question, "as_stored", "as_stored") if self.output_type == "multiple_choice" else question

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        values, error = np.full(len(questions), np.nan), np.full(len(questions), "", object)
        docs = [self._doc(model, i, question, error) for i, question in enumerate(questions)]
        usage, answers = model.usage(), [""] * len(questions)
        chooses = self.output_type == "multiple_choice"
        if usable := [doc for doc in docs if doc]:
            with tempfile.TemporaryDirectory(prefix="curate-") as folder:
                file = Path(folder) / "docs.parquet"
                pq.write_table(pa.Table.from_pylist(usable, schema=_DOCS), file)
                task = json.dumps(self.task(str(file)))  # JSON is YAML
                (Path(folder) / "curate.yaml").write_text(task, encoding="utf-8")
                results, usage = run_harness(model, ["curate"], task_manager(Path(folder)))
            for sample in results["samples"]["curate"]:
                i = sample["doc"]["place"]
                values[i] = float(sample[_SCORES[self.by] if chooses else "exact_match"])
                answers[i] = "" if chooses else str(sample["filtered_resps"][0])
        borrowed = any(question.borrowed for question in questions) and chooses and self.options == "auto"
        told = "lm_eval: the questions were offered the distinct answers of their sub-task"
        return EvalResult(values, error, usage, None if chooses else answers, told if borrowed else "")

    def _doc(self, model: Any, place: int, question: Question, error: np.ndarray) -> dict[str, Any] | None:
        """A question as a row of the task's file; None, with the reason in `error`, where it cannot be one."""
        options = list(question.options)
        if not question.answer:
            error[place] = "has no answer"
        elif self.output_type == "multiple_choice" and question.answer not in options:
            error[place] = "has no options, or its answer is none of them"
        else:
            try:
                prompt = rendered(model.tokenizer, question.prompt(), model.choice.today, question.template_kwargs)
                return {"place": place, "prompt": prompt, "answers": golds(question), "options": options}
            except Unrenderable as why:
                error[place] = str(why)
        return None

    def task(self, file: str) -> Mapping[str, Any]:
        """The task's configuration, as the harness's YAML has it."""
        choose = {
            "doc_to_choice": "options",
            "doc_to_target": "{{options.index(answers[0])}}",
            "metric_list": [{"metric": _SCORES[self.by]}],
        }
        say = {
            "doc_to_target": "answers",
            "generation_kwargs": {"max_gen_toks": self.max_new_tokens, "do_sample": False, "until": []},
            "metric_list": [{"metric": "exact_match", "ignore_case": True}],
        }
        return {
            "task": "curate",
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": file}, "cache_dir": str(Path(file).parent)},
            "test_split": "test",
            "output_type": self.output_type,
            "doc_to_text": "{{prompt}}",
            "target_delimiter": "",
            **(choose if self.output_type == "multiple_choice" else say),
        }
