import importlib, importlib.util, os
from pathlib import Path

import datasets, yaml

from lmms_eval.api.instance import Instance


def function(folder):
    def find(loader, node):
        module, _, name = loader.construct_scalar(node).rpartition(".")
        file = folder/f"{module}.py"
        if not file.exists(): return getattr(importlib.import_module(module), name)
        spec = importlib.util.spec_from_file_location(module, file)
        made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)
        return getattr(made, name)
    return find


def load_yaml(path, full=True):
    class Loader(yaml.FullLoader): pass
    Loader.add_constructor("!function", function(Path(path).parent) if full else lambda loader, node: node)
    found = yaml.load(Path(path).read_text(), Loader)
    if "include" in found: found = load_yaml(Path(path).parent/found.pop("include"), full) | found
    files = found.get("dataset_kwargs", {}).get("data_files")
    return found | (dict(dataset_kwargs=dict(data_files={k: str(Path(path).parent/v) for k, v in files.items()})) if files else {})


class TaskManager:
    def __init__(self, verbosity="INFO", include_path=None, include_defaults=True, model_name=None):
        files = [p for p in Path(include_path).rglob("*.yaml")]
        self.task_index = {load_yaml(p, full=False)["task"]: p for p in files}
        self.all_tasks = sorted(self.task_index)


class ConfigurableMessagesTask:
    def __init__(self, config):
        self.config, self.split = config, config["test_split"]
        for _ in range(5): # the real one tries as often, two seconds apart
            try: self.download(); break
            except Exception as e: why = e
        else: raise RuntimeError("RetryError") from why
    def download(self):
        self.dataset = datasets.load_dataset(self.config["dataset_path"], cache_dir=os.environ.get("HF_DATASETS_CACHE"), **self.config["dataset_kwargs"])
        if "process_docs" in self.config: self.dataset[self.split] = self.config["process_docs"](self.dataset[self.split])
    def doc_to_messages(self, doc):
        if "doc_to_messages" in self.config: return self.config["doc_to_messages"](doc)
        return [dict(role="user", content=[*[dict(type="image", url=v) for v in self.config["doc_to_visual"](doc)], dict(type="text", text=self.config["doc_to_text"](doc))])]
    def requests(self, limit):
        options = dict(until=["\n\n"], do_sample=False) | self.config.get("generation_kwargs", {})
        return [Instance("generate_until", ("", self.doc_to_messages, dict(options), n, self.config["task"], self.split), 0, task_name=self.config["task"], doc_id=n)
                for n in range(min(limit or 10**9, len(self.dataset[self.split])))]
