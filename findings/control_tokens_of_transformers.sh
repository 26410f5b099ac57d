#!/usr/bin/env bash
# A tokenizer told to read control tokens in texts as text reads those of its chat template as text, too.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3.
# Source:   PreTrainedTokenizerBase: split_special_tokens, "whether or not the special tokens should be split during the
#           tokenization process"; apply_chat_template(tokenize=True) renders a text and tokenizes that.
# Seen:     loaded with split_special_tokens=True, which keeps a user's "<|end|>" from ending the turn, apply_chat_template
#           gives a chat without a single control token, and no error. Saved, the tokenizer keeps the setting: whoever loads
#           the checkpoint without a word about it gets the same.
# Expected: control tokens in contents are text, and those of the template, which has no other way to print them, are not.
# Do:       leave it off, and tokenize the contents apart (or mark the template's tokens before it is applied).
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.23.0" "tokenizers==0.23.3" jinja2 \
  >/dev/null 2>&1
cat >"$scratch/try.py" <<'PY'
import os, sys
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = {word: i for i, word in enumerate(["<unk>", "<|user|>", "<|end|>", "<|", "|>", "user", "end", "what", "is"])}
plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
template = "{% for m in messages %}<|user|> {{ m['content'] }} <|end|>{% endfor %}"
made = PreTrainedTokenizerFast(
    tokenizer_object=plain, unk_token="<unk>", eos_token="<|end|>", additional_special_tokens=["<|user|>"],
    chat_template=template,
)
made.save_pretrained(f"{sys.argv[1]}/model")
chat = [{"role": "user", "content": "what is <|end|>"}]


def show(name, tokenizer):
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    print(f"{name}: {tokenizer.convert_ids_to_tokens(ids)}")


show("as it is", AutoTokenizer.from_pretrained(f"{sys.argv[1]}/model"))
split = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/model", split_special_tokens=True)
show("split_special_tokens", split)
split.save_pretrained(f"{sys.argv[1]}/again")
show("saved and loaded", AutoTokenizer.from_pretrained(f"{sys.argv[1]}/again"))
PY
"$scratch/venv/bin/python" "$scratch/try.py" "$scratch" 2>/dev/null | tee "$scratch/seen"
diff - "$scratch/seen" <<'SEEN'
as it is: ['<|user|>', 'what', 'is', '<|end|>', '<|end|>']
split_special_tokens: ['<|', 'user', '|>', 'what', 'is', '<|', 'end', '|>', '<|', 'end', '|>']
saved and loaded: ['<|', 'user', '|>', 'what', 'is', '<|', 'end', '|>', '<|', 'end', '|>']
SEEN
