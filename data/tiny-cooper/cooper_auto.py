"For transformers' Auto classes: the classes are those of the installed package, this repository."
from cooper.model.modeling import CooperConfig, CooperForConditionalGeneration
from cooper.model.processor import CooperProcessor
