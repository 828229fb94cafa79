"""Tiny random models of the families that HERMES is asked to serve, in folders.

A family here is an architecture with what is particular about it: windows, shared keys and values,
mixtures of experts, sinks. Sizes are the smallest at which each part is there more than once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_runtime.models.tree import write_manifest
from tests.contract import tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONTEXT_TOKENS = 1024
WINDOW_TOKENS = 24
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture, and how a tiny one of it is made."""

    name: str
    particular: str
    """What a cache that is forked must get right, or "" where it is plain attention."""
    config: Callable[[dict[str, Any]], PreTrainedConfig]


def _config(class_name: str, **own: object) -> Callable[[dict[str, Any]], PreTrainedConfig]:
    def make(shared: dict[str, Any]) -> PreTrainedConfig:
        import transformers

        made: PreTrainedConfig = getattr(transformers, class_name)(**shared | own)
        return made

    return make


_GEMMA_4 = {
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": WINDOW_TOKENS,
    "head_dim": 12,
    "global_head_dim": 24,
    "hidden_size_per_layer_input": 0,
}

FAMILIES = (
    Family(name="Llama", particular="", config=_config("LlamaConfig")),
    Family(name="Qwen2", particular="", config=_config("Qwen2Config")),
    Family(name="Qwen3", particular="", config=_config("Qwen3Config", head_dim=12)),
    Family(
        name="Mistral",
        particular="every layer sees a window",
        config=_config("MistralConfig", sliding_window=WINDOW_TOKENS),
    ),
    Family(name="Phi3", particular="", config=_config("Phi3Config")),
    Family(
        name="Gemma 3 (text)",
        particular="windows beside full attention",
        config=_config(
            "Gemma3TextConfig",
            num_hidden_layers=4,
            layer_types=[SLIDING, SLIDING, FULL, SLIDING],
            sliding_window=WINDOW_TOKENS,
            head_dim=12,
            query_pre_attn_scalar=12,
        ),
    ),
    Family(
        name="Gemma 4 (dense)",
        particular="windows; heads of two sizes",
        config=_config("Gemma4TextConfig", **_GEMMA_4),
    ),
    Family(
        name="Gemma 4 (like E2B)",
        particular="windows; layers that share keys and values; an embedding for each layer",
        config=_config(
            "Gemma4TextConfig",
            **_GEMMA_4
            | {
                "num_hidden_layers": 6,
                "layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
                "num_kv_shared_layers": 2,
                "hidden_size_per_layer_input": 8,
                "use_double_wide_mlp": True,
            },
        ),
    ),
    Family(
        name="Gemma 4 (mixture of experts)",
        particular="windows; 2 of 4 experts for each token",
        config=_config(
            "Gemma4TextConfig",
            **_GEMMA_4
            | {
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 24,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 1,
            },
        ),
    ),
    Family(
        name="gpt-oss",
        particular="windows; sinks; 2 of 4 experts for each token",
        config=_config(
            "GptOssConfig",
            num_hidden_layers=4,
            sliding_window=WINDOW_TOKENS,
            head_dim=12,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
    ),
)

STATE_SPACE = Family(
    name="Mamba", particular="a state, and no keys and values", config=_config("MambaConfig", state_size=4)
)


def write(folder: Path, family: Family, *, seed: int = 0) -> Path:
    """Make the model's folder, with its manifest."""
    import torch
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True)
    words = tiny_model.tokenizer()
    words.save_pretrained(folder)
    shared: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": None,
    }
    if family.name.startswith("Gemma 4"):
        shared["vocab_size_per_layer_input"] = len(words)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family.config(shared), dtype=torch.float32)
    model.save_pretrained(folder, safe_serialization=True)
    write_manifest(folder, licence="Apache-2.0", source="test", dialect="chat")
    return folder
