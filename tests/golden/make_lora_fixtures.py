"""Record what diffusers' LatteTransformer3DModel computes with a LoRA of peft, and what its pipeline takes.

The latter are the names of its arguments, and what it makes of captions.

Needs PyTorch, diffusers, peft, beautifulsoup4 and ftfy; run by hand: `python tests/golden/make_lora_fixtures.py`. The
weights are those of tests/fixtures/latte_t2v.
"""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import torch
from diffusers import LattePipeline, LatteTransformer3DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CAPTIONS = [
    "A dog, running on the beach!",
    "  Two   cats &amp; a <b>bird</b> ",
    "see https://example.com/a?b=c or www.example.org for more",
    "photo by @someone (#123) IMG_1234.jpg 1920x1080",
    "it’s a “quoted” word – and a dash… done...",
    "this-is-a-very-long-name with_under_scores",
    "free shipping worldwide! click here for more",
    "一只猫 on the roof",
    "\u00c3\u00a9t\u00c3\u00a9 at night; ***SALE*** [best] {price}",
    "<person> walks 12 km at 10.0.0.1, 1234567 steps, jc6640 a1b2c3",
    "page 12 of the story . with spaces",
    "'quoted all over'",
    "download free image png",
]


def main() -> None:
    """Write tests/fixtures/lora: a peft folder, the same as a file of diffusers, outputs, and captions."""
    torch.manual_seed(0)
    net = LatteTransformer3DModel.from_pretrained(FIXTURES / "latte_t2v" / "transformer").eval()
    x, text, t = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 9, 32), torch.tensor([321])
    arrays = {}
    with torch.no_grad():
        arrays["plain"] = net(x, t, text).sample
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0", "net.2"])
        net = get_peft_model(net, config)
        for name, weight in net.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3)
        arrays["adapted"] = net(x, t, text).sample
        net.save_pretrained(FIXTURES / "lora" / "peft")
        (FIXTURES / "lora" / "peft" / "README.md").unlink(missing_ok=True)
        settings = {"transformer.r": 4, "transformer.lora_alpha": 6, "transformer.use_rslora": False}
        tensors = {
            name.replace("base_model.model.", "transformer.").replace(".default.", "."): weight.contiguous()
            for name, weight in net.state_dict().items()
            if "lora_" in name
        }
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
        save_file(tensors, FIXTURES / "lora" / "pytorch_lora_weights.safetensors", metadata)
    video = {key: value.transpose(1, 2) for key, value in {"x": x, **arrays}.items()} | {"t": t, "text": text}
    np.savez_compressed(
        FIXTURES / "lora" / "recorded.npz", **{key: value.contiguous().numpy() for key, value in video.items()}
    )
    loading = LattePipeline.from_pretrained
    names = {
        "call": list(inspect.signature(LattePipeline.__call__).parameters)[1:],
        "from_pretrained": sorted(
            {*re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(loading))}
            | {*re.findall(r"^            (\w+) \(`", loading.__doc__ or "", re.MULTILINE)} - {"kwargs"}
        ),
    }
    (FIXTURES / "lora" / "arguments.json").write_text(json.dumps(names, indent=1) + "\n")
    pipe = LattePipeline.__new__(LattePipeline)  # cleaning needs no network
    cleaned = {text: pipe._text_preprocessing(text, clean_caption=True)[0] for text in CAPTIONS}
    (FIXTURES / "lora" / "captions.json").write_text(json.dumps(cleaned, indent=1) + "\n")


if __name__ == "__main__":
    main()
