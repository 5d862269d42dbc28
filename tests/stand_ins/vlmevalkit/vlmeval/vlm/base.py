from abc import abstractmethod

from ..smp import parse_file


class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image", "video"]
    def __init__(self): self.dump_image_func = None
    def use_custom_prompt(self, dataset): return False
    @abstractmethod
    def generate_inner(self, message, dataset=None): raise NotImplementedError
    def generate(self, message, dataset=None):
        for item in message:
            mime, value = parse_file(item["value"])
            if mime is None: assert item["type"] == "text"
            else:
                assert mime.split("/")[0] == item["type"]
                item["value"] = value
            assert item["type"] in self.allowed_types, f"Invalid input type: {item['type']}"
        return self.generate_inner(message, dataset)
