#!/usr/bin/python3
"""Generates the protobuf messages of the package from the repository's descriptors.

Kubernetes' files, all named generated.proto, become modules such as keelson.k8s.core_v1.
The names of their messages stay. The output is not checked in; the wheel contains it.
"""
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = HERE / "src" / "keelson"
KUBERNETES = ROOT / "services/apiserver/internal/front/grpc/descriptor/kubernetes.binpb.gz"
OWN = ["resource", "trace", "pod"]


def module_name(path: str) -> str:
    """Returns core_v1 for k8s.io/api/core/v1/generated.proto, meta_v1 for apimachinery's."""
    parts = path.split("/")[:-1]
    if re.fullmatch(r"v\d+((alpha|beta)\d+)?", parts[-1]):
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def compile(*arguments: str) -> None:
    # Kubernetes' files import what they do not use, of which protoc warns.
    run = subprocess.run(["protoc", *arguments], stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"generate.py: {run.stderr}")


def main() -> None:
    files = descriptor_pb2.FileDescriptorSet()
    files.ParseFromString(gzip.decompress(KUBERNETES.read_bytes()))
    names = {f.name: f"keelson/k8s/{module_name(f.name)}.proto" for f in files.file}
    for f in files.file:
        f.name = names[f.name]
        for i, dependency in enumerate(f.dependency):
            f.dependency[i] = names[dependency]
    for directory in ["k8s", "client", *OWN]:
        shutil.rmtree(OUT / directory, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "set").write_bytes(files.SerializeToString())
        out = [f"--python_out={OUT.parent}", f"--pyi_out={OUT.parent}"]
        compile(f"--descriptor_set_in={scratch}/set", *out, *sorted(names.values()))
        own = Path(scratch) / "keelson/client/v1/status.proto"
        own.parent.mkdir(parents=True)
        shutil.copy(ROOT / "clients/status.proto", own)
        for area in OWN:
            shutil.copytree(ROOT / f"proto/keelson/{area}", Path(scratch) / f"keelson/{area}")
        sources = sorted(str(p.relative_to(scratch)) for p in Path(scratch).rglob("*.proto"))
        compile(f"-I{scratch}", *out, *sources)
    for directory in ["k8s", "client", *OWN]:
        for folder, _, _ in os.walk(OUT / directory):
            (Path(folder) / "__init__.py").touch()
    (OUT / "k8s/__init__.py").write_text('"""Kubernetes\' own messages, a module for each group and version."""\n')
    for name in names.values():
        module = Path(name).stem
        (OUT / f"k8s/{module}.py").write_text(
            f'"""The messages of Kubernetes\' {module}."""\nfrom keelson.k8s.{module}_pb2 import *  # noqa: F403\n')
    shutil.copy(ROOT / "clients/kubernetes.json", OUT / "kubernetes.json")


if __name__ == "__main__":
    main()
