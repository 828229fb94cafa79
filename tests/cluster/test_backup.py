"""A store that was lost comes back from its backup, by the words of docs/operations.md."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.binaries import ROOT
from tests.cluster.installation import ONE_DEFECT, Installation

OPERATIONS = ROOT / "docs" / "operations.md"
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "hermes-backup"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}
LOSE_ALL = "import shutil; shutil.rmtree('/data/store')"


@pytest.fixture(scope="module")
def page() -> list[str]:
    """The commands for backup, and those for restore."""
    section = OPERATIONS.read_text().partition("### Backup and restore")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[:2]


def test_a_run_is_fetched_from_a_restored_store_as_it_was(
    installation: Installation, page: list[str], tmp_path: Path
) -> None:
    installation.apply(CLAIM)
    installation.be(backup={"enabled": True})
    run = installation.start("backed-up", evaluate=ONE_DEFECT)
    run.succeeds()
    before = installation.folder_of("backed-up", tmp_path / "before")
    assert any(patch for arm in before.predictions().values() for patch in arm.values())
    back_up, restore = page
    _follow(installation, back_up)
    installation.kubectl("wait", "--for=condition=complete", "job/backup-now", "--timeout=120s")
    installation.kubectl("exec", "hermes-store-0", "--", "python3", "-c", LOSE_ALL)
    said = _follow(installation, restore)
    assert "faults:" in said, "what the restore found is told"
    installation.is_up()
    after = installation.folder_of("backed-up", tmp_path / "after")
    assert after.predictions() == before.predictions()
    assert after.recorded() == before.recorded()
    run.delete()
    installation.kubectl("delete", "job", "backup-now", "--wait=false")


def _follow(installation: Installation, commands: str) -> str:
    """What these commands printed, in the namespace of the installation in place of the page's."""
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", commands.replace("hermes-system", installation.namespace)],
        env=installation.cluster.environment(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
