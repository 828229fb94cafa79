"""/livez, /readyz and /metrics, for the kubelet and for Prometheus.

What is wrong is told by two functions that are passed in; here it is only answered. Alive means that a
restart would not help; ready, that the operator acts or stands by for the one that does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from hermes_operator.metrics import Metrics

Problems = Callable[[], list[str]]


@asynccontextmanager
async def served(
    *, port: int, livez: Problems, readyz: Problems, metrics: Metrics, before_metrics: Callable[[], None]
) -> AsyncIterator[int]:
    """Serve until the block ends; the port that is served. `before_metrics` brings gauges up to date."""

    async def answer_livez(_: web.Request) -> web.Response:
        return _answer(livez())

    async def answer_readyz(_: web.Request) -> web.Response:
        return _answer(readyz())

    async def answer_metrics(_: web.Request) -> web.Response:
        before_metrics()
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app = web.Application()
    app.router.add_get("/livez", answer_livez)
    app.router.add_get("/readyz", answer_readyz)
    app.router.add_get("/metrics", answer_metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        # A free port of the loopback is for tests; a pod is asked at all of its addresses.
        site = web.TCPSite(runner, None if port else "127.0.0.1", port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _answer(problems: list[str]) -> web.Response:
    return web.Response(status=503 if problems else 200, text="".join(f"{p}\n" for p in problems) or "ok\n")
