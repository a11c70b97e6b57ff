"""The gRPC service by a client that protoc made of radixmesh.proto; tokens are the fake model's."""

import importlib.util
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

from radixmesh.backends.fake.oracle import expected_embedding, expected_prompt_logprobs, expected_tokens
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.grammar.given import KINDS
from radixmesh.engine.grammar.grammar import GrammarSpec
from radixmesh.engine.grpc.reading import read_generate
from radixmesh.engine.grpc.schema import PROTO, SERVICE
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.state import Server
from tests.engine.grpc.conftest import grpc_address
from tests.engine.server.conftest import Start
from tests.engine.server.scripted import ScriptedLLM
from tests.engine.server.test_openai_client import VOCAB, text_of
from tests.running import Running

Code = grpc.StatusCode


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, ModuleType]:
    """The modules radixmesh_pb2 and radixmesh_pb2_grpc, as any client has them."""
    folder = tmp_path_factory.mktemp("client")
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main(["protoc", f"-I{PROTO.parent}", *outputs, PROTO.name]) == 0
    return load(folder / "radixmesh_pb2.py"), load(folder / "radixmesh_pb2_grpc.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pb(client: tuple[Any, Any]) -> Any:
    return client[0]


@pytest.fixture
def stub(client: tuple[Any, Any], channel: grpc.Channel) -> Iterator[Any]:
    yield client[1].RadixMeshStub(channel)


def greedy(pb: Any, count: int, **more: Any) -> Any:
    return pb.Sampling(max_new_tokens=count, temperature=0, ignore_eos=True, **more)


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status and message with which a call ends."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    return caught.value.code(), caught.value.details()


def test_text_and_token_ids(pb: Any, stub: Any) -> None:
    expected = expected_tokens(list(b"hello"), 30, VOCAB)
    for prompt in ({"text": "hello"}, {"token_ids": pb.TokenIds(ids=b"hello")}):
        parts = list(stub.Generate(pb.GenerateRequest(sampling=greedy(pb, 30), request_id="mine", **prompt)))
        assert len(parts) > 1
        assert [token for part in parts for token in part.token_ids] == expected
        assert "".join(part.text for part in parts) == text_of(expected)
        assert {part.request_id for part in parts} == {"mine"}
        assert [part.finish_reason for part in parts] == [""] * (len(parts) - 1) + ["length"]
        assert (parts[-1].prompt_tokens, parts[-1].completion_tokens) == (5, 30)
        assert parts[-1].WhichOneof("matched_stop") is None


def test_sequences_and_logprobs(pb: Any, stub: Any) -> None:
    request = pb.GenerateRequest(text="ab", sampling=greedy(pb, 4, n=2, logprobs=2))
    tokens: dict[int, list[int]] = {0: [], 1: []}
    for part in stub.Generate(request):
        tokens[part.index] += part.token_ids
        assert [each.logprob for each in part.logprobs] == [-0.5] * len(part.token_ids)
        for token, each in zip(part.token_ids, part.logprobs, strict=True):
            assert list(each.top_ids) == [token, (token + 1) % VOCAB]
            assert list(each.top_logprobs) == [-0.5, -1.5]
    expected = expected_tokens(list(b"ab"), 4, VOCAB)
    assert tokens == {0: expected, 1: expected}


def test_logprobs_of_the_prompt_and_of_given_ids(pb: Any, stub: Any) -> None:
    asked = [3, 200]
    sampling = greedy(pb, 9, n=2, prompt_logprobs=1, prompt_logprob_start=2, logprob_token_ids=asked)
    expected = expected_prompt_logprobs(list(b"hello"), VOCAB, top=1, asked=asked)[2:]
    told: dict[int, list[Any]] = {0: [], 1: []}
    for part in stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling)):
        told[part.index] += [
            (each.logprob, list(each.top_ids), list(each.asked)) for each in part.prompt_logprobs
        ]
        assert not part.logprobs
    assert told == {0: expected, 1: expected}  # once


def test_what_stopped_it_is_told(pb: Any, stub: Any) -> None:
    tokens = expected_tokens(list(b"stop"), 40, VOCAB)
    whole = text_of(tokens)
    stop = next(whole[k : k + 2] for k in range(5, 30) if whole[k : k + 2].isascii())
    *_, last = stub.Generate(pb.GenerateRequest(text="stop", sampling=greedy(pb, 40, stop=[stop])))
    assert (last.finish_reason, last.matched_text) == ("stop", stop)
    sampling = greedy(pb, 40, stop_token_ids=[tokens[7]])
    *_, last = stub.Generate(pb.GenerateRequest(text="stop", sampling=sampling))
    assert (last.finish_reason, last.matched_token_id) == ("stop", tokens[7])


