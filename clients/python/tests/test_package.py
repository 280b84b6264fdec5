"""The wheel, and the examples."""
from __future__ import annotations

import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_contains_what_it_should() -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(ROOT / "dist")], cwd=ROOT, check=True, capture_output=True)
    wheels = list((ROOT / "dist").glob("keelson-*-py3-none-any.whl"))
    assert len(wheels) == 1
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    for want in ("__init__.py", "py.typed", "kubernetes.json", "k8s/core_v1.py", "k8s/core_v1_pb2.py", "k8s/core_v1_pb2.pyi", "resource/v1/resource_pb2.py"):
        assert "keelson/" + want in names
    assert not [n for n in names if n.startswith(("tests", "examples", "cluster"))]
    # The version is that of the release.
    assert wheels[0].name.split("-")[1] == (ROOT.parent.parent / "VERSION").read_text().strip()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: str(p.name))
def test_examples_are_short_and_compile(example: Path, tmp_path: Path) -> None:
    assert len(example.read_text().splitlines()) < 60
    py_compile.compile(str(example), cfile=str(tmp_path / "out"), doraise=True)
