#!/usr/bin/env bash
# A tokenizer that transformers 5 saved is not loaded by transformers 4.
#
# Versions: transformers 5.0.0 writes, 4.57.1 reads.
# Source:   tokenizer_config.json has "tokenizer_class": "TokenizersBackend", the name of a class of version 5.
# Seen:     AutoTokenizer of 4.57.1 raises ValueError: Tokenizer class TokenizersBackend does not exist or is not currently
#           imported. The file tokenizer.json beside it is read by both.
# Expected: a tokenizer.json with its configuration is loaded, as one that 4.57.1 saved is by 5.0.0. Whoever fine-tunes with
#           version 5 finds it out when a server, a trainer or an evaluation that still has version 4 opens the checkpoint.
# Do:       write "PreTrainedTokenizerFast" there; both versions load that.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for version in 5.0.0 4.57.1; do
  python3 -m venv "$scratch/$version"
  "$scratch/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" >/dev/null 2>&1
done
cat >"$scratch/write.py" <<'PY'
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(sys.argv[1])
PY
cat >"$scratch/read.py" <<'PY'
import json, os, sys
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import transformers

config = json.load(open(f"{sys.argv[1]}/tokenizer_config.json"))
try:
    ids = transformers.AutoTokenizer.from_pretrained(sys.argv[1])("a b")["input_ids"]
except ValueError as error:
    ids = f"ValueError: {str(error).strip().splitlines()[0]}"
print(f"{config['tokenizer_class']} read by transformers {transformers.__version__}: {ids}")
PY
{
  "$scratch/5.0.0/bin/python" "$scratch/write.py" "$scratch/new" 2>/dev/null
  "$scratch/4.57.1/bin/python" "$scratch/write.py" "$scratch/old" 2>/dev/null
  "$scratch/4.57.1/bin/python" "$scratch/read.py" "$scratch/new" 2>/dev/null
  "$scratch/5.0.0/bin/python" "$scratch/read.py" "$scratch/old" 2>/dev/null
  sed -i 's/TokenizersBackend/PreTrainedTokenizerFast/' "$scratch/new/tokenizer_config.json"
  for version in 5.0.0 4.57.1; do "$scratch/$version/bin/python" "$scratch/read.py" "$scratch/new" 2>/dev/null; done
} | tee "$scratch/seen"
diff - "$scratch/seen" <<'SEEN'
TokenizersBackend read by transformers 4.57.1: ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported.
PreTrainedTokenizerFast read by transformers 5.0.0: [1, 2]
PreTrainedTokenizerFast read by transformers 5.0.0: [1, 2]
PreTrainedTokenizerFast read by transformers 4.57.1: [1, 2]
SEEN