def test_every_sampling_parameter_can_be_asked_for(pb: Any) -> None:
    # Embed asks for `embed`
    known = set(SamplingParams.__dataclass_fields__) - {"grammar", "embed"} | set(
        KINDS
    )  # Embed asks for that
    assert {field.name for field in pb.Sampling.DESCRIPTOR.fields} == known


def test_grammars(pb: Any) -> None:
    server = Server(ScriptedLLM("", ""), ServerOptions())  # type: ignore[arg-type]

    def asked(**fields: Any) -> GrammarSpec | None:
        request = pb.GenerateRequest(text="a", sampling=pb.Sampling(**fields))
        return read_generate(server, request).params[0].grammar

    assert asked() is None and asked(json_object=False) is None
    assert asked(json_object=True) == GrammarSpec("json_object")
    for kind in ("json_schema", "regex", "ebnf", "structural_tag"):
        assert asked(**{kind: "{}"}) == GrammarSpec(kind, "{}")
    assert asked(choices=pb.Choices(texts=["a", "b"])) == GrammarSpec("choices", '["a", "b"]')


def test_cached_tokens(pb: Any, stub: Any) -> None:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(100)), sampling=greedy(pb, 1))
    list(stub.Generate(request))
    (part,) = stub.Generate(request)
    assert part.cached_tokens >= 80
    request.extra_key = "mine"
    (part,) = stub.Generate(request)
    assert part.cached_tokens == 0


def test_refusals_name_the_field(pb: Any, stub: Any) -> None:
    def ask(**fields: Any) -> tuple[grpc.StatusCode, str]:
        return refused(stub.Generate(pb.GenerateRequest(**fields)))

    assert ask() == (Code.INVALID_ARGUMENT, "prompt is not set; accepted is one of text and token_ids")
    for fields, name in (
        ({"text": "a", "sampling": pb.Sampling(temperature=-1)}, "sampling.temperature is -1.0"),
        ({"text": "a", "sampling": pb.Sampling(n=1000)}, "sampling.n is 1000"),
        ({"text": "a", "sampling": pb.Sampling(top_p=0)}, "sampling.top_p is 0.0"),
        ({"text": "a", "sampling": pb.Sampling(logit_bias={1: 500})}, "sampling.logit_bias is 500"),
        ({"token_ids": pb.TokenIds(ids=[4_000_000_000])}, "the prompt has the token id 4000000000"),
        ({"token_ids": pb.TokenIds()}, "the prompt is empty"),
        ({"text": "a" * 5000}, "the prompt has 5000 tokens"),
    ):
        code, text = ask(**fields)
        assert code is Code.INVALID_ARGUMENT and text.startswith(name), text
    code, _ = ask(text="a" * 200_000)  # over max_body_bytes
    assert code is Code.RESOURCE_EXHAUSTED


def test_fields_of_another_version_are_refused(pb: Any, stub: Any) -> None:
    newer = bytes([0xF8, 0x07, 1])  # field 127, an integer
    plain = pb.GenerateRequest(text="a", sampling=greedy(pb, 1))
    nested = pb.GenerateRequest(text="a", sampling=pb.Sampling.FromString(newer))
    for request, name in (
        (pb.GenerateRequest.FromString(plain.SerializeToString() + newer), "GenerateRequest"),
        (nested, "Sampling"),
    ):
        code, text = refused(stub.Generate(request))
        assert code is Code.INVALID_ARGUMENT
        assert text.startswith(f"{name} has a field with the number 127")


def test_abort_ends_a_call_and_a_call_that_ends_is_aborted(pb: Any, stub: Any, served: Running) -> None:
    long = pb.Sampling(temperature=0, ignore_eos=True, max_new_tokens=4000)
    call = stub.Generate(pb.GenerateRequest(text="x", sampling=long, request_id="long"))
    next(call)
    assert stub.Abort(pb.AbortRequest(request_id="long")).aborted == 1
    assert [part.finish_reason for part in call][-1] == "abort"
    assert stub.Abort(pb.AbortRequest(request_id="long")).aborted == 0
    assert refused(lambda: stub.Abort(pb.AbortRequest()))[0] is Code.INVALID_ARGUMENT
    call = stub.Generate(pb.GenerateRequest(text="y", sampling=long))
    next(call)
    call.cancel()
    deadline = time.monotonic() + 10
    while served.stats()["num_running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    stats = served.stats()
    assert stats["num_running"] == 0 and stats["used_pages"] == 0


def test_model_info(pb: Any, stub: Any) -> None:
    info = stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.name, info.vocab_size, info.context_length) == ("fake", VOCAB, 4096)
    assert list(info.eos_token_ids) == [258] and info.takes_text


