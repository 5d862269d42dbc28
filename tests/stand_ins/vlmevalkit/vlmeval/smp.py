import csv, mimetypes, os, pickle
from pathlib import Path

import pandas as pd
from PIL import Image

Image.MAX_IMAGE_PIXELS = 1e9
FAIL_MSG = "Failed to obtain answer via API."


def load_env(): pass
def LMUDataRoot(): return os.environ["LMUData"]
def pred_format(): return os.environ.get("PRED_FORMAT", "xlsx") or "xlsx"
def load(f): return pickle.load(open(f, "rb")) if str(f).endswith("pkl") else pd.read_csv(f, sep="\t")
def dump(data, f):
    if str(f).endswith("pkl"): pickle.dump(data, open(f, "wb"))
    else: data.to_csv(f, sep="\t", index=False, quoting=csv.QUOTE_ALL)


def parse_file(s):
    if os.path.exists(s) and s != ".": return mimetypes.types_map.get(Path(s).suffix.lower(), "unknown"), s
    return None, s
