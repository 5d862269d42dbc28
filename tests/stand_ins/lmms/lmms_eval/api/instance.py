from dataclasses import dataclass, field


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)
    task_name: str = None
    doc_id: int = None
    repeats: int = 1
    resps: list = field(default_factory=list)
    @property
    def args(self): return self.arguments
