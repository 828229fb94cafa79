"""The operator's settings: defaults, what is read, and how a wrong variable is told."""

from __future__ import annotations

import inspect
import re

import pytest

from hermes_operator.settings import Settings, SettingsError

LEAST = {"HERMES_NAMESPACES": "research", "HERMES_RUNTIME_IMAGE": "hermes:1"}


def test_two_variables_are_enough():
    settings = Settings.from_env(LEAST)

    assert settings == Settings(
        namespaces=("research",), runtime_image="hermes:1", lease_namespace="research"
    )


def test_every_variable_that_is_documented_is_read():
    documented = set(re.findall(r"HERMES_[A-Z_]+", _docstrings()))
    given = {
        "HERMES_NAMESPACES": "a, b,a",
        "HERMES_RUNTIME_IMAGE": "i",
        "HERMES_IMAGE_PULL_POLICY": "Never",
        "HERMES_IMAGE_PULL_SECRETS": "s,t",
        "HERMES_STORE_ADDRESS": "store.b:1",
        "HERMES_STORE_CA_CONFIGMAP": "ca",
        "HERMES_MODEL_CLAIM": "claim",
        "HERMES_HUB_TOKEN_SECRET": "hub",
        "HERMES_HUB_ENDPOINT": "https://hub.example:8443/mirror",
        "HERMES_MAX_CONCURRENT_RUNS": "7",
        "HERMES_LEASE_NAMESPACE": "system",
        "HERMES_LEASE_NAME": "lease",
        "HERMES_POD_NAME": "pod-0",
        "HERMES_HTTP_PORT": "0",
        "HERMES_LOG_FORMAT": "json",
        "HERMES_WORKERS": "3",
        "HERMES_RESYNC_SECONDS": "12.5",
        "HERMES_WATCH_SILENCE_SECONDS": "9",
    }

    assert documented == set(given)
    assert Settings.from_env(given) == Settings(
        namespaces=("a", "b"),
        runtime_image="i",
        image_pull_policy="Never",
        image_pull_secrets=("s", "t"),
        store_address="store.b:1",
        store_ca_configmap="ca",
        model_claim="claim",
        hub_token_secret="hub",
        hub_endpoint="https://hub.example:8443/mirror",
        max_concurrent_runs=7,
        lease_namespace="system",
        lease_name="lease",
        pod_name="pod-0",
        http_port=0,
        log_format="json",
        workers=3,
        resync_seconds=12.5,
        watch_silence_seconds=9.0,
    )


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("HERMES_NAMESPACES", "", "name the namespaces"),
        ("HERMES_NAMESPACES", "Upper", "lower-case"),
        ("HERMES_NAMESPACES", "*", "lower-case"),
        ("HERMES_RUNTIME_IMAGE", "", "name the image"),
        ("HERMES_IMAGE_PULL_POLICY", "Sometimes", "one of IfNotPresent, Always, Never"),
        ("HERMES_IMAGE_PULL_SECRETS", "a_b", "lower-case"),
        ("HERMES_HUB_ENDPOINT", "hub.example", "https://hub.example"),
        ("HERMES_STORE_ADDRESS", "store", "host:port"),
        ("HERMES_STORE_ADDRESS", "store:0", "host:port"),
        ("HERMES_MAX_CONCURRENT_RUNS", "-1", "whole number from 0"),
        ("HERMES_HTTP_PORT", "65536", "up to 65535|to 65535"),
        ("HERMES_LOG_FORMAT", "xml", "one of text, json"),
        ("HERMES_WORKERS", "0", "from 1 to 100"),
        ("HERMES_RESYNC_SECONDS", "nan", "seconds above 0"),
        ("HERMES_WATCH_SILENCE_SECONDS", "soon", "seconds above 0"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name_with_the_remedy(variable, value, remedy):
    with pytest.raises(SettingsError, match=f"^{variable}.*({remedy})"):
        Settings.from_env({**LEAST, variable: value})


def _docstrings() -> str:
    return inspect.getsource(Settings).partition("@classmethod")[0]
