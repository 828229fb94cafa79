"""Whose a token is, by asking Kubernetes: TokenReview with the store's audience. No Secret is read.

Needs the right to create tokenreviews. In a cluster the API server is found by the pod's environment,
elsewhere by $KUBECONFIG. Answers are remembered by `authenticate.Remembering`, not here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Mapping
from typing import Any

from hermes_runtime.errors import BadInput, PeerLost, Unauthenticated, Unsupported
from hermes_runtime.store.authenticate import Verified

REVIEW_SECONDS = 10.0
"""Longest that one review may take."""

REVIEWS_AT_ONCE = 8
"""More of them wait: the API server has others to serve."""

_log = logging.getLogger(__name__)


class TokenReviews:
    """A verifier that asks the API server."""

    def __init__(self, audience: str, environment: Mapping[str, str]) -> None:
        """BadInput if no API server is to be found; Unsupported without the `kubernetes` package."""
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise Unsupported(
                "tokens are reviewed by Kubernetes, and its client is not installed: "
                "install hermes-operator[cluster]"
            ) from error
        settings = client.Configuration()
        load: Any = config  # its functions have no types
        try:
            if "KUBERNETES_SERVICE_HOST" in environment:
                load.load_incluster_config(client_configuration=settings)
            else:
                load.load_kube_config(environment.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise BadInput(f"no API server to review tokens: {error}") from error
        settings.retries = False  # the caller of the store asks again
        self._audience = audience
        self._client: Any = client
        self._api: Any = client.AuthenticationV1Api(client.ApiClient(settings))
        self._places = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def verify(self, token: str) -> Verified:
        """See authenticate.Verifier."""
        async with self._places:
            said = await asyncio.to_thread(self._review, token)
        return verified(said, token, self._audience)

    def _review(self, token: str) -> Any:
        kinds = self._client
        spec = kinds.V1TokenReviewSpec(token=token, audiences=[self._audience])
        try:
            answer = self._api.create_token_review(
                kinds.V1TokenReview(spec=spec), _request_timeout=REVIEW_SECONDS
            )
        except kinds.ApiException as error:
            _log.error("no token can be reviewed: the API server answered %s %s", error.status, error.reason)
            raise PeerLost(
                f"tokens cannot be reviewed now: the API server answered {error.status} {error.reason}; the "
                "store's ServiceAccount needs the right to create tokenreviews"
            ) from error
        except Exception as error:  # urllib3's errors have no base of the client's
            _log.error("no token can be reviewed: %s", error)
            raise PeerLost(f"tokens cannot be reviewed now: no API server answers ({error})") from error
        return answer.status


def verified(status: Any, token: str, audience: str) -> Verified:
    """What a TokenReview's status says of `token`. Unauthenticated if it is not good for `audience`."""
    if status is None or not status.authenticated:
        reason = (status and status.error) or "unknown or expired, or meant for somebody else"
        raise Unauthenticated(f"the token is not valid for audience {audience}: {reason}")
    if audience not in (status.audiences or ()):  # an API server that does not know audiences names none
        raise Unauthenticated(f"the token was not made for audience {audience}")
    return Verified(name=status.user.username, expires_at=expiry(token))


def expiry(token: str) -> float | None:
    """When a token that is known to be good expires; None if it does not say."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None
