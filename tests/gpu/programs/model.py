"""A language model of Qwen3-0.6B's shape with random weights: `generate N` → the tokens; `tidy` → empty_cache.

The shape is that model's published config.json; random weights take the same memory and time as trained ones.
"""

from __future__ import annotations

import time

import torch
from answering import answer_forever
from transformers import Qwen3Config, Qwen3ForCausalLM

CONFIG = Qwen3Config(
    hidden_size=1024,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=3072,
    vocab_size=151936,
    tie_word_embeddings=True,
)
torch.manual_seed(3)
with torch.device("cuda"):
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(CONFIG).eval()
context = torch.arange(1, 33, device="cuda")[None]


@torch.no_grad()
def generate(count: str) -> str:
    global context
    begin = time.perf_counter()
    context = model.generate(context, max_new_tokens=int(count), do_sample=False, pad_token_id=0, eos_token_id=None)
    tokens = context[0, -int(count) :].tolist()
    return f"{time.perf_counter() - begin:.3f} {tokens}"


def tidy() -> str:
    torch.cuda.empty_cache()
    return str(torch.cuda.memory_reserved())


answer_forever(generate=generate, tidy=tidy)
