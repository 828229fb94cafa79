"""One trial: a tiny random model loaded as a real one would be, compared with float32, in this process.

Decided here: what counts as right. Started by `probe.py` and by nobody else, for it may well crash; the
answer is the last line that it prints. The model is written into the working folder, which the parent
removes.
"""

from __future__ import annotations

import argparse
import os
import platform as host_platform
import signal
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec, weights
from hermes_runtime.models.platform import Choice, Platform, Result, platform_of
from hermes_runtime.models.probe import Told, cpu_flags
from hermes_runtime.supervise.parent import die_with_parent

LIKENESS_MIN = {
    Choice.FLOAT32: 0.9999,
    Choice.BFLOAT16: 0.99,
    Choice.FLOAT16: 0.99,
    Choice.INT8: 0.97,
    Choice.NF4: 0.6,
}
"""Least cosine between the logits and those of float32 on the CPU; below it something else is computed.

Random weights suffer most from rounding: four bits leave 0.84 of them. Unrelated logits are at about 0.
"""

_TOKENS = 16


def run(device: torch.device, choice: Choice, folder: Path) -> Told:
    """Write a tiny model to `folder`, load it as `choice`, and compare."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # half typed
    torch.use_deterministic_algorithms(True)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    plain = LlamaForCausalLM(config)
    plain.train(False)
    plain.save_pretrained(folder)
    prompt = torch.arange(_TOKENS)[None] * 7 % 256
    platform = platform_here(device)
    try:
        with torch.inference_mode():
            expected: Tensor = plain(prompt).logits
            spec = ModelSpec(
                backend=Backend.TRANSFORMERS,
                path=folder,
                dtype=choice.dtype,
                quantization=choice.quantization,
            )
            model = weights.load(spec, device)
            model.train(False)
            found: Tensor = model(prompt.to(device)).logits.float().cpu()
            model.generate(prompt.to(device), max_new_tokens=_TOKENS, do_sample=False, pad_token_id=0)  # type: ignore[operator]  # half typed
        size_bytes = weights.held(model).weight_bytes
    except (errors.HermesError, ImportError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        words = str(error) if isinstance(error, errors.HermesError) else f"{type(error).__name__}: {error}"
        return Told(platform=platform, result=Result.REFUSED, detail=words[:500], weight_bytes=0)
    likeness = float(torch.nn.functional.cosine_similarity(found, expected, dim=-1).min())
    right = likeness >= LIKENESS_MIN[choice]  # never true of a NaN
    return Told(
        platform=platform,
        result=Result.OK if right else Result.WRONG,
        detail=f"likeness to float32 {likeness:.4f}",
        weight_bytes=size_bytes,
    )


def platform_here(device: torch.device) -> Platform:
    """The platform of a device of this process."""
    is_cuda = device.type == "cuda"
    return platform_of(
        str(device),
        machine=host_platform.machine(),
        cpu_flags=cpu_flags(),
        capability=torch.cuda.get_device_capability(device) if is_cuda else None,
        is_hip=torch.version.hip is not None,
    )


def main() -> None:
    """Try, and print how it went."""
    parser = argparse.ArgumentParser(description="One trial; started by hermes, not by hand.")
    parser.add_argument("--device", required=True)
    parser.add_argument("--choice", required=True, type=Choice)
    parser.add_argument("--parent", required=True, type=int, help="process id of who waits for it")
    given = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != given.parent:  # it died before the kernel was asked
        os._exit(1)
    print(run(torch.device(given.device), given.choice, Path.cwd()).model_dump_json())


if __name__ == "__main__":
    main()
