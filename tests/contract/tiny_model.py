"""A model small enough for a test: a random Llama with a byte-level BPE tokenizer, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hermes_runtime.models.tree import write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT_TOKENS = 256
CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "for item in items:\n    total += item.price\n",
    "assert add(1, 2) == 3, 'three'\n",
    "if value is None:\n    raise ValueError('no value')\n",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(*, chat: bool = True, merges: int = 60) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few lines of code; every text is some tokens of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<end>", "<L0>", "<L1>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(special) + len(alphabet) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 4, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def write(folder: Path, *, chat: bool = True, seed: int = 0, merges: int = 60) -> Path:
    """Make the model's folder, with its manifest. The same arguments give the same bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    words = tokenizer(chat=chat, merges=merges)
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    write_manifest(folder, licence="Apache-2.0", source="test", dialect="line_repair")
    return folder
