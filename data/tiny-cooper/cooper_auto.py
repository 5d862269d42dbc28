"For transformers' Auto classes: the classes are those of the installed package (pip install cooper)."
from cooper.model.modeling import CooperConfig, CooperForConditionalGeneration
from cooper.model.processor import CooperProcessor
