"""The node image of kind, made of Debian packages, kind's own files and the programs built from source.

Called where no image can be pulled. The root file system comes from mmdebstrap; kind's entrypoint, units
and containerd configuration from kind's Go module; the control plane's images are one layer with one
program, imported into the node's containerd while no pod runs. Docker gets the whole as one layer, and
keeps it in the engine's folder in the cache under a name made of the content it was built from.
"""

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import HERE, KUBERNETES_VERSION, NAMES, PROGRAM, Programs, content_key, step
from tests.cluster.engine import Engine
from tests.cluster.packages import which

REPOSITORY = "hermes-node"
SUITE = "bookworm"
PACKAGES = (
    "bash",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "e2fsprogs",
    "ethtool",
    "iproute2",
    "iptables",
    "jq",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "runc",
    "systemd",
    "util-linux",
)
"""What kind's own base image has, less what only network storage and rootless nodes need."""

ON_THE_NODE = ("kubeadm", "kubectl", "kubelet")
IMPORT_SECONDS_MAX = 60.0
VOLUMES = 16
"""PersistentVolumes that a cluster has from the start: the node image has no provisioner."""

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            # A pair of interfaces for each pod and routes between them: with a bridge, answers of a
            # Service's pods would pass beside the rules that translate their addresses.
            "type": "ptp",
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
"""One node, so one range of pod addresses, and masquerading for nobody: nothing is to leave."""

SERVICES_RULES = """\
table ip no_such_service {
  chain forward {
    type filter hook forward priority -20;
    ip daddr 10.96.0.0/16 reject
  }
}
"""
"""What still has a Service's address when it is forwarded has no endpoint. Let it go, and the connection
would be remembered untranslated: a pod that asks before kube-proxy is there would wait out its timeout."""
SERVICES_UNIT = """\
[Unit]
Description=Refuse at once what no Service answers
Before=kubelet.service
[Service]
Type=oneshot
ExecStart=/usr/sbin/nft -f /etc/no-such-service.nft
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of the control plane: its name, its layers, and what it starts."""

    name: str
    layers: tuple[bytes, ...]
    entrypoint: tuple[str, ...]


def node_image(engine: Engine, programs: Programs) -> str:
    """The image's name; builds it unless the engine has it."""
    sources = {name: (HERE / name).read_bytes() for name in ("node_image.py",)}
    name = f"{REPOSITORY}:{content_key({**sources, 'programs': str(programs.folder.parent.name).encode()})}"
    if not engine.has_image(name):
        with tempfile.TemporaryDirectory(prefix="hermes-node-") as folder:
            root = Path(folder) / "root"
            with step("node image: Debian packages"):
                debootstrap(root, PACKAGES)
            with step("node image: kind's files"):
                _add_files(root, programs)
            with step("node image: the control plane's images"):
                _import_images(root, programs)
            with step("node image: into the engine"):
                import_image(engine, root, name, ["/usr/local/bin/entrypoint", "/sbin/init"])
        for older in engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).split():
            if older != name:
                engine.docker("rmi", older)
    return name


def base_image(engine: Engine, packages: tuple[str, ...], name: str) -> str:
    """An image with a minimal Debian and these packages, for where no base image can be pulled."""
    if not engine.has_image(name):
        with tempfile.TemporaryDirectory(prefix="hermes-base-") as folder:
            root = Path(folder) / "root"
            with step(f"base image {name}"):
                debootstrap(root, packages)
                import_image(engine, root, name, [])
    return name


def debootstrap(root: Path, packages: tuple[str, ...]) -> None:
    """A minimal Debian with these packages, without what only people read."""
    unread = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in unread),
        SUITE,
        str(root),
    ]
    # A proxy or a certificate of this host is for this host's programs: the image must not know them.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mmdebstrap failed:\n{done.stderr[-2000:]}")
    root.chmod(0o755)


