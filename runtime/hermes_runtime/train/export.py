"""How a trained model ships: a folder that AutoModel and AutoTokenizer load offline, and its manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from hermes_runtime.agents.prompts.line_repair import END, PAD
from hermes_runtime.train.recipe import Recipe
from hermes_runtime.train.tokenizer import save_tokenizer

MANIFEST = "manifest.json"


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe, folder: Path) -> str:
    """Write weights (float32, safetensors), configuration, tokenizer, manifest; return the tree digest."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, "cpu", torch.float32)
    model.generation_config = GenerationConfig.from_dict(
        {"eos_token_id": tokenizer.token_to_id(END), "pad_token_id": tokenizer.token_to_id(PAD)}
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder, recipe.context)
    return write_manifest(folder)


def write_manifest(folder: Path) -> str:
    """List every file of the folder but the manifest itself; return the tree digest (hex)."""
    files = [
        {
            "path": file.relative_to(folder).as_posix(),
            "size_bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.rglob("*"), key=lambda f: f.relative_to(folder).as_posix())
        if file.is_file() and file != folder / MANIFEST
    ]
    manifest = {"files": files, "licence": "Apache-2.0", "source": "bundled:repair", "dialect": "line_repair"}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
