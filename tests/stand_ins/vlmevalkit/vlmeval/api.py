import base64, io, json, logging, os, urllib.request
from pathlib import Path

from PIL import Image

from .smp import FAIL_MSG

logger = logging.getLogger("ChatAPI")


class LMDeployAPI:
    is_api = True
    def __init__(self, model, api_base, max_tokens, retry, local_media): self.model, self.api_base, self.max_tokens, self.retry, self.local = model, api_base, max_tokens, retry, local_media
    def url(self, path):
        if self.local: return f"file://{Path(path).resolve()}"
        file = io.BytesIO(); Image.open(path).convert("RGB").save(file, "JPEG")
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    def generate(self, message, dataset=None):
        content = [dict(type="text", text=m["value"]) if m["type"] == "text" else dict(type="image_url", image_url=dict(url=self.url(m["value"]))) for m in message]
        body = dict(model=self.model, messages=[dict(role="user", content=content)], n=1, max_tokens=self.max_tokens, temperature=0.0)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("LMDEPLOY_API_KEY", "sk-admin")}
        for _ in range(self.retry):
            try:
                with urllib.request.urlopen(urllib.request.Request(self.api_base, json.dumps(body).encode(), headers), timeout=300) as answer:
                    said = json.load(answer)["choices"][0]["message"]["content"].strip()
                if said: return said
            except OSError as e: logger.error(e)
        return FAIL_MSG


class OpenAIWrapper:
    "A judge: logs its key, as the real one does, and cannot be reached."
    def __init__(self): logger.info(f"Using API Base: {os.environ.get('OPENAI_API_BASE')}; API Key: {os.environ.get('OPENAI_API_KEY')}")
    def working(self): return False
