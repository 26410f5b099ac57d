from __future__ import annotations

import importlib
import io
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from curate.errors import CurateError, require
from curate.kinds.metric import EvalResult, Metric, Question
from curate.models.flops import FORWARD, counted, forward_flops, paper_flops
from curate.models.tokens import Unrenderable, rendered


@dataclass(frozen=True)
class LmEval(Metric):
    """The questions as a local task of lm-evaluation-harness, scored by its own code.

    Formula: its `acc` for output_type=multiple_choice (the options' log-likelihood), its `exact_match` for
    output_type=generate_until, with the filters of its default pipeline (none).

    The prompts follow the model's own template; the harness adds nothing to them, and tokenises them itself, so that
    control tokens in a question's text are parsed, whatever model.special_tokens says. Needs the extra `lm-eval`
    (pip install "curate-lm[lm-eval]").

    Cost: a forward pass for every option, or for the prompt and every generated token; estimated as if each went
    through the model alone, without padding.

    Reference: https://github.com/EleutherAI/lm-evaluation-harness.

    >>> LmEval().task("doc.jsonl")["output_type"]
    'multiple_choice'
    """

    output_type: Literal["multiple_choice", "generate_until"] = "multiple_choice"
    """Choose among the options; or generate the answer, which must match the right one exactly."""
    max_new_tokens: int = 64
    """Maximum number of tokens to generate."""

    def __post_init__(self) -> None:
        require(f"lm_eval.max_new_tokens={self.max_new_tokens}", self.max_new_tokens > 0, "above 0")

    def evaluate(self, model: Any, questions: Sequence[Question]) -> EvalResult:
        values, error = np.full(len(questions), np.nan), np.full(len(questions), "", object)
        docs = [self._doc(model, i, question, error) for i, question in enumerate(questions)]
        usage, answers = model.usage(), [""] * len(questions)
        if usable := [doc for doc in docs if doc]:
            with counted(usage, model.choice.count_flops):
                samples = self._run(model, usable)
            for sample in samples:
                i = sample["doc"]["place"]
                self._charge(model, usage, sample)
                values[i] = float(sample["acc" if self.output_type == "multiple_choice" else "exact_match"])
                answers[i] = str(sample["filtered_resps"][0]) if self.output_type == "generate_until" else ""
        return EvalResult(values, error, usage, answers if self.output_type == "generate_until" else None)

    def _charge(self, model: Any, usage: Any, sample: dict[str, Any]) -> None:
        doc = sample["doc"]
        ends = doc["options"] if self.output_type == "multiple_choice" else [str(sample["filtered_resps"][0])]
        for end in ends:
            n = len(model.tokenizer(doc["prompt"] + end, add_special_tokens=False)["input_ids"])
            usage.tokens, usage.padded_tokens = usage.tokens + n, usage.padded_tokens + n
            usage.flops += forward_flops(model.model, 1, n, n)
            usage.flops_paper += paper_flops(FORWARD, model.n_params, 1)

    def _doc(self, model: Any, place: int, question: Question, error: np.ndarray) -> dict[str, Any] | None:
        """A question as a line of the task's file; None, with the reason in `error`, where it cannot be one."""
        options = list(question.options)
        if not question.answer:
            error[place] = "has no answer"
        elif self.output_type == "multiple_choice" and question.answer not in options:
            error[place] = "has no options, or its answer is none of them"
        else:
            try:
                prompt = rendered(model.tokenizer, question.prompt(), model.choice.today, question.template_kwargs)
                return {"place": place, "prompt": prompt, "answer": question.answer, "options": options}
            except Unrenderable as why:
                error[place] = str(why)
        return None

    def task(self, file: str) -> Mapping[str, Any]:
        """The task's configuration, as the harness's YAML has it."""
        choose = {
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{options.index(answer)}}",
            "metric_list": [{"metric": "acc"}],
        }
        say = {
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"max_gen_toks": self.max_new_tokens, "do_sample": False, "until": ["\n\n"]},
            "metric_list": [{"metric": "exact_match"}],
        }
        return {
            "task": "curate",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": file}, "cache_dir": str(Path(file).parent)},
            "test_split": "test",
            "output_type": self.output_type,
            "doc_to_text": "{{prompt}}",
            "target_delimiter": "",
            **(choose if self.output_type == "multiple_choice" else say),
        }

    def _run(self, model: Any, docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            names = ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
            library, models, tasks = (cast(Any, importlib.import_module(name)) for name in names)
        except ImportError as error:
            raise CurateError(f'lm_eval needs the extra: pip install "curate-lm[lm-eval]" ({error}).') from None
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="curate-") as folder, redirect_stderr(io.StringIO()):  # its many bars
            file = Path(folder) / "docs.jsonl"
            file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
            (Path(folder) / "curate.yaml").write_text(
                json.dumps(self.task(str(file))), encoding="utf-8"
            )  # JSON is YAML
            harness = models.HFLM(
                pretrained=model.model,
                tokenizer=model.tokenizer,
                batch_size=8,
                max_length=model.context,
                add_bos_token=False,
            )
            results = library.simple_evaluate(
                harness,
                tasks=["curate"],
                task_manager=tasks.TaskManager(include_path=folder, include_defaults=False),  # else it reads thousands
                log_samples=True,
                bootstrap_iters=0,
            )
        return results["samples"]["curate"]
