"""Local volumes of the built node image, made free again once their claim is gone.

That image has no provisioner (node_image.py), so a volume that was released stays so; here its files go
and its claim is forgotten. Volumes of kind's own image are its provisioner's business and left alone.
"""

import json
import shlex

from tests.cluster import kind
from tests.cluster.kind import Cluster

ROOT = "/var/lib/hermes-volumes/"


def make_free(cluster: Cluster) -> list[str]:
    """Names of the volumes that were released and are available now."""
    listed = json.loads(cluster.kubectl("get", "persistentvolumes", "--output", "json"))["items"]
    freed = []
    for volume in listed:
        path = str((volume["spec"].get("local") or {}).get("path") or "")
        if volume["status"].get("phase") != "Released" or not path.startswith(ROOT):
            continue
        emptied = f"find {shlex.quote(path)} -mindepth 1 -delete"
        cluster.engine.docker("exec", kind.NODE, "sh", "-c", emptied)
        name = str(volume["metadata"]["name"])
        forget = json.dumps([{"op": "remove", "path": "/spec/claimRef"}])
        cluster.kubectl("patch", "persistentvolume", name, "--type", "json", "--patch", forget)
        freed.append(name)
    return freed
