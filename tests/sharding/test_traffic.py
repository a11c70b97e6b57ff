"""HBM traffic read from compiled programs: what the TPU compiler made of small ones whose bytes are known."""

import subprocess
import sys
from pathlib import Path

from radixmesh.sharding.hlo import Program
from radixmesh.sharding.traffic import hbm_bytes

SRC = str(Path(__file__).parents[2] / "src")

HAND = """HloModule m

%sliced (p0: f32[8,1024], p1: s32[], p2: f32[1024]) -> f32[1024] {
  %p0 = f32[8,1024]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1024]{0:T(128)S(1)} parameter(2)
  %cut = f32[1,1024]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,1024}
  %row = f32[1024]{0} bitcast(%cut)
  ROOT %sum = f32[1024]{0:T(128)S(1)} add(%row, %p2)
}

%updated (p0.1: f32[8,1024], p1.1: f32[1,1024], p2.1: s32[]) -> f32[8,1024] {
  %p0.1 = f32[8,1024]{1,0} parameter(0)
  %p1.1 = f32[1,1024]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  ROOT %put = f32[8,1024]{1,0} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %p2.1)
}

%condition (t: (s32[], f32[8,1024], f32[1024])) -> pred[] {
  %t = (s32[], f32[8,1024]{1,0}, f32[1024]{0:T(128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(8)
  ROOT %more = pred[] compare(%i, %n), direction=LT
}

%body (t.1: (s32[], f32[8,1024], f32[1024])) -> (s32[], f32[8,1024], f32[1024]) {
  %t.1 = (s32[], f32[8,1024]{1,0}, f32[1024]{0:T(128)S(1)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %table = f32[8,1024]{1,0} get-tuple-element(%t.1), index=1
  %x = f32[1024]{0:T(128)S(1)} get-tuple-element(%t.1), index=2
  %kernel = f32[1024]{0} custom-call(%table), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"x","cost_estimate":{"bytes_accessed":"1000","flops":"0"}}}
  %fusion.1 = f32[1024]{0:T(128)S(1)} fusion(%table, %i.1, %x), kind=kLoop, calls=%sliced
  ROOT %out = (s32[], f32[8,1024]{1,0}, f32[1024]{0:T(128)S(1)}) tuple(%i.1, %table, %fusion.1)
}

ENTRY %main (a: f32[8,1024], b: f32[1,1024], c: (s32[], f32[8,1024], f32[1024])) -> f32[8,1024] {
  %a = f32[8,1024]{1,0} parameter(0)
  %b = f32[1,1024]{1,0} parameter(1)
  %c = (s32[], f32[8,1024]{1,0}, f32[1024]{0:T(128)S(1)}) parameter(2)
  %loop = (s32[], f32[8,1024]{1,0}, f32[1024]{0:T(128)S(1)}) while(%c), condition=%condition, body=%body
  %zero = s32[] constant(0)
  %copy-start.1 = (f32[1,1024]{1,0:T(1,128)S(1)}, f32[1,1024]{1,0}, u32[]{:S(2)}) copy-start(%b)
  %copy-done.1 = f32[1,1024]{1,0:T(1,128)S(1)} copy-done(%copy-start.1)
  ROOT %fusion.2 = f32[8,1024]{1,0} fusion(%a, %copy-done.1, %zero), kind=kLoop, calls=%updated
}
"""


def test_by_hand() -> None:
    scalars = 8 * (4 + 4 + 1) + 4  # the loop's counter, which its condition and body read, and `zero`
    read_rows, kernels, copied, written = 8 * 4096, 8 * 1000, 4096, 4096
    assert hbm_bytes(Program.parse(HAND)) - (read_rows + kernels + copied + written) in range(
        scalars + 8 * 4 + 1
    )


PROGRAM = """
import sys
sys.path.insert(0, {src!r})
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from radixmesh.sharding.hlo import Program
from radixmesh.sharding.traffic import hbm_bytes
from radixmesh.sharding.topology import Topology
device = Topology.parse("v6e:1x1").devices()[0]
here = NamedSharding(Mesh(np.asarray([device]), ("x",)), P())

def step(x, weights, pool):
    def layer(x, w):
        return jax.nn.relu(x @ w), None
    x, _ = jax.lax.scan(layer, x, weights)
    return x, pool.at[jnp.argmax(x)].set(x[0])

x = jax.ShapeDtypeStruct((64, 4096), jnp.bfloat16, sharding=here)
weights = jax.ShapeDtypeStruct((12, 4096, 4096), jnp.bfloat16, sharding=here)
pool = jax.ShapeDtypeStruct((65536, 4096), jnp.bfloat16, sharding=here)
compiled = jax.jit(step, donate_argnums=2).lower(x, weights, pool).compile()
print(hbm_bytes(Program.parse(compiled.as_text())), compiled.cost_analysis()["bytes accessed"])
"""


def test_a_scanned_stack_is_read_once_and_a_pool_in_place_not_at_all() -> None:
    """XLA's own analysis sees one layer of twelve: it counts a loop's body once."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(src=SRC)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    counted, by_xla = map(float, done.stdout.split())
    weights = 12 * 4096 * 4096 * 2
    assert weights < counted < 1.02 * weights
    assert by_xla < 0.25 * weights
