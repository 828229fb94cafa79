"""`hermes model`: serve, verify, list, remove, probe, describe in a manifest, pull, make."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from hermes_runtime.cli.parser import Commands, noun, verb
from hermes_runtime.supervise.seal import seal


def add(commands: Commands) -> None:
    """Add `model`."""
    verbs = noun(commands, "model", "The model process and the models' files.")
    serve = verb(
        verbs,
        "serve",
        "Serve one model on a Unix socket until SIGTERM.",
        _serve,
        example="hermes model serve --path repair --socket model.sock",
    )
    serve.add_argument("--path", required=True, help="name of a bundled model, a folder, or a script")
    serve.add_argument("--socket", type=Path, required=True, help="where to serve")
    serve.add_argument("--backend", default="transformers", choices=["transformers", "scripted"])
    serve.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps", "xpu"])
    serve.add_argument("--quantization", default="none", choices=["none", "int8", "nf4"])
    serve.add_argument("--context-tokens", type=int, default=1024, help="longest prompt plus completion")
    serve.add_argument("--slots", type=int, default=64, help="most completions decoded at once")
    serve.add_argument("--threads", type=int, default=0, help="CPU threads; 0 lets torch choose")
    serve.add_argument("--seal", action="store_true", help="first of all, give up all but Unix sockets")
    serve.add_argument("--ready-file", type=Path, help="file that is there once the model decoded a token")
    serve.add_argument("--end-with-parent", action="store_true", help="end when standard input does")

    verify = verb(
        verbs,
        "verify",
        "Compare every file of a model with its manifest.",
        _verify,
        example="hermes model verify repair",
    )
    verify.add_argument("path", help="name of a bundled model or of one in the cache, or a folder")
    verify.add_argument("--json", action="store_true", help="the result as JSON")
    listing = verb(
        verbs,
        "list",
        "List the models that ship with HERMES, and those in the cache.",
        _list,
        example="hermes model list",
    )
    listing.add_argument("--json", action="store_true", help="the models as JSON")
    remove = verb(
        verbs,
        "rm",
        "Remove a model from the cache; who has it loaded keeps it.",
        _remove,
        example="hermes model rm Qwen/Qwen2.5-Coder-0.5B-Instruct",
    )
    remove.add_argument("name", help="owner/name; with @ and the commit's first digits where there are more")
    probe = verb(
        verbs,
        "probe",
        "Try every type and quantization on this host, each in a process of its own; remembered.",
        _probe,
        example="hermes model probe",
    )
    probe.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps", "xpu"])
    probe.add_argument("--again", action="store_true", help="try again what is remembered")
    probe.add_argument("--json", action="store_true", help="the answers as JSON")
    manifest = verb(
        verbs,
        "manifest",
        "Write the manifest of a folder whose bytes you vouch for.",
        _manifest,
        example="hermes model manifest models/mine --licence Apache-2.0",
    )
    manifest.add_argument("path", type=Path, help="folder of a Hugging Face model with safetensors")
    manifest.add_argument("--licence", default="", help="SPDX name of its licence")
    manifest.add_argument("--dialect", default="chat", choices=["chat", "line_repair"])
    pull = verb(
        verbs,
        "pull",
        "Fetch one commit of a model from the Hugging Face Hub, verified; verify it if it is there.",
        _pull,
        example="hermes model pull Qwen/Qwen2.5-Coder-0.5B-Instruct --revision <commit: 40 hex digits>",
    )
    pull.add_argument("repo", help="owner/name, as the Hub shows it")
    pull.add_argument("--revision", required=True, help="the commit: 40 hexadecimal digits")
    pull.add_argument(
        "--to", type=Path, help="its folder (default: models/<owner>--<name>@<commit> in $HERMES_CACHE)"
    )
    pull.add_argument("--termination-log", type=Path, help="also write how it ended to this file, as JSON")
    pull.add_argument("--json", action="store_true", help="how it ended as JSON on stdout")
    make = verb(
        verbs,
        "make",
        "Train the bundled repair model from nothing.",
        _make,
        example="hermes model make --out build/model --small",
    )
    make.add_argument("--out", type=Path, required=True, help="folder for the model")
    make.add_argument(
        "--small", action="store_true", help="a two-minute model from the standard library alone"
    )


def _serve(arguments: argparse.Namespace) -> int:
    wall = seal() if arguments.seal else None  # before anything that follows brings threads
    from hermes_runtime.models import Backend, ModelSpec
    from hermes_runtime.models.service import serve
    from hermes_runtime.models.tree import resolve
    from hermes_runtime.supervise.parent import end_with_parent

    if arguments.end_with_parent:
        end_with_parent()
    backend = Backend(arguments.backend)
    spec = ModelSpec(
        backend=backend,
        path=Path(arguments.path) if backend is Backend.SCRIPTED else resolve(arguments.path),
        device=arguments.device,
        quantization=arguments.quantization,
        context_tokens=arguments.context_tokens,
        slots=arguments.slots,
        threads=arguments.threads,
    )
    asyncio.run(serve(arguments.socket, spec, ready_file=arguments.ready_file, seal=wall))
    return 0


def _models() -> Path:
    """Where `pull` puts models."""
    from hermes_runtime.models.cache import cache_folder

    return cache_folder(os.environ, Path.home()).absolute() / "models"


def _verify(arguments: argparse.Namespace) -> int:
    from hermes_runtime.models import cache
    from hermes_runtime.models.tree import verify

    tree = verify(cache.resolve(_models(), arguments.path))
    if tree.folder.parent == _models():
        cache.note_verified(tree, datetime.now(UTC))
    if arguments.json:
        print(json.dumps({"folder": str(tree.folder), "tree_sha256": tree.sha256}))
    else:
        print(f"{tree.folder}: {len(tree.manifest.files)} files are as the manifest says; tree {tree.sha256}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from hermes_runtime.cli.parser import columns
    from hermes_runtime.models.cache import models

    found = models(_models())
    if arguments.json:
        told = [
            {
                "name": each.name,
                "commit": each.commit,
                "folder": str(each.folder),
                "is_whole": each.is_whole,
                "licence": each.licence,
                "size_bytes": each.size_bytes,
                "dtype": each.dtype,
                "verified_at": each.verified_at.isoformat() if each.verified_at else None,
            }
            for each in found
        ]
        print(json.dumps(told, indent=1))
        return 0
    rows = [["NAME", "COMMIT", "LICENCE", "SIZE", "DTYPE", "VERIFIED"]]
    for each in found:
        verified = f"{each.verified_at:%Y-%m-%d %H:%MZ}" if each.verified_at else "-"
        rows.append(
            [
                each.name,
                each.commit[:12] or "bundled",
                each.licence or "-",
                f"{each.size_bytes / 2**20:.1f} MiB",
                each.dtype or "-",
                verified if each.is_whole else "not whole: pull it again",
            ]
        )
    print(columns(rows))
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from hermes_runtime.models.cache import remove

    gone = remove(_models(), arguments.name)
    print(f"removed {gone.name}@{gone.commit}: {gone.size_bytes / 2**20:.1f} MiB")
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    from hermes_runtime.cli.parser import columns
    from hermes_runtime.models import Backend, ModelSpec
    from hermes_runtime.models.environment import device_of
    from hermes_runtime.models.instances import accelerators
    from hermes_runtime.models.platform import MATRIX, Choice
    from hermes_runtime.models.probe import Probe, probes_folder

    spec = ModelSpec(backend=Backend.TRANSFORMERS, path=Path(), device=arguments.device)
    probe = Probe(
        device_of(spec, accelerators()),
        folder=probes_folder(os.environ, Path.home()).absolute(),
        environment=os.environ,
    )
    found = probe.answers(list(Choice), again=arguments.again)
    if arguments.json:
        print(found.model_dump_json(indent=1))
        return 0
    rows = [["CHOICE", "THE TABLE SAYS", "TRIED HERE", "SECONDS", "BYTES", ""]]
    for choice in Choice:
        entry, tried = MATRIX[found.platform][choice], found.of(choice)
        assert tried is not None, "all were asked for"
        says = f"{entry.standing}; {entry.note}" if entry.note else str(entry.standing)
        detail = "" if tried.result == "ok" else tried.detail
        size = str(tried.weight_bytes) if tried.weight_bytes else "-"
        rows.append([choice, says, tried.result, f"{tried.seconds:.1f}", size, detail])
    print(f"{found.device}: {found.platform}")
    print(columns(rows))
    return 0


def _manifest(arguments: argparse.Namespace) -> int:
    from hermes_runtime.models.tree import write_manifest

    written = write_manifest(arguments.path, licence=arguments.licence, dialect=arguments.dialect)
    print(f"{arguments.path / 'manifest.json'}: {len(written.files)} files")
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from hermes_runtime.errors import HermesError
    from hermes_runtime.models import pull
    from hermes_runtime.models.cache import note_verified
    from hermes_runtime.models.tree import cached

    # As a container's first process it would not be ended by the signal; what has come is kept.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    to = arguments.to or cached(_models(), arguments.repo, arguments.revision)
    found, failure = None, None
    try:
        found = pull.pull(
            arguments.repo,
            arguments.revision,
            to.absolute(),
            say=lambda text: print(f"pull: {text}", file=sys.stderr, flush=True),
        )
    except HermesError as error:
        failure = pull.failure_of(error)
        print(f"hermes: {error}", file=sys.stderr)
    if found is not None and arguments.to is None:
        note_verified(found, datetime.now(UTC))
    ended = json.dumps(pull.termination_message(found, failure))
    if arguments.termination_log:
        arguments.termination_log.write_text(ended)  # in place: Kubernetes has mounted this very file
    if arguments.json:
        print(ended)
    elif found is not None:
        print(found.folder)
    return failure.exit_code if failure else 0


def _make(arguments: argparse.Namespace) -> int:
    from hermes_runtime.train import make_model

    out = arguments.out.absolute()
    made = make_model(
        out,
        arguments.small,
        work=(arguments.work or out.with_name(out.name + ".work")).absolute(),
        minutes=arguments.minutes,
        seed=arguments.seed,
        device=arguments.device,
        workers=os.cpu_count() or 1,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(f"{made.folder}: tree {made.tree_sha256}, {made.tokens} tokens in {made.train_seconds:.0f} s")
    return 0
