"""Collectives are read from a program's text: number, bytes, groups and loops."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxformer.config import MeshConfig
from jaxformer.planning.hlo import Collective, array_bytes, collectives, totals
from jaxformer.sharding.mesh import make_mesh


def text_of(function, mesh_config, in_specs, out_specs, *shapes):
    """The compiled text of a function whose collectives are written by hand."""
    mesh = make_mesh(mesh_config)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    arguments = [jnp.zeros(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_a_program_that_sends_nothing_has_none():
    found = collectives(text_of(lambda x: 2 * x, MeshConfig(), P("data"), P("data"), (8, 4)))
    assert found == []
    assert totals(found) == {}


def test_a_sum_over_an_axis_is_an_all_reduce_of_what_it_sums():
    text = text_of(
        lambda x: jax.lax.psum(x, "data"), MeshConfig(data=4, tensor=2), P("data"), P(), (8, 4)
    )
    (found,) = collectives(text)
    assert found.kind == "all-reduce"
    assert found.arrays == ("f32[2,4]",)
    assert (found.devices, found.times, found.at_least) == (4, 1, False)
    assert found.bytes == 2 * 4 * 4
    assert found.sent == 2 * 3 / 4 * found.bytes
    assert totals([found]) == {"all-reduce": (1, found.bytes, found.sent)}


def test_a_sum_over_two_axes_is_over_all_their_devices():
    def function(x):
        return jax.lax.psum(x, ("data", "fsdp"))

    mesh, rows = MeshConfig(data=2, fsdp=2, tensor=2), P(("data", "fsdp"))
    (found,) = collectives(text_of(function, mesh, rows, P(), (8, 4)))
    assert found.devices == 4


def test_a_gather_results_in_the_whole():
    def function(x):
        return jax.lax.all_gather(x, "data", tiled=True).sum(0, keepdims=True)

    (found,) = collectives(text_of(function, MeshConfig(), P("data"), P("data"), (64, 3)))
    assert (found.kind, found.arrays, found.devices) == ("all-gather", ("f32[64,3]",), 8)
    assert found.sent == 7 / 8 * 64 * 3 * 4


def test_a_reduce_scatter_sends_the_parts_of_the_others():
    def function(x):
        return jax.lax.psum_scatter(x, "data", tiled=True)

    (found,) = collectives(text_of(function, MeshConfig(), P("data"), P("data"), (64, 16)))
    assert (found.kind, found.arrays, found.devices) == ("reduce-scatter", ("f32[1,16]",), 8)
    assert found.sent == 7 * 16 * 4


def test_a_ring_step_sends_what_it_has():
    def function(x):
        return jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)])

    (found,) = collectives(text_of(function, MeshConfig(), P("data"), P("data"), (8, 16)))
    assert (found.kind, found.sent) == ("collective-permute", 16 * 4)


def test_the_example_of_the_docs_runs(capsys):
    page = Path("docs/sharding.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    out = capsys.readouterr().out
    assert out.startswith(("all-gather (", "all-reduce ("))
    assert "'all-gather': Total(number=" in out.splitlines()[-1]


@pytest.mark.parametrize("turns", [1, 5])
def test_a_loop_counts_by_its_turns(turns):
    def function(x):
        def turn(carry, _):
            return jnp.sin(jax.lax.psum(carry, "data")) * x[:1], None

        return jax.lax.scan(turn, x[:1], None, length=turns)[0]

    found = collectives(text_of(function, MeshConfig(), P("data"), P("data"), (8, 4)))
    assert totals(found)["all-reduce"].number == turns
    assert not any(one.at_least for one in found)


def test_a_loop_that_does_not_tell_its_turns_is_a_lower_bound():
    def function(x):
        return jax.lax.while_loop(
            lambda y: y.sum() < 100.0, lambda y: jax.lax.psum(y, "data") + x.sum() * 0 + 1, x
        )

    mesh = make_mesh(MeshConfig())
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    text = jax.jit(mapped).lower(jnp.ones((8, 4))).compile().as_text()
    assert [(one.times, one.at_least) for one in collectives(text)] == [(1, True)]


HANDWRITTEN = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%scattering (p: bf16[16,8]) -> bf16[2,8] {
  ROOT %rs = bf16[2,8]{1,0} reduce-scatter(%p), replica_groups={}, dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ars = (f32[4]{0:T(128)}, f32[2,2]{1,0}) all-reduce-start(%x, %y), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add, metadata={op_name="jit(step)/psum"}
  %ard = (f32[4]{0}, f32[2,2]{1,0}) all-reduce-done(%ars)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %ags = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ags)
  %cps = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), \
source_target_pairs={{0,1},{1,0}}
  %loop = (s32[], f32[4]) while(%init), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %async = ((bf16[16,8]), bf16[2,8]) async-start(%g), calls=%scattering
  %parts = f32[4] all-reduce(%p), replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}, to_apply=%add
}
"""


def test_the_forms_of_other_machines_are_read():
    """Begun early, in tiles, by all devices, by parts of an axis: as GPUs and TPUs write it."""
    assert collectives(HANDWRITTEN) == [
        Collective("all-gather", ("f32[16]",), 4, 1, False, ""),
        Collective("collective-permute", ("f32[4]",), 8, 1, False, ""),
        Collective("all-reduce", ("f32[4]", "f32[2,2]"), 2, 3, False, "jit(step)/psum"),
        Collective("reduce-scatter", ("bf16[2,8]",), 8, 1, False, ""),
        Collective("all-reduce", ("f32[4]",), 4, 1, False, ""),
    ]


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("f32[]", 4),
        ("f64[3,5]", 120),
        ("bf16[7]", 14),
        ("pred[4]", 4),
        ("s4[3]", 2),
        ("f8e4m3fn[8]", 8),
        ("c64[2]", 16),
        ("f32[0,4]", 0),
        ("token[]", 0),
    ],
)
def test_bytes_of_an_array(array, size):
    assert array_bytes(array) == size
