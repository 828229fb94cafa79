"""Settings of the operator's process, read once from its environment.

Every variable is documented here and nowhere else; a wrong one is refused with its name and the remedy.
What each run is given (images, store, model cache) is passed on as an `Installation`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hermes_operator.observed import Installation

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", re.ASCII)


class SettingsError(Exception):
    """The environment is wrong; the message names the variable and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one operator process is told."""

    namespaces: tuple[str, ...]
    """HERMES_NAMESPACES: namespaces that are watched, comma separated. Required."""
    runtime_image: str
    """HERMES_RUNTIME_IMAGE: image of every container of a run. Required."""
    image_pull_policy: str = "IfNotPresent"
    """HERMES_IMAGE_PULL_POLICY: Always, IfNotPresent (default) or Never."""
    image_pull_secrets: tuple[str, ...] = ()
    """HERMES_IMAGE_PULL_SECRETS: names of Secrets in the runs' namespaces, comma separated. Default: none."""
    store_address: str = "hermes-store:7443"
    """HERMES_STORE_ADDRESS: host:port of the store. Default hermes-store:7443."""
    store_ca_configmap: str = ""
    """HERMES_STORE_CA_CONFIGMAP: ConfigMap with ca.crt. Default: none, and no TLS."""
    model_claim: str = ""
    """HERMES_MODEL_CLAIM: PersistentVolumeClaim of the model cache. Default: none, bundled models only."""
    hub_token_secret: str = ""
    """HERMES_HUB_TOKEN_SECRET: Secret with key `token` for gated models. Default: none."""
    hub_endpoint: str = ""
    """HERMES_HUB_ENDPOINT: http(s)://host[:port][/path] of a mirror of the Hub. Default: the Hub itself."""
    max_concurrent_runs: int = 0
    """HERMES_MAX_CONCURRENT_RUNS: runs at a time in all namespaces. Default 0: no cap."""
    lease_namespace: str = ""
    """HERMES_LEASE_NAMESPACE: namespace of the Lease. Default: the first of HERMES_NAMESPACES."""
    lease_name: str = "hermes-operator"
    """HERMES_LEASE_NAME: the Lease that one operator at a time holds. Default hermes-operator."""
    pod_name: str = ""
    """HERMES_POD_NAME: who holds the Lease, unique among operators. Default: drawn at random."""
    http_port: int = 8080
    """HERMES_HTTP_PORT: port of /livez, /readyz and /metrics. Default 8080; 0: any that is
    free, on the loopback alone."""
    log_format: str = "text"
    """HERMES_LOG_FORMAT: text (default) or json."""
    workers: int = 8
    """HERMES_WORKERS: runs that are worked on at the same time. Default 8."""
    resync_seconds: float = 600.0
    """HERMES_RESYNC_SECONDS: everything is listed again this often, to heal lost events. Default 600."""
    watch_silence_seconds: float = 180.0
    """HERMES_WATCH_SILENCE_SECONDS: a watch silent for longer fails /livez. Default 180, three times what
    an API server waits between two bookmarks."""

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings.

        Raises:
            SettingsError: a variable is missing or wrong.
        """
        namespaces = _names(environment, "HERMES_NAMESPACES")
        if not namespaces:
            raise SettingsError("HERMES_NAMESPACES is not set: name the namespaces to watch, comma separated")
        image = environment.get("HERMES_RUNTIME_IMAGE", "")
        if not image:
            raise SettingsError("HERMES_RUNTIME_IMAGE is not set: name the image that runs are made of")
        return cls(
            namespaces=namespaces,
            runtime_image=image,
            image_pull_policy=_one_of(
                environment, "HERMES_IMAGE_PULL_POLICY", ("IfNotPresent", "Always", "Never")
            ),
            image_pull_secrets=_names(environment, "HERMES_IMAGE_PULL_SECRETS"),
            store_address=_address(environment, "HERMES_STORE_ADDRESS", cls.store_address),
            store_ca_configmap=environment.get("HERMES_STORE_CA_CONFIGMAP", ""),
            model_claim=environment.get("HERMES_MODEL_CLAIM", ""),
            hub_token_secret=environment.get("HERMES_HUB_TOKEN_SECRET", ""),
            hub_endpoint=_url(environment, "HERMES_HUB_ENDPOINT"),
            max_concurrent_runs=_whole(environment, "HERMES_MAX_CONCURRENT_RUNS", 0, 0, 1_000_000),
            lease_namespace=environment.get("HERMES_LEASE_NAMESPACE") or namespaces[0],
            lease_name=environment.get("HERMES_LEASE_NAME") or cls.lease_name,
            pod_name=environment.get("HERMES_POD_NAME", ""),
            http_port=_whole(environment, "HERMES_HTTP_PORT", cls.http_port, 0, 65_535),
            log_format=_one_of(environment, "HERMES_LOG_FORMAT", ("text", "json")),
            workers=_whole(environment, "HERMES_WORKERS", cls.workers, 1, 100),
            resync_seconds=_seconds(environment, "HERMES_RESYNC_SECONDS", cls.resync_seconds),
            watch_silence_seconds=_seconds(
                environment, "HERMES_WATCH_SILENCE_SECONDS", cls.watch_silence_seconds
            ),
        )

    def installation(self) -> Installation:
        """What every run is given."""
        return Installation(
            runtime_image=self.runtime_image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            store_address=self.store_address,
            store_ca_configmap=self.store_ca_configmap,
            model_claim=self.model_claim,
            hub_token_secret=self.hub_token_secret,
            hub_endpoint=self.hub_endpoint,
            max_concurrent_runs=self.max_concurrent_runs,
        )


def _names(environment: Mapping[str, str], variable: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in environment.get(variable, "").split(",") if name.strip())
    for name in found:
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"{variable}: {name!r} is no name of a Kubernetes object; "
                "write lower-case letters, digits and dashes, names apart by commas"
            )
    return tuple(dict.fromkeys(found))


def _one_of(environment: Mapping[str, str], variable: str, choices: tuple[str, ...]) -> str:
    """The first choice is the default."""
    found = environment.get(variable) or choices[0]
    if found not in choices:
        raise SettingsError(f"{variable}: {found!r} is not one of {', '.join(choices)}")
    return found


def _whole(environment: Mapping[str, str], variable: str, default: int, least: int, most: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise SettingsError(f"{variable}: {text!r} is no whole number from {least} to {most}")
    return int(text)


def _seconds(environment: Mapping[str, str], variable: str, default: float) -> float:
    text = environment.get(variable) or str(default)
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 86_400:
        raise SettingsError(f"{variable}: {text!r} is no number of seconds above 0 and up to 86400")
    return found


def _address(environment: Mapping[str, str], variable: str, default: str) -> str:
    found = environment.get(variable) or default
    host, _, port = found.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise SettingsError(f"{variable}: {found!r} is no host:port, for example {default}")
    return found


def _url(environment: Mapping[str, str], variable: str) -> str:
    found = environment.get(variable, "")
    if found and not _URL.fullmatch(found):
        raise SettingsError(f"{variable}: {found!r} is no address, for example https://hub.example")
    return found
