"""A port-forward to a pod of a real node, as fetching uses it."""

import asyncio
import struct

from hermes_runtime.evaluate.cluster import Installation, KubernetesApi
from tests.cluster.kind import Cluster


async def test_bytes_go_through_a_real_port_forward_and_back(kind_cluster: Cluster):
    """The cluster's own name server is asked by TCP: the one server that every cluster has."""
    api = KubernetesApi(context=None, environment={"KUBECONFIG": str(kind_cluster.kubeconfig)})
    at = Installation(namespace="kube-system", service="kube-dns", port=53)
    question = b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"\x0akubernetes\7default\3svc\7cluster\5local\0" + b"\0\1\0\1"
    async with asyncio.timeout(60):
        for _ in range(2):
            connection = await asyncio.to_thread(api.connect, at)
            reader, writer = await asyncio.open_connection(sock=connection.socket)
            writer.write(struct.pack(">H", len(question)) + question)
            (size_bytes,) = struct.unpack(">H", await reader.readexactly(2))
            answer = await reader.readexactly(size_bytes)
            assert answer[:2] == question[:2]
            assert answer[3] & 0xF == 0  # no error
            writer.close()
            await writer.wait_closed()
            assert connection.error() == ""
