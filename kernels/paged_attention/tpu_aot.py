"""Compile the TPU kernel alone for a TPU that is not here, and read what the compiler says of it."""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .pallas_tpu import ragged_paged_attention
from .rows import RaggedRows
from .tpu_blocks import BlockSizes, Shape


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call: the shapes that it is compiled for."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    pool_dtype: str = "bfloat16"
    rows: int = 0  # 0: one for each token, at most 256
    table_entries: int = 0  # 0: one for each page of the pool
    pool_tokens: int = 65536
    options: dict[str, Any] = field(default_factory=dict)  # soft_cap

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.rows or min(self.tokens, 256)

    @property
    def shape(self) -> Shape:
        """What block sizes depend on."""
        itemsize = jnp.dtype(self.pool_dtype).itemsize
        return Shape(
            self.tokens, self.heads, self.kv_heads, self.head_dim, self.page_size,
            pool_dtype=self.pool_dtype, pool_itemsize=itemsize, itemsize=2,
        )  # fmt: skip

    def arrays(self, device: jax.Device) -> list[Any]:
        """q, k, v, the pool, rows, first page and window, as shapes on a device that need not be here."""
        sharding = NamedSharding(Mesh(np.array([device]), ("one",)), PartitionSpec())
        array = partial(jax.ShapeDtypeStruct, sharding=sharding)
        pages, rows = self.pool_tokens // self.page_size, self.num_rows
        new = array((self.tokens, self.kv_heads, self.head_dim), jnp.bfloat16)
        lengths = (self.tokens,), (rows + 1,), (rows,), (self.table_entries or pages,), (rows + 1,), (), ()
        return [
            array((self.tokens, self.heads, self.head_dim), jnp.bfloat16),
            new,
            new,
            array((pages, self.kv_heads, self.page_size, 2 * self.head_dim), jnp.dtype(self.pool_dtype)),
            RaggedRows(*(array(shape, jnp.int32) for shape in lengths)),
            array((), jnp.int32),
            array((), jnp.int32),
        ]


def compile_kernel(
    problem: Problem, device: jax.Device, chip: str, sizes: BlockSizes | None = None
) -> jax.stages.Compiled:
    """The kernel compiled for a device, the pool donated, window and first page traced.

    Raises jax.errors.JaxRuntimeError when it does not fit the chip.
    """

    def call(*args: Any) -> Any:
        *arrays, first_page, window = args
        return ragged_paged_attention(
            *arrays, first_page=first_page, window=window, scale=problem.head_dim**-0.5, chip=chip,
            sizes=sizes, **problem.options,
        )  # fmt: skip

    with jax.set_mesh(Mesh(np.array([device]), ("one",))):
        return jax.jit(call, donate_argnums=3).lower(*problem.arrays(device)).compile()


def vmem_used(compiled: jax.stages.Compiled) -> int | None:
    """The most VMEM that a Pallas call of the program takes, in bytes, as the compiler laid it out.

    None where libtpu cannot print its program: that of a gather or scatter handed to SparseCores.
    """
    try:
        text = compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        if "async-update" not in str(error):
            raise
        return None
    used = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"')
    calls = (line for line in text.splitlines() if "tpu_custom_call" in line)
    return max(int(size) for line in calls for size in used.findall(line))
