"A COOPER of a few thousand parameters, untrained, for tests that need one at once."
import torch
from PIL import Image

torch.set_num_threads(1)


def room(k, side=32):
    "A picture that differs from the next."
    return Image.radial_gradient("L").resize((side, side)).rotate(37 * k).convert("RGB")


def miniature(seed=0, scale=1.0, kv_heads=2, protocol={}):
    "Model and processor. `scale` > 1 makes its distributions less uniform; `protocol`: near, far and palette."
    from cooper.model.modeling import CooperForConditionalGeneration, preset
    from cooper.model.processor import CooperProcessor, tiny_protocol, train_tokenizer
    words = ["How many cubes are there?", "Which is closer?", "Which is larger?", "Answer. Think. Perceive. Cooperate. Look at the map."]
    protocol = tiny_protocol(**dict(near=0., far=12., palette={"background": (0, 0, 0), "cube": (255, 0, 0)}) | protocol)
    protocol["sampler"]["num_timesteps"] = 3
    processor = CooperProcessor(train_tokenizer(words * 2, vocab_size=288), protocol, clean=(32, 32, 8), vision=(32, 32, 8))
    small = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(seed)
    config = preset("tiny", text_config=dict(small, num_key_value_heads=kv_heads, vocab_size=300, rms_norm_eps=1e-6, max_position_embeddings=512),
                    vision_config=dict(small, patch_size=8, image_size=64), start_of_image=processor.start_of_image,
                    end_of_image=processor.end_of_image)
    model = CooperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in (*model.language_model.parameters(), *model.llm2vae.parameters()):
            if p.dim() > 1: p.mul_(scale)
        model.llm2vae.weight.normal_(std=.02, generator=torch.Generator().manual_seed(seed))
    return model, processor
