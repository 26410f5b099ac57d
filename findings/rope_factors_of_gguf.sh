#!/usr/bin/env bash
# A GGUF file of Llama 3.1 or later is loaded by transformers with other rotary frequencies than the model was trained with.
#
# Versions: transformers 5.23.0, gguf 0.19.0.
# Source:   llama.cpp's convert_hf_to_gguf.py: for rope_type "llama3" it writes a tensor, rope_freqs.weight, by which the
#           frequencies are divided, and none of the settings (factor, low_freq_factor, …) that it follows from; transformers'
#           modeling_gguf_pytorch_utils: a tensor whose name has no place in the model is skipped.
# Seen:     rope_parameters is {'rope_type': 'default'}, the frequencies are those of Llama 3.0, nothing is said, not even
#           in output_loading_info. Every position is rotated otherwise; a text of 2,000 tokens shows it more than one of 50.
# Expected: the frequencies divided by the tensor, or an error.
# Do:       set config.rope_parameters to those of the original config.json before scoring or training.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.23.0" "gguf==0.19.0" "torch==2.13.0" \
  numpy accelerate >/dev/null 2>&1
cat >"$scratch/try.py" <<'PY'
import os, sys
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

SIZE, HEADS, BASE, FACTOR = 32, 2, 500_000.0, 8.0
frequencies = BASE ** -(np.arange(0, SIZE // HEADS, 2) / (SIZE // HEADS))
lengths = 2 * np.pi / frequencies
blend = (8192 / lengths - 1) / 3
factors = np.where(lengths < 2048, 1, np.where(lengths > 8192, FACTOR, 1 / ((1 - blend) / FACTOR + blend)))


def write(path, with_factors):
    dice, tokens = np.random.default_rng(0), ["<s>", *map(chr, range(33, 126))]
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(131072); w.add_embedding_length(SIZE); w.add_block_count(1); w.add_feed_forward_length(64)
    w.add_head_count(HEADS); w.add_head_count_kv(HEADS); w.add_layer_norm_rms_eps(1e-5); w.add_vocab_size(len(tokens))
    w.add_rope_freq_base(BASE); w.add_rope_dimension_count(SIZE // HEADS)
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("llama-bpe"); w.add_token_list(tokens)
    w.add_token_types([3] + [1] * (len(tokens) - 1)); w.add_token_merges(["a b"]); w.add_bos_token_id(0)
    shapes = {"token_embd": (len(tokens), SIZE), "output": (len(tokens), SIZE), "blk.0.ffn_down": (SIZE, 64)}
    shapes |= {f"blk.0.{n}": (SIZE, SIZE) for n in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{n}": (64, SIZE) for n in ("ffn_gate", "ffn_up")}
    for name, shape in shapes.items():
        w.add_tensor(f"{name}.weight", dice.normal(size=shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        w.add_tensor(f"{name}.weight", np.ones(SIZE, np.float32))
    if with_factors:
        w.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


found, ids = [], torch.arange(2000)[None] % 90
for name in ("without", "with"):
    write(f"{sys.argv[1]}/{name}.gguf", name == "with")
    model, report = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], gguf_file=f"{name}.gguf", dtype=torch.float32, output_loading_info=True
    )
    with torch.inference_mode():
        found.append(model(input_ids=ids).logits)
    said = {key: sorted(value) for key, value in report.items() if value}
    print(f"{name} rope_freqs.weight: {model.config.rope_parameters['rope_type']}, said: {said}")
    stretched = float((model.model.rotary_emb.inv_freq[-1] / frequencies[-1]).item())
    print(f"  last frequency: {stretched:.3f} of the unstretched one; the file asks for {1 / FACTOR if name == 'with' else 1:.3f}")
print(f"the same logits: {torch.equal(*found)}")
PY
"$scratch/venv/bin/python" "$scratch/try.py" "$scratch" 2>/dev/null | tee "$scratch/seen"
diff - "$scratch/seen" <<'SEEN'
without rope_freqs.weight: default, said: {}
  last frequency: 1.000 of the unstretched one; the file asks for 1.000
with rope_freqs.weight: default, said: {}
  last frequency: 1.000 of the unstretched one; the file asks for 0.125
the same logits: True
SEEN
