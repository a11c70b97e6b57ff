"""Collectives read from HLO text: written by hand, and of programs compiled for simulated devices."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from radixmesh.sharding.collectives import Collective, read_collectives
from radixmesh.sharding.hlo import Program

SRC = str(Path(__file__).parents[2] / "src")

LOOP = """HloModule jit_step, entry_computation_layout={()->f32[8]{0}}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  ROOT %sum = bf16[] add(%a, %b)
}

%condition.1 (p: (s32[], bf16[64,4096])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(32)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.7), direction=LT
}

%body.1 (p: (s32[], bf16[64,4096])) -> (s32[], bf16[64,4096]) {
  %x = bf16[64,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-reduce.1 = bf16[64,4096]{1,0:T(8,128)(2,1)} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  %all-reduce.2 = bf16[64,4096]{1,0:T(8,128)(2,1)} all-reduce(%y), replica_groups=[1,8]<=[8], to_apply=%add
}

%fused (p: f32[64]) -> f32[64] {
  %all-gather-start.1 = (f32[8], f32[64]) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}
  %all-gather-done.1 = f32[64] all-gather-done(%all-gather-start.1)
}

ENTRY %main.1 (arg: bf16[64,4096]) -> f32[64] {
  %while.1 = (s32[], bf16[64,4096]) while(%t), condition=%condition.1, body=%body.1
  %fusion.1 = f32[64] fusion(%while.1), kind=kCustom, calls=%fused
  %scatter = f8e4m3fn[4,8]{1,0} reduce-scatter(%z), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %alone = f32[64] all-reduce(%z), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""


def test_loops_count_as_often_as_they_run() -> None:
    assert read_collectives(Program.parse(LOOP)) == (
        Collective("all-reduce", 8, 64 * 4096 * 2, 64),
        Collective("all-gather", 8, 256, 1),
        Collective("reduce-scatter", 2, 64, 1),
    )


def test_a_loop_that_ends_by_data_counts_once() -> None:
    unknown = LOOP.replace("constant(32)", "parameter(1)")
    assert read_collectives(Program.parse(unknown))[0] == Collective("all-reduce", 8, 64 * 4096 * 2, 2)


@pytest.mark.parametrize(
    ("kind", "sent", "hops"),
    [("all-reduce", 175.0, 14), ("all-gather", 87.5, 7), ("collective-permute", 100.0, 1)],
)
def test_what_a_ring_sends(kind: str, sent: float, hops: int) -> None:
    collective = Collective(kind, 8, 100, 3)
    assert (collective.wire_bytes, collective.hops) == (sent, hops)


PROGRAM = """
import sys
sys.path.insert(0, {src!r})
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from radixmesh.sharding.collectives import read_collectives
from radixmesh.sharding.hlo import Program
from radixmesh.sharding.topology import Topology
devices = Topology.parse({name!r}).devices()
import numpy as np
mesh = Mesh(np.asarray(devices[:4]).reshape(2, 2), ("data", "tensor"))

def step(x, weights):
    def layer(x, w):
        return jax.lax.psum(x @ w, "tensor"), None
    x, _ = jax.lax.scan(layer, x, weights)
    return jax.lax.all_gather(x, "data", tiled=True)

mapped = jax.shard_map(step, mesh=mesh, in_specs=(P("data", None), P(None, None, None)), out_specs=P(),
                       check_vma=False)
x = jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=NamedSharding(mesh, P("data", None)))
weights = jax.ShapeDtypeStruct((6, 128, 128), jnp.float32, sharding=NamedSharding(mesh, P()))
for each in read_collectives(Program.parse(jax.jit(mapped).lower(x, weights).compile().as_text())):
    print(each)
"""


@pytest.mark.parametrize("name", ["cpu:4", "v5e:2x2", "v5p:2x2x1"])
def test_of_a_compiled_program(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(src=SRC, name=name)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = sorted(
        re.findall(r"Collective\(kind='(.+?)', group_size=2, bytes=(\d+), count=(\d+)", done.stdout)
    )
    assert told == [("all-gather", str(256 * 128 * 4), "1"), ("all-reduce", str(128 * 128 * 4), "6")]
