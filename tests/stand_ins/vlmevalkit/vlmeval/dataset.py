import base64, os, string, warnings

import pandas as pd

from .api import OpenAIWrapper
from .smp import LMUDataRoot, dump, load


def can_infer(answer, choices):
    words = "".join(" " if c in ".()[],:;!*#{}" else c for c in answer).split()
    found = [c for c in choices if c in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5: return found[0]
    if not found and "Z" in words: return "Z"
    if len(answer) > 2*sum(len(str(v)) for v in choices.values()): return False
    inside = [c for c, text in choices.items() if str(text).lower() in answer.lower()]
    return inside[0] if len(inside) == 1 else False


class CustomMCQDataset:
    TYPE, MODALITY = "MCQ", "IMAGE"
    def __init__(self, name):
        self.dataset_name, self.data = name, load(os.path.join(LMUDataRoot(), f"{name}.tsv"))
        index = [str(x) for x in self.data["index"]]
        self.data["index"] = [int(x) for x in index] if all(x.isdecimal() for x in index) else index
    @property
    def rows(self): return self.data.to_dict("records")
    def dump_image(self, row):
        if "image" not in row: return row["image_path"]
        path = os.path.join(LMUDataRoot(), "images", self.dataset_name, f"{row['index']}.png")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f: f.write(base64.b64decode(row["image"]))
        return path
    def choices(self, row): return {c: row[c] for c in string.ascii_uppercase if c in row and not pd.isna(row[c])}
    def build_prompt(self, row):
        options = "".join(f"{c}. {text}\n" for c, text in self.choices(row).items())
        return [dict(type="image", value=self.dump_image(row)),
                dict(type="text", value=f"Question: {row['question']}\nOptions:\n{options}Please select the correct answer from the options above. \n")]
    def evaluate(self, eval_file, model="exact_matching", nproc=1, **judge):
        if model != "exact_matching" and not OpenAIWrapper().working(): warnings.warn("OPENAI API is not working properly, will use exact matching for evaluation")
        data = load(eval_file)
        data["hit"] = [float((can_infer(str(r["prediction"]), self.choices(r)) or "Z") == r["answer"]) for r in data.to_dict("records")]
        dump(data, eval_file.replace(".tsv", f"_{model}_result.tsv"))
        told = pd.DataFrame([dict(split="none", Overall=data["hit"].mean()) | data.groupby("category")["hit"].mean().to_dict()])
        told.to_csv(eval_file.replace(".tsv", "_acc.csv"), index=False)
        return told


def build_dataset(name): return CustomMCQDataset(name)
