"""What `helm test` runs: one small HermesRun from creation to its end.

Reads NAMESPACE, SPEC (JSON) and TIMEOUT_SECONDS from its environment; exits 0 if the run succeeded. The
run is taken away if it succeeded, and left to be looked at if not.
"""

import json
import os
import sys
import time

from kubernetes import client, config

RUN = "hermes-verify"
PLACE = {"group": "hermes.dev", "version": "v1alpha1", "plural": "hermesruns"}
ENDS = ("Succeeded", "Failed")
NOT_FOUND = 404


def find(api, namespace):
    """The run as it is; None if it is not there."""
    try:
        return api.get_namespaced_custom_object(namespace=namespace, name=RUN, **PLACE)
    except client.ApiException as error:
        if error.status == NOT_FOUND:
            return None
        raise


def delete(api, namespace, deadline):
    """Delete the run, and wait until it is gone."""
    if find(api, namespace) is not None:
        api.delete_namespaced_custom_object(namespace=namespace, name=RUN, **PLACE)
    while find(api, namespace) is not None and time.monotonic() < deadline:
        time.sleep(1)


def main():
    """Return the exit code."""
    config.load_incluster_config()
    api = client.CustomObjectsApi()
    namespace = os.environ["NAMESPACE"]
    deadline = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])
    delete(api, namespace, deadline)
    run = {
        "apiVersion": "hermes.dev/v1alpha1",
        "kind": "HermesRun",
        "metadata": {"name": RUN},
        "spec": json.loads(os.environ["SPEC"]),
    }
    api.create_namespaced_custom_object(namespace=namespace, body=run, **PLACE)
    told, status = None, {}
    while time.monotonic() < deadline:
        status = (find(api, namespace) or {}).get("status") or {}
        line = (
            f"{status.get('phase', 'not looked at yet')} {status.get('progress', {}).get('doneOfTotal', '')}"
        )
        if line != told:
            told = line
            print(f"{RUN}: {line}", flush=True)
        if status.get("phase") in ENDS:
            break
        time.sleep(2)
    if status.get("phase") == "Succeeded":
        print(f"{RUN}: {status.get('progress', {}).get('solved', '')}")
        delete(api, namespace, deadline + 60)
        return 0
    print(json.dumps(status, indent=2))
    print(f"{RUN} did not succeed: kubectl -n {namespace} describe hermesrun {RUN}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
