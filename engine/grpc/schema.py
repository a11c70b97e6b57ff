"""The messages of radixmesh.proto, compiled at start: no generated code that could differ from it."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

PROTO = Path(__file__).with_name("radixmesh.proto")
PACKAGE = "radixmesh.v1"
SERVICE = f"{PACKAGE}.RadixMesh"


@cache
def messages() -> dict[str, Any]:
    """The message classes by their names without the package. Server reflection knows them from then on."""
    pool = descriptor_pool.Default()
    (file,) = _compile().file
    pool.AddSerializedFile(file.SerializeToString())
    found = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.removeprefix(f"{PACKAGE}."): each for name, each in found.items()}


def _compile() -> FileDescriptorSet:
    with TemporaryDirectory() as folder:
        made = Path(folder) / "set"
        status = protoc.main(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={made}", PROTO.name])
        assert status == 0, "radixmesh.proto is part of the package"
        return FileDescriptorSet.FromString(made.read_bytes())