def test_embeddings(start: Start, client: tuple[Any, Any], stub: Any) -> None:
    pb, made = client
    request = pb.EmbedRequest(text="Hello")
    code, text = refused(lambda: stub.Embed(request))
    assert code is Code.INVALID_ARGUMENT and "--embedding-pooling" in text
    running = start({"embedding_pooling": "mean"}, {"grpc_port": 0})
    with grpc.insecure_channel(grpc_address(running)) as channel:
        stub = made.RadixMeshStub(channel)
        expected = np.array(expected_embedding(list(b"Hello"), mean=True))
        got = stub.Embed(request)
        np.testing.assert_allclose(got.embedding, expected / np.linalg.norm(expected), rtol=1e-5)
        assert got.prompt_tokens == 5
        request = pb.EmbedRequest(token_ids=pb.TokenIds(ids=b"Hello"), dimensions=2)
        fewer = expected[:2] / np.linalg.norm(expected[:2])
        np.testing.assert_allclose(stub.Embed(request).embedding, fewer, rtol=1e-5)
        for dimensions in (0, 5):
            request = pb.EmbedRequest(text="Hello", dimensions=dimensions)
            code, text = refused(partial(stub.Embed, request))
            assert code is Code.INVALID_ARGUMENT and text.startswith(f"dimensions is {dimensions};")
        assert refused(lambda: stub.Embed(pb.EmbedRequest()))[1].startswith("prompt is not set")


def test_reflection_tells_the_whole_file(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert {method.name for method in service.methods} == {"Generate", "Embed", "Abort", "GetModelInfo"}


def test_it_is_counted_and_logged(pb: Any, stub: Any, served: Running) -> None:
    list(stub.Generate(pb.GenerateRequest(text="a", sampling=greedy(pb, 2), request_id="logged")))
    line = 'http_responses_total{route="/radixmesh.v1.RadixMesh/Generate",status="200"}'
    assert line in httpx.get(served.url + "/metrics").text
    (told,) = (line for line in served.text().splitlines() if "id=logged " in line)
    assert "method=gRPC" in told and "output_tokens=2" in told and "finish=length" in told


def health(channel: grpc.Channel, name: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=name)).status)


def test_health(channel: grpc.Channel) -> None:
    assert health(channel) == health(channel, SERVICE) == health_pb2.HealthCheckResponse.SERVING


def test_the_end_of_the_engine_is_told(start: Start, client: tuple[Any, Any]) -> None:
    running = start(options={"grpc_port": 0})
    pb, made = client
    with grpc.insecure_channel(grpc_address(running)) as channel:
        stub = made.RadixMeshStub(channel)
        long = pb.Sampling(temperature=0, ignore_eos=True, max_new_tokens=4000)
        call = stub.Generate(pb.GenerateRequest(text="x", sampling=long))
        next(call)
        running.engine().kill()
        code, text = refused(call)
        assert code is Code.UNAVAILABLE and "engine" in text
    assert running.process.wait(timeout=20) == 1


def test_keys_and_limits(start: Start, client: tuple[Any, Any]) -> None:
    keys = {"api_key": ("secret",), "admin_api_key": "root", "rate_limit_requests": 2}
    running = start(options={"grpc_port": 0, **keys})
    pb, made = client
    request = pb.GenerateRequest(text="a", sampling=greedy(pb, 1))
    with grpc.insecure_channel(grpc_address(running)) as channel:
        stub = made.RadixMeshStub(channel)
        assert refused(stub.Generate(request))[0] is Code.UNAUTHENTICATED
        assert refused(lambda: stub.GetModelInfo(pb.GetModelInfoRequest()))[0] is Code.UNAUTHENTICATED
        mine = [("authorization", "Bearer secret")]
        for metadata in (mine, [("x-api-key", "secret")]):
            assert list(stub.Generate(request, metadata=metadata))
        code, text = refused(stub.Generate(request, metadata=mine))
        assert code is Code.RESOURCE_EXHAUSTED and "2 requests a minute" in text
        everything = pb.AbortRequest(abort_all=True)
        assert refused(lambda: stub.Abort(everything, metadata=mine))[0] is Code.PERMISSION_DENIED
        assert stub.Abort(everything, metadata=[("x-api-key", "root")]).aborted == 0
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
    assert "secret" not in running.text()


def test_a_port_that_is_taken(start: Start, served: Running) -> None:
    port = int(grpc_address(served).rpartition(":")[2])
    running = start(options={"grpc_port": port}, ready=False)
    assert running.process.wait(timeout=60) == 1
    assert f"grpc_port {port} on host 127.0.0.1 cannot be bound" in running.text()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixmesh.engine.server.options.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="grpc_port is 1, which needs grpc, .* 'radixmesh\\[grpc\\]'"):
        ServerOptions(grpc_port=1)
    assert ServerOptions().grpc_port is None
