"""A real API server takes the definition, and answers documents and edits as the tables say."""

import time

import pytest

from hermes_operator.crd import crd
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import bare_api as bare_api
from tests.cluster_requests import MERGE_PATCH, Ask, asks
from tests.crd_cases import ACCEPTED, EDITS_ACCEPTED, EDITS_REFUSED, MINIMAL, REFUSED, changed
from tests.structural import with_defaults

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RUNS = "/apis/hermes.dev/v1alpha1/namespaces/default/hermesruns"


@pytest.fixture(scope="module")
def runs(bare_api: ApiServer) -> Ask:
    """Requests, once the API server serves HermesRuns."""
    ask = asks(bare_api)
    code, answer = ask("POST", CRDS, crd())
    assert code == 201, answer
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ask("GET", RUNS)[0] == 200:
            return ask
        time.sleep(0.05)  # the API server's own pace; it has no event for "served"
    raise TimeoutError("the API server does not serve HermesRuns")


@pytest.mark.parametrize("document", [pytest.param(document, id=name) for name, document in ACCEPTED])
def test_it_is_taken_with_the_defaults_of_the_schema(runs, document):
    code, answer = runs("POST", f"{RUNS}?dryRun=All&fieldValidation=Strict", document)
    assert code == 201, answer
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert answer["spec"] == with_defaults(document, schema)["spec"]


@pytest.mark.parametrize(("document", "part"), [pytest.param(d, p, id=n) for n, d, p in REFUSED])
def test_it_is_refused_and_the_answer_says_why(runs, document, part):
    code, answer = runs("POST", f"{RUNS}?dryRun=All&fieldValidation=Strict", document)
    assert code in (400, 422), answer
    assert part in answer["message"]


@pytest.fixture(scope="module")
def made(runs: Ask) -> str:
    """The path of a run that is there, at attempt 2."""
    code, answer = runs("POST", RUNS, changed(MINIMAL, {"spec.attempt": 2}))
    assert code == 201, answer
    return f"{RUNS}/{MINIMAL['metadata']['name']}?dryRun=All"


@pytest.mark.parametrize(("edit", "part"), [pytest.param(e, p, id=n) for n, e, p in EDITS_REFUSED])
def test_an_edit_of_what_must_stay_is_refused(runs, made, edit, part):
    code, answer = runs("PATCH", made, changed({}, edit), MERGE_PATCH)
    assert (code, part in answer["message"]) == (422, True), answer


@pytest.mark.parametrize("edit", [pytest.param(edit, id=name) for name, edit in EDITS_ACCEPTED])
def test_an_edit_of_what_may_change_is_taken(runs, made, edit):
    code, answer = runs("PATCH", made, changed({}, edit), MERGE_PATCH)
    assert code == 200, answer
