"""Compile all that a server would at its start, for a TPU slice that is not here: how long it takes.

    python benchmarks/tpu_startup.py                                     # Llama-3.1-8B for v6e:2x4
    python benchmarks/tpu_startup.py --model qwen3-0.6b --topology v6e:1x1

The same steps by the same code as `radixmesh serve` with its defaults there, several at a time; no weights,
and nothing from the compilation cache. CPU seconds are told too: on a busy machine they say more.
"""

import argparse
import os
import sys
import time

import jax

from radixmesh.backends.jax.aot import lower_abstract
from radixmesh.backends.jax.buckets import Shape, compiled_shapes
from radixmesh.backends.jax.compilation import compile_steps
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.planner import make_plan, plan_source
from radixmesh.engine.plan import PlanOptions
from radixmesh.engine.runner import RunnerCapacity
from radixmesh.sharding.mesh import MeshSpec, make_mesh
from radixmesh.sharding.topology import Topology


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3.1-8b", help="a model that `radixmesh plan` knows")
    parser.add_argument("--topology", default="v6e:2x4", help="a TPU slice; its devices share each layer")
    arguments = parser.parse_args()
    topology = Topology.parse(arguments.topology)
    options = PlanOptions(
        model_path=arguments.model, topology=topology.name, tp_size=topology.num_devices, compile=False
    )
    plan = make_plan(options)
    chosen = {choice.name: choice.value for choice in plan.choices}
    page_size, rows, tokens = (
        int(str(chosen[name])) for name in ("page_size", "max_running_requests", "chunked_prefill_size")
    )
    pages = plan.layouts[0].pool_tokens // page_size
    capacity = RunnerCapacity(pages, page_size, rows, tokens, 2 * pages + rows)
    spec, dtypes = read_spec(plan_source(options)), (str(chosen["dtype"]), str(chosen["kv_cache_dtype"]))
    mesh = make_mesh(topology.devices(), MeshSpec(tensor=plan.layouts[0].tensor))
    jax.config.update("jax_enable_compilation_cache", False)

    def lower(shape: Shape) -> jax.stages.Lowered:
        return lower_abstract(spec, capacity, mesh, dtypes, shape)[0]

    started, used = time.monotonic(), time.process_time()
    compile_steps(compiled_shapes(tokens), lower)
    seconds, used = time.monotonic() - started, time.process_time() - used
    print(
        f"{arguments.model} for {topology.name}: {seconds:.0f} s on {os.cpu_count()} cores,"
        f" {used:.0f} s of CPU time, load average {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
