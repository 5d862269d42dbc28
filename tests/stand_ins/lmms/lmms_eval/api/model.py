import abc


class lmms(abc.ABC):
    is_simple = True
    def __init__(self): self._rank, self._world_size, self.task_dict = 0, 1, {}
    @abc.abstractmethod
    def loglikelihood(self, requests): ...
    @abc.abstractmethod
    def generate_until(self, requests): ...
    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...
    @classmethod
    def create_from_arg_string(cls, arguments, more=None):
        def value(text):
            try: return int(text)
            except ValueError: return text
        return cls(**{k: value(v) for k, _, v in (a.partition("=") for a in arguments.split(",") if a)}, **{k: v for k, v in (more or {}).items() if v is not None})
    def clean(self): raise AssertionError("the real one deletes every module of the model")
