import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()


class ModelRegistryV2:
    def __init__(self): self.manifests = {}
    def register_manifest(self, manifest, *, overwrite=False): self.manifests[manifest.model_id] = manifest
    def get_model_class(self, name, force_simple=False):
        from lmms_eval.api.model import lmms
        module, _, made = self.manifests[name].chat_class_path.rpartition(".")
        cls = getattr(importlib.import_module(module), made)
        assert isinstance(cls, type) and issubclass(cls, lmms) and not cls.is_simple
        return cls