def import_image(engine: Engine, root: Path, name: str, entrypoint: list[str]) -> None:
    """The folder as an image of one layer."""
    changes = ["--change", "ENV container=docker"]
    if entrypoint:
        changes += ["--change", f"ENTRYPOINT {json.dumps(entrypoint)}"]
    packer = subprocess.Popen(
        ["tar", "--directory", root, "--numeric-owner", "--xattrs", "--create", "."], stdout=subprocess.PIPE
    )
    with packer:
        importer = subprocess.run(
            [which("docker") or "docker", "import", *changes, "-", name],
            stdin=packer.stdout,
            env=engine.environment(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
    if packer.returncode or importer.returncode:
        raise RuntimeError(f"docker import {name}: {importer.stderr.strip()}")


def _add_files(root: Path, programs: Programs) -> None:
    """What kind's own Dockerfile copies and sets, and what differs for Debian's containerd."""
    module = ["go", "mod", "download", "-json", "sigs.k8s.io/kind"]  # at once where it is there
    printed = subprocess.run(module, cwd=HERE, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed)["Dir"]
    files = Path(found) / "images" / "base" / "files"
    for source in sorted(path for path in files.rglob("*") if path.is_file()):
        target = root / source.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        is_program = target.parent in (root / "usr/local/bin", root / "kind/bin")
        target.chmod(0o755 if is_program else 0o644)
    _quiet_systemd(root)
    unit = root / "etc/systemd/system/containerd.service"
    lines = unit.read_text(encoding="utf-8").splitlines()
    refused = ("LimitNPROC", "LimitCORE", "LimitNOFILE", "OOMScoreAdjust")  # where root lacks SYS_RESOURCE
    kept = [line for line in lines if not line.startswith(refused)]
    unit.write_text("\n".join(kept).replace("/usr/local/bin/containerd", "/usr/bin/containerd") + "\n")
    configuration = root / "etc/containerd/config.toml"
    text = configuration.read_text(encoding="utf-8")
    configuration.write_text(text.replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true"))
    _write_json(root / "etc/containerd/cri-base.json", _pod_defaults(root))
    (root / "opt/cni").mkdir(parents=True, exist_ok=True)
    (root / "opt/cni/bin").symlink_to("/usr/lib/cni")
    _write_json(root / "etc/cni/net.d/10-pods.conflist", NETWORK)
    (root / "etc/no-such-service.nft").write_text(SERVICES_RULES, encoding="utf-8")
    (root / "etc/systemd/system/no-such-service.service").write_text(SERVICES_UNIT, encoding="utf-8")
    (root / "etc/kubernetes/manifests").mkdir(parents=True, exist_ok=True)
    shutil.copy2(programs.path(PROGRAM), root / "usr/bin" / PROGRAM)
    for name in ON_THE_NODE:
        (root / "usr/bin" / name).symlink_to(PROGRAM)
    (root / "kind/version").write_text(KUBERNETES_VERSION, encoding="utf-8")
    manifests = root / "kind/manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    (manifests / "default-cni.yaml").write_text("", encoding="utf-8")
    _write_json(manifests / "default-storage.yaml", _storage())
    for number in range(VOLUMES):
        volume = root / f"var/lib/hermes-volumes/{number}"
        volume.mkdir(parents=True)


def _quiet_systemd(root: Path) -> None:
    """Of the units that the packages enable none is wanted; kind's own are."""
    for wants in (
        "usr/lib/systemd/system/multi-user.target.wants/*",
        "etc/systemd/system/*.wants/*",
        "usr/lib/systemd/system/local-fs.target.wants/*",
        "usr/lib/systemd/system/sockets.target.wants/*udev*",
        "usr/lib/systemd/system/sockets.target.wants/*initctl*",
        "usr/lib/systemd/system/basic.target.wants/*",
        "usr/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    ):
        for link in root.glob(wants):
            link.unlink()
    units = root / "etc/systemd/system"
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    for unit in ("kubelet", "containerd", "undo-mount-hacks", "no-such-service"):
        (wanted / f"{unit}.service").symlink_to(f"/etc/systemd/system/{unit}.service")
    (units / "systemd-binfmt.service").symlink_to("/dev/null")  # what it registers, the whole host gets
    (root / "sbin/init").unlink(missing_ok=True)
    (root / "sbin/init").symlink_to("/usr/lib/systemd/systemd")
    with (root / "etc/systemd/journald.conf").open("a", encoding="utf-8") as journal:
        journal.write("ReadKMsg=no\n")


def _pod_defaults(root: Path) -> object:
    """containerd's own default of a container's configuration, with kind's hook and without limits."""
    printed = subprocess.run(
        ["chroot", root, "ctr", "oci", "spec"], capture_output=True, text=True, check=True
    ).stdout
    content = json.loads(printed)
    hooks = content.setdefault("hooks", {}).setdefault("createContainer", [])
    hooks.append({"path": "/kind/bin/mount-product-files.sh"})
    content["process"].pop("rlimits", None)
    return content


def _storage() -> dict[str, object]:
    """A default StorageClass and the volumes that its claims bind to."""
    api = "storage.k8s.io/v1"
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    items: list[dict[str, object]] = [
        {
            "apiVersion": api,
            "kind": "StorageClass",
            "metadata": {"name": "standard", "annotations": default},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ]
    here = {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
    items += [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"local-{number}"},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "standard",
                # `local`, and no host path: the kubelet gives it to the pod's fsGroup.
                "local": {"path": f"/var/lib/hermes-volumes/{number}"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        }
        for number in range(VOLUMES)
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _write_json(path: Path, content: object) -> None:
    """JSON is YAML: kubectl and containerd read it as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _control_plane_images(root: Path, programs: Programs) -> list[Image]:
    """Under the names by which kubeadm and containerd ask for them."""
    listed = [str(programs.path("kubeadm")), "config", "images", "list"]
    command = [*listed, "--kubernetes-version", KUBERNETES_VERSION]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    configuration = (root / "etc/containerd/config.toml").read_text(encoding="utf-8")
    sandbox = configuration.split("sandbox_image = ", 1)[1].split('"')[1]
    links = {f"usr/local/bin/{name}": PROGRAM for name in NAMES}
    links["coredns"] = f"usr/local/bin/{PROGRAM}"
    program = _layer({f"usr/local/bin/{PROGRAM}": programs.path(PROGRAM)}, links)
    pause = _layer({"pause": programs.path("pause")}, {})
    filters = _layer(*_iptables_files(root))
    images = []
    for name in sorted({*names, sandbox}):
        part = name.rsplit("/", 1)[1].split(":")[0]
        match part:
            case "pause":
                images.append(Image(name=name, layers=(pause,), entrypoint=("/pause",)))
            case "kube-proxy":
                images.append(Image(name=name, layers=(program, filters), entrypoint=()))
            case "coredns":
                images.append(Image(name=name, layers=(program,), entrypoint=("/coredns",)))
            case _:
                images.append(Image(name=name, layers=(program,), entrypoint=()))
    return images


def _iptables_files(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """What kube-proxy calls: Debian's iptables, its extensions, and the libraries of both."""
    inside = ["usr/sbin/xtables-nft-multi"]
    extensions = next(root.glob("usr/lib/*/xtables"))
    inside += [str(path.relative_to(root)) for path in sorted(extensions.iterdir())]
    printed = subprocess.run(
        ["chroot", root, "ldd", *(f"/{name}" for name in inside)], capture_output=True, text=True, check=False
    ).stdout
    libraries = {
        word.lstrip("/") for word in printed.split() if word.startswith("/") and not word.endswith(":")
    }
    files = {name: root / name for name in inside}
    files |= {name: (root / name).resolve() for name in sorted(libraries)}
    actions = ("", "-save", "-restore")
    links = {
        f"usr/sbin/{tool}{action}": "xtables-nft-multi"
        for tool in ("iptables", "ip6tables")
        for action in actions
    }
    return files, links


def _layer(files: dict[str, Path], links: dict[str, str]) -> bytes:
    """A tar of these files and links, all root's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, source in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = source.stat().st_size
            entry.mode = 0o755
            with source.open("rb") as content:
                archive.addfile(entry, content)
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
            archive.addfile(entry)
    return packed.getvalue()


def _archive(images: list[Image], path: Path) -> None:
    """An OCI image layout in one tar: what `ctr images import` reads. A layer is in it once."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    manifests = []
    for image in images:
        layers = [blob(layer, "layer.v1.tar") for layer in image.layers]
        configuration = {
            "architecture": machine,
            "os": "linux",
            "config": {
                "Entrypoint": list(image.entrypoint) or None,
                "Env": ["PATH=/usr/local/bin:/usr/sbin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(json.dumps(configuration).encode(), "config.v1+json"),
            "layers": layers,
        }
        named = {"annotations": {"io.containerd.image.name": image.name}}
        manifests.append({**blob(json.dumps(manifest).encode(), "manifest.v1+json"), **named})
    index = {"schemaVersion": 2, "manifests": manifests}
    files = {f"blobs/sha256/{digest}": content for digest, content in blobs.items()}
    files["index.json"] = json.dumps(index).encode()
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(path, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _import_images(root: Path, programs: Programs) -> None:
    """Through the node's own containerd, run in its root with nothing but its store: no pod, no mount."""
    _archive(_control_plane_images(root, programs), root / "images.tar")
    working = root / "run/import"
    working.mkdir(parents=True)
    unneeded = [
        f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "overlayfs", "zfs")
    ]
    unneeded += [
        "io.containerd.grpc.v1.cri",
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.restart",
    ]
    (working / "config.toml").write_text(
        'version = 2\nroot = "/var/lib/containerd"\nstate = "/run/import/state"\n'
        f"disabled_plugins = {json.dumps(unneeded)}\n"
        '[grpc]\naddress = "/run/import/socket"\n',
        encoding="utf-8",
    )
    with (working / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["chroot", root, "containerd", "--config", "/run/import/config.toml"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + IMPORT_SECONDS_MAX
        while not (working / "socket").exists():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd did not start:\n{(working / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        importing = ["ctr", "--address", "/run/import/socket", "--namespace", "k8s.io", "images", "import"]
        done = subprocess.run(
            ["chroot", root, *importing, "--no-unpack", "/images.tar"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"ctr images import: {done.stderr.strip()}")
    finally:
        daemon.terminate()
        daemon.wait()
    (root / "images.tar").unlink()
    shutil.rmtree(working)
