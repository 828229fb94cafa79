"""`hermes store`: serve the store, or look into one that nobody serves."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hermes_runtime.cli.parser import Commands, noun, verb
from hermes_runtime.errors import BadInput

if TYPE_CHECKING:
    from hermes_runtime.store import Digest
    from hermes_runtime.store.authenticate import Doorkeeper
    from hermes_runtime.store.disk import DiskStore
    from hermes_runtime.supervise.tcp import Listen


def add(commands: Commands) -> None:
    """Add `store`."""
    verbs = noun(commands, "store", "Content-addressed blobs, events and results.")
    serve = verb(
        verbs,
        "serve",
        "Serve a store on a Unix socket, and to others by TCP if asked to, until SIGTERM.",
        _serve,
        example="hermes store serve --folder s --socket s.sock",
    )
    serve.add_argument("--folder", type=Path, required=True, help="the store's folder; made if missing")
    serve.add_argument("--socket", type=Path, help="where to serve (with --listen: FOLDER/socket)")
    serve.add_argument("--end-with-parent", action="store_true", help="end when standard input does")
    serve.add_argument("--ready-file", type=Path, help="file that is there while the store serves")
    serve.add_argument("--listen", metavar="HOST:PORT", help="serve there too, to callers with a token")
    serve.add_argument(
        "--authenticate", choices=["token-review"], help="who says whose a token is: Kubernetes' TokenReview"
    )
    serve.add_argument("--audience", default="hermes-store", help="audience that a token must be made for")
    serve.add_argument(
        "--reader", action="append", default=[], metavar="USER", help="user who may read every run"
    )
    serve.add_argument("--tls-certificate", type=Path, help="PEM file; with it, only TLS is served")
    serve.add_argument("--tls-key", type=Path, help="PEM file of the certificate's key")

    relay = verb(
        verbs,
        "relay",
        "Serve on a Unix socket what a store serves elsewhere, showing it a token.",
        _relay,
        example="hermes store relay --socket s.sock --to hermes-store:7443 --token-file t",
    )
    relay.add_argument("--socket", type=Path, required=True, help="where to serve")
    relay.add_argument("--to", required=True, metavar="HOST:PORT", help="where the store is")
    relay.add_argument("--token-file", type=Path, required=True, help="file of the token; read for each call")
    relay.add_argument("--ca-file", type=Path, help="PEM file of who signed the store's certificate: use TLS")
    relay.add_argument("--server-name", default="", help="name in the certificate, if not that of --to")
    relay.add_argument("--ready-file", type=Path, help="file that is there while the relay serves")

    put = verb(
        verbs, "put", "Store a file; prints its address.", _put, example="hermes store put --folder s FILE"
    )
    put.add_argument("file", type=Path, help="the file; - for standard input")
    get = verb(
        verbs,
        "get",
        "Write a blob to standard output.",
        _get,
        example="hermes store get --folder s mcp://sha256/…",
    )
    get.add_argument("address", help="mcp://sha256/<64 hex>, or a unique start of the 64 digits")
    stat = verb(
        verbs,
        "stat",
        "Tell what is known of a blob.",
        _stat,
        example="hermes store stat --folder s mcp://sha256/…",
    )
    stat.add_argument("address", help="mcp://sha256/<64 hex>, or a unique start of the 64 digits")
    fsck = verb(
        verbs,
        "fsck",
        "Check every blob, event and result.",
        _fsck,
        example="hermes store fsck --folder s --repair",
    )
    fsck.add_argument(
        "--repair", action="store_true", help="quarantine what is damaged, drop what is half-written"
    )
    gc = verb(verbs, "gc", "Delete blobs that nothing holds.", _gc, example="hermes store gc --folder s")
    backup = verb(
        verbs,
        "backup",
        "Copy a store, also one that is being served; only blobs that are not there yet.",
        _backup,
        example="hermes store backup --folder runs/quickstart/store --to /mnt/backup",
    )
    where = backup.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=Path, help="the store's folder, on this machine")
    where.add_argument("--socket", type=Path, help="or the socket at which it is served")
    backup.add_argument("--to", type=Path, required=True, help="folder of the backup; made if missing")
    backup.add_argument(
        "--verify", action="store_true", help="read again what is there, and copy what has changed"
    )
    restore = verb(
        verbs,
        "restore",
        "Make an empty folder the store that was backed up, and check all of it.",
        _restore,
        example="hermes store restore --from /mnt/backup --folder s",
    )
    restore.add_argument("--from", dest="source", type=Path, required=True, help="folder of the backup")
    restore.add_argument("--folder", type=Path, required=True, help="the new store's folder; empty")
    for parser in (put, get, stat, fsck, gc):
        parser.add_argument(
            "--folder", type=Path, required=True, help="the store's folder; nobody may serve it"
        )
    for parser in (stat, fsck, gc, backup, restore):
        parser.add_argument("--json", action="store_true", help="the result as JSON")


def _serve(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.service import serve
    from hermes_runtime.supervise.parent import end_with_parent

    if arguments.listen is None and arguments.socket is None:
        raise BadInput("give --socket, where to serve; or --listen, to serve others too")
    if arguments.end_with_parent:
        end_with_parent()
    asyncio.run(
        serve(
            arguments.socket or arguments.folder / "socket",
            arguments.folder,
            listen=None if arguments.listen is None else _listen(arguments),
            doorkeeper=None if arguments.listen is None else _doorkeeper(arguments),
            ready_file=arguments.ready_file,
        )
    )
    return 0


def _listen(arguments: argparse.Namespace) -> Listen:
    from hermes_runtime.supervise.tcp import Listen, address_of

    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        raise BadInput("--tls-certificate and --tls-key go together")
    host, port = address_of(arguments.listen)
    return Listen(host=host, port=port, certificate=arguments.tls_certificate, key=arguments.tls_key)


def _doorkeeper(arguments: argparse.Namespace) -> Doorkeeper:
    from hermes_runtime.store.authenticate import Doorkeeper, Remembering
    from hermes_runtime.store.token_review import TokenReviews

    if arguments.authenticate is None:
        raise BadInput("--listen needs --authenticate: a store is not served to whoever comes")
    reviews = TokenReviews(arguments.audience, os.environ)
    return Doorkeeper(Remembering(reviews), readers=arguments.reader)


def _relay(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.relay import serve
    from hermes_runtime.supervise.tcp import channel, token_of_file

    token = token_of_file(arguments.token_file)
    token()  # said at the start, not at the first call

    async def relay() -> None:
        store = channel(
            arguments.to, token=token, ca_file=arguments.ca_file, server_name=arguments.server_name
        )
        await serve(arguments.socket, store, ready_file=arguments.ready_file)

    asyncio.run(relay())
    return 0


def _digest(store: DiskStore, address: str) -> Digest:
    """The blob that an address or the start of one means."""
    from hermes_runtime.errors import NotFound

    start = address.removeprefix("mcp://sha256/").lower()
    if not re.fullmatch(r"[0-9a-f]{4,64}", start):
        raise BadInput(f"{address!r} is no address: give mcp://sha256/<64 hex>, or 4 or more of its digits")
    found = store.find(start)
    if not found:
        raise NotFound(f"{address}: no blob of this store starts so")
    if len(found) > 1:
        raise BadInput(f"{address} means {len(found)} blobs; give more digits")
    return found[0]


def _put(arguments: argparse.Namespace) -> int:
    from hermes_runtime.errors import NotFound
    from hermes_runtime.store.disk import DiskStore

    if str(arguments.file) == "-":
        data = sys.stdin.buffer.read()
    elif arguments.file.is_file():
        data = arguments.file.read_bytes()
    else:
        raise NotFound(f"{arguments.file} is not there")
    with closing(DiskStore(arguments.folder)) as store:
        print(store.put(data).uri)
    return 0


def _get(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.disk import DiskStore

    with closing(DiskStore(arguments.folder)) as store:
        for piece in store.get_pieces(_digest(store, arguments.address)):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def _stat(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.disk import DiskStore

    with closing(DiskStore(arguments.folder)) as store:
        known = store.stat([_digest(store, arguments.address)])[0]
    told = {
        "address": known.digest.uri,
        "size_bytes": known.digest.size_bytes,
        "state": known.state.value,
        "expires_at": known.expires_at.isoformat() if known.expires_at else None,
    }
    _tell(told, as_json=arguments.json)
    return 0


def _fsck(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.fsck import check

    report = check(arguments.folder, repair=arguments.repair)
    _tell(asdict(report), as_json=arguments.json)
    return 0 if report.is_sound or report.repaired else 1


def _gc(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.disk import DiskStore

    with closing(DiskStore(arguments.folder)) as store:
        blobs, size_bytes = store.collect_garbage(datetime.now(UTC))
    _tell({"blobs": blobs, "size_bytes": size_bytes}, as_json=arguments.json)
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.backup import Copied, backup, door
    from hermes_runtime.store.client import StoreClient

    async def from_socket(socket: Path) -> Copied:
        async with StoreClient(socket) as client:
            return await backup(client, arguments.to.absolute(), verify=arguments.verify, say=_say)

    async def from_folder(folder: Path) -> Copied:
        async with door(folder.absolute()) as socket:
            return await from_socket(socket)

    call = from_socket(arguments.socket) if arguments.socket else from_folder(arguments.folder)
    done = asyncio.run(call)
    told = {**done.manifest.model_dump(mode="json"), "copied": done.copied, "copied_bytes": done.copied_bytes}
    _tell(told, as_json=arguments.json)
    return 1 if done.manifest.damaged else 0


def _restore(arguments: argparse.Namespace) -> int:
    from hermes_runtime.store.backup import restore

    report = restore(arguments.source.absolute(), arguments.folder.absolute(), say=_say)
    _tell(asdict(report), as_json=arguments.json)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell(told: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))
        return
    for name, value in told.items():
        lines = value if isinstance(value, list | tuple) else [value]
        print(f"{name}: " + "\n  ".join(str(line) for line in lines))
