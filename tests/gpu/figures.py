"""The figures that `prove` makes, in order of worth; and what is wanted of each. Needs nothing that is not Python's."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = {
    "a": "The limits",
    "b": "Agreement with one sample at a time on a CPU in float64",
    "c": "Forward scores, 1B, bfloat16",
    "d": "LESS's features, 1B, LoRA r = 128, 8,192 numbers",
    "e": "A training step, 1B",
    "f": "Out of memory",
    "g": "Gradient scores of all parameters",
    "h": "The index of vectors",
    "i": "A real model: SmolLM2-135M",
}


SPEEDS = "cdegh"  # parts whose bounds are of a GPU: in a rehearsal they bind nothing


@dataclass(frozen=True)
class Figure:
    """A figure: its name, whose first letter is the part; what it is; its unit; and the bound it should keep, if any.

    above: whether the bound is the least rather than the greatest.
    """

    name: str
    what: str
    unit: str = ""
    bound: float | None = None
    above: bool = False

    def holds(self, value: float, on: str = "cuda") -> bool | None:
        """Whether a value keeps the bound; None without one that binds on the device. What is no number does not."""
        if self.bound is None or (on == "cpu" and self.name[0] in SPEEDS):
            return None
        return value >= self.bound if self.above else value <= self.bound

    def goal(self) -> str:
        """The bound in words, '' if there is none."""
        if self.bound is None:
            return ""
        value = 100 * self.bound if self.unit == "%" else self.bound
        shown = "0" if value == 0 else f"{value:.0e}" if value < 1e-2 else f"{value:g}"
        return f"{'>=' if self.above else '<='} {shown}{'' if self.unit in ('', 'x') else ' '}{self.unit}"


def _near(name: str, what: str) -> Figure:
    return Figure(f"b.{name}", f"{what}: greatest difference over the greatest value, float32", "", 1e-4)


def _ranks(name: str, what: str, bound: float = 0.98) -> Figure:
    return Figure(f"b.{name}.bfloat16", f"{what}: Spearman, bfloat16", "", bound, above=True)


FIGURES = (
    Figure("a.products.bfloat16", "matrix products in bfloat16", "TFLOP/s"),
    Figure("a.products.float32", "matrix products in float32", "TFLOP/s"),
    Figure("a.copy", "copying on the device, bytes read and written", "GB/s"),
    _near("nll", "`nll`"),
    _near("entropy", "`entropy`"),
    _near("el2n", "`el2n`"),
    _near("embed_lm", "`embed_lm`"),
    _near("gradients.lora", "per-sample gradients of LoRA's matrices"),
    _near("gradients.all", "per-sample gradients of all parameters"),
    _near("graddot", "`graddot`"),
    Figure("b.projection", "the projection of whole numbers: how many of its numbers differ", "", 0),
    _near("less", "features of `less`"),
    _near("dualsft", "`dualsft`, its terms along v and the curvature"),
    _near("adapt", "weights of `adapt`"),
    Figure("b.choice", "`filter_then_weight`: how many candidates are chosen otherwise", "", 0),
    _near("weights", "`filter_then_weight`: weights of the chosen"),
    _near("masked", "five steps of AdamW on a mask: the numbers of the mask"),
    Figure("b.masked.rest", "five steps of AdamW on a mask: how many other numbers change", "", 0),
    _ranks("nll", "`nll`"),
    _ranks("entropy", "`entropy`"),
    _ranks("el2n", "`el2n`"),
    _ranks("graddot", "`graddot`"),
    _ranks("less", "numbers of `less`'s features", 0.98),
    Figure("c.share", "share of the rate of products in bfloat16, at 2N FLOPs a token", "%", 0.55, above=True),
    Figure("c.tokens", "`nll`, texts to scores", "tokens/s"),
    Figure("c.memory", "peak memory of the device", "GiB"),
    Figure("c.five", "`nll`, `entropy`, `el2n`, `embed_lm` and `nuclear` in one pass / `nll`", "x", 1.15),
    Figure("d.share", "share of the rate of products in bfloat16, at 4N FLOPs a token", "%", 0.35, above=True),
    Figure("d.tokens", "features of `less`, texts to vectors", "tokens/s"),
    Figure("d.forward", "share of the time: forward", "%"),
    Figure("d.backward", "share of the time: backward", "%"),
    Figure("d.projection", "share of the time: gradients, Adam's step, projection", "%"),
    Figure("d.authors", "batch 1 and a dense projection / curate", "x", 10, above=True),
    Figure("e.plain", "curate / a plain loop of Transformers", "x", 1.02),
    Figure("e.adapt", "`adapt` / uniform", "x", 1.02),
    Figure("e.share", "share of the rate of products in bfloat16, at 6N FLOPs a token", "%"),
    Figure("e.packed", "tokens a second in packed rows / in padded rows", "x"),
    Figure(
        "e.selection", "`filter_then_weight` / a plain step over the candidates, over its bound in FLOPs", "x", 1.05
    ),
    Figure("f.halved", "tokens of a batch afterwards / before", "x", 0.5),
    Figure("f.scored", "share of the samples that have a finite score", "%", 1, above=True),
    Figure("f.remembered", "how often memory ran out when scored again", "", 0),
    Figure("f.trained", "rows that go through the model at once in training, afterwards / before", "x", 0.5),
    Figure("g.dualsft", "`dualsft`'s pass over the data / a forward pass", "x", 2.5),
    Figure("g.influence", "`influence`'s pass over the data / a forward pass", "x"),
    Figure("h.search", "FAISS, 1,000 searches: CPU / GPU", "x", 1, above=True),
    Figure("i.tokens", "`nll` in bfloat16, texts to scores", "tokens/s"),
    Figure("i.bfloat16", "`nll`: Spearman of bfloat16 with float32", "", 0.99, above=True),
    Figure("i.float16", "`nll`: Spearman of float16 with float32", "", 0.99, above=True),
)
BY_NAME = {figure.name: figure for figure in FIGURES}
