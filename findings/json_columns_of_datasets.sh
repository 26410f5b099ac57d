#!/usr/bin/env bash
# datasets 5.2.0: fractions in objects are rounded to ten decimals where rows differ in their keys.
#
# Since datasets 4.7 a column of objects whose keys differ from row to row is read as `Json` instead of a struct, which
# tool calls and their arguments need. Its values are encoded by pandas' ujson, whose default precision is ten decimals:
# 1e-12 becomes 0.0, and 0.1234567890123456 becomes 0.12345678900000001, without a word. The same file with equal keys in
# every row is read exactly, so a number changes when another row is added. Dataset.from_list with a Json feature does the
# same. Who trains on arguments such as tolerances, prices of tokens or coordinates learns other numbers than are in the
# file; keep such objects as JSON text in a string column, and decode them oneself.
#
# Source: datasets/features/features.py (class Json), datasets/utils/json.py (ujson_dumps) of the release 5.2.0.
# Seen: struct [1e-12]; mixed keys [0.0, 0.12345678900000001]; from_list [0.0]
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 >/dev/null 2>&1
cd "$scratch"
HF_DATASETS_OFFLINE=1 HF_HOME="$scratch/home" "$scratch/venv/bin/python" - <<'PY'
import json

import datasets

datasets.disable_progress_bars()


def read(name, rows):
    with open(f"{name}.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    data = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train", cache_dir=f"cache-{name}")
    return data["arguments"][:]


small = {"arguments": {"tolerance": 1e-12}}
long = {"arguments": {"share": 0.1234567890123456}}
alike, mixed = read("alike", [small, small]), read("mixed", [small, long])
features = datasets.Features({"arguments": datasets.Json()})
listed = datasets.Dataset.from_list([small], features=features)["arguments"][:]
print("datasets", datasets.__version__)
print("equal keys:", alike)
print("mixed keys:", mixed)
print("from_list with Json:", listed)
assert alike == [small["arguments"]] * 2
assert mixed == [{"tolerance": 0.0}, {"share": 0.12345678900000001}]
assert listed == [{"tolerance": 0.0}]
PY
