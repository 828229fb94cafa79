"""The Kubernetes API as the operator uses it: server-side apply, merge patches, deletes, lists, the Lease.

Every request is counted and every error becomes an ApiFailure with its code and Retry-After. Nothing is
tried again here: that is the queue's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx2
import msgspec
from lightkube import ApiError, AsyncClient
from lightkube.core.client import LabelSelector
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.types import PatchType

from hermes_operator import names
from hermes_operator.cache import Kind
from hermes_operator.metrics import Metrics
from hermes_operator.observed import Delete, Patch, RunKey
from hermes_operator.reconcile import PAGE_OBJECTS, ApiFailure
from hermes_operator.status import Manifest


class _Endpoint(NamedTuple):
    """One resource of the API."""

    resource: type[GenericNamespacedResource]
    plural: str


def _endpoint(group: str, version: str, kind: str, plural: str) -> _Endpoint:
    # Plain dicts: typed models of pods would only be taken apart again.
    return _Endpoint(create_namespaced_resource(group, version, kind, plural), plural)


_RUN = _endpoint(names.GROUP, names.VERSION, names.KIND, names.PLURAL)
_JOB = _endpoint("batch", "v1", "Job", "jobs")
_POD = _endpoint("", "v1", "Pod", "pods")
_EVENT = _endpoint("events.k8s.io", "v1", "Event", "events")
_LEASE = _endpoint("coordination.k8s.io", "v1", "Lease", "leases")
_WRITTEN = {
    (names.API_VERSION, names.KIND): _RUN,
    ("batch/v1", "Job"): _JOB,
    ("v1", "ServiceAccount"): _endpoint("", "v1", "ServiceAccount", "serviceaccounts"),
    ("networking.k8s.io/v1", "NetworkPolicy"): _endpoint(
        "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"
    ),
}
"""All that actions may name."""
_WATCHED = {Kind.RUN: _RUN, Kind.JOB: _JOB, Kind.POD: _POD}


class KubernetesApi:
    """The API through one client."""

    def __init__(self, client: AsyncClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply the whole object; what other managers own of our fields becomes ours."""
        endpoint = _WRITTEN[manifest["apiVersion"], manifest["kind"]]
        namespace, name = _where(manifest)
        with self._counted("apply", endpoint, name):
            return await self._client.patch(
                endpoint.resource,
                name,
                manifest,
                namespace=namespace,
                patch_type=PatchType.APPLY,
                field_manager=names.FIELD_MANAGER,
                force=True,
            )

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Apply the status subresource."""
        endpoint = _WRITTEN[manifest["apiVersion"], manifest["kind"]]
        namespace, name = _where(manifest)
        with self._counted("apply", endpoint, name, "/status"):
            return await self._client.patch(
                endpoint.resource.Status,
                name,
                manifest,
                namespace=namespace,
                patch_type=PatchType.APPLY,
                field_manager=names.FIELD_MANAGER,
                force=True,
            )

    async def patch(self, patch: Patch) -> Manifest:
        """JSON merge patch."""
        endpoint = _WRITTEN[patch.api_version, patch.kind]
        with self._counted("patch", endpoint, patch.name):
            return await self._client.patch(
                endpoint.resource,
                patch.name,
                patch.patch,
                namespace=patch.namespace,
                patch_type=PatchType.MERGE,
                field_manager=names.FIELD_MANAGER,
            )

    async def read_run(self, key: RunKey) -> Manifest | None:
        """The run as it is now; None: there is none."""
        try:
            with self._counted("get", _RUN, key.name):
                return await self._client.get(_RUN.resource, key.name, namespace=key.namespace)
        except ApiFailure as failure:
            if failure.code == 404:
                return None
            raise

    async def list_children(self, key: RunKey) -> list[tuple[Kind, Manifest]]:
        """Jobs and pods with the run's label."""
        labels: LabelSelector = {names.LABEL_MANAGED_BY: names.MANAGER, names.LABEL_RUN: key.name}
        seen: list[tuple[Kind, Manifest]] = []
        for kind in (Kind.JOB, Kind.POD):
            endpoint = _WATCHED[kind]
            with self._counted("list", endpoint, key.name):
                found = self._client.list(
                    endpoint.resource, namespace=key.namespace, chunk_size=PAGE_OBJECTS, labels=labels
                )
                seen += [(kind, one) async for one in found]
        return seen

    async def delete(self, delete: Delete) -> bool:
        """Delete the object; the cluster collects what it owns. ApiFailure 409: another has its name."""
        endpoint = _WRITTEN[delete.api_version, delete.kind]
        generic = self._client._client  # lightkube's own `delete` has no preconditions
        request = generic.prepare_request(
            "delete", res=endpoint.resource, name=delete.name, namespace=delete.namespace
        )
        request.data = {"propagationPolicy": "Background", "preconditions": {"uid": delete.uid}}
        try:
            with self._counted("delete", endpoint, delete.name):
                sent = generic.build_adapter_request(request)
                answer = await generic.send(sent)  # type: ignore[no-untyped-call]  # lightkube has no types here
                generic.handle_response("delete", answer, request)
        except ApiFailure as failure:
            if failure.code == 404:
                return False
            raise
        return True

    async def create_event(self, manifest: Manifest) -> None:
        """Create the Event under a name that the server makes."""
        with self._counted("create", _EVENT, str(manifest["reason"])):
            await self._client.create(_EVENT.resource(**manifest))

    async def list_all(self, kind: Kind, namespace: str, seen: Callable[[Manifest], None]) -> str:
        """Show `seen` every object of a kind that is ours; returns the version that the list is of."""
        endpoint = _WATCHED[kind]
        labels: LabelSelector | None = None if kind is Kind.RUN else {names.LABEL_MANAGED_BY: names.MANAGER}
        with self._counted("list", endpoint, namespace):
            found = self._client.list(
                endpoint.resource, namespace=namespace, chunk_size=PAGE_OBJECTS, labels=labels
            )
            async for one in found:
                seen(one)
            return found.resourceVersion

    async def knows_runs(self, namespace: str) -> bool:
        """Whether the custom resource definition is installed."""
        try:
            with self._counted("list", _RUN, namespace):
                async for _ in self._client.list(_RUN.resource, namespace=namespace, chunk_size=1):
                    break
        except ApiFailure as failure:
            if failure.code == 404:
                return False
            raise
        return True

    async def read_lease(self, namespace: str, name: str) -> Manifest | None:
        """The Lease; None: there is none."""
        try:
            with self._counted("get", _LEASE, name):
                return await self._client.get(_LEASE.resource, name, namespace=namespace)
        except ApiFailure as failure:
            if failure.code == 404:
                return None
            raise

    async def write_lease(self, manifest: Manifest) -> Manifest:
        """Create the Lease if it has no version yet, else replace that version; ApiFailure 409: it is not
        as we know it."""
        _, name = _where(manifest)
        if "resourceVersion" not in manifest["metadata"]:
            with self._counted("create", _LEASE, name):
                return await self._client.create(_LEASE.resource(**manifest))
        with self._counted("update", _LEASE, name):
            return await self._client.replace(_LEASE.resource(**manifest))

    @contextmanager
    def _counted(self, verb: str, endpoint: _Endpoint, name: str, below: str = "") -> Iterator[None]:
        """Count one request and translate its errors."""
        plural = f"{endpoint.plural}{below}"
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL, msgspec.MsgspecError, KeyError) as error:
            # KeyError: the client looks at a header that a broken answer may lack.
            failure = _failure(f"{verb} {plural} {name}", error)
            self._metrics.count_request(verb, plural, str(failure.code or "none"))
            raise failure from error
        self._metrics.count_request(verb, plural, "200")


def _failure(what: str, error: Exception) -> ApiFailure:
    response = error.response if isinstance(error, httpx2.HTTPStatusError) else None
    message = str(error) or type(error).__name__
    if response is None:
        return ApiFailure(what, code=None, message=message)
    asked = response.headers.get("Retry-After", "")
    if not asked and isinstance(error, ApiError) and error.status.details is not None:
        asked = str(error.status.details.retryAfterSeconds or "")
    return ApiFailure(
        what,
        code=response.status_code,
        message=message,
        retry_after_seconds=float(asked) if asked.isdecimal() else None,
    )


def _where(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return str(metadata["namespace"]), str(metadata["name"])
