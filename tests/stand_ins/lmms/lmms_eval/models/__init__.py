from .registry_v2 import ModelRegistryV2
MODEL_REGISTRY_V2 = ModelRegistryV2()
def get_model(name, force_simple=False): return MODEL_REGISTRY_V2.get_model_class(name, force_simple)
