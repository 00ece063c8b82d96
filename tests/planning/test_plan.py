"""A plan is what the run really allocates and compiles, whatever the mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.batch import Batch, SpecialTokens
from jaxformer.config import (
    GPT_PRESETS,
    TRANSFORMER_PRESETS,
    CopyConfig,
    CopyTranslationConfig,
    DataConfig,
    LanguageConfig,
    MeshConfig,
    NumbersConfig,
    NumbersTranslationConfig,
    TextPairsConfig,
    TextTranslationConfig,
)
from jaxformer.data.pair_batches import PairBatches
from jaxformer.data.pairs import Sequences, TokenPairs
from jaxformer.errors import UserError
from jaxformer.planning.hardware import GPUS
from jaxformer.planning.hlo import Total
from jaxformer.planning.plan import Memory, Plan, analysed_total, cpu_options, make_plan
from jaxformer.planning.roofline import PRODUCT_SHARE, TRAFFIC_SHARE, predict
from jaxformer.planning.shapes import abstract_spec, largest_batch
from jaxformer.planning.suggest import slice_numbers, suggestions
from jaxformer.planning.verify import run_two_steps
from jaxformer.runtime.memory import peak_bytes
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.program import build
from jaxformer.tasks.translation import longest_pair
from tests.formulas import gpt_flops, gpt_parameters

pytestmark = pytest.mark.optimized

TOY = dataclasses.replace(GPT_PRESETS["toy"], num_layers=1)
RUN = LanguageConfig(model=TOY, steps=20, batch_size=16)
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "tensor 2 x fsdp 2 x data 2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def on(mesh: MeshConfig, **changes) -> LanguageConfig:
    return dataclasses.replace(RUN, mesh=mesh, **changes)


def held_by(device: jax.Device, tree) -> int:
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, id=name, marks=[] if "x" in name else [pytest.mark.slow])
        for name, mesh in MESHES.items()
    ],
)
def test_a_plan_is_what_the_run_allocates_and_compiles(mesh):
    config = on(mesh)
    plan = make_plan(config, jax.devices())
    spec = abstract_spec(config)
    program = build(spec, make_mesh(mesh))
    state = program.fresh_state()
    tokens = np.zeros((RUN.batch_size, TOY.context_length), np.int32)
    batch = jax.device_put(Batch(tokens, tokens, tokens == 0), program.rows)
    for device in jax.devices():
        assert plan.memory.parameters == held_by(device, state.params)
        assert plan.memory.optimizer == held_by(device, state._replace(params=()))
        assert plan.memory.batch == held_by(device, batch)
    compiled = program.train_step.lower(state, batch).compile(cpu_options(remat="none"))
    assert plan.memory.total == analysed_total(compiled.memory_analysis())
    assert plan.memory.gradients == plan.memory.parameters
    assert plan.memory.activations > 0
    assert plan.model_flops == gpt_flops(TOY, RUN.batch_size, TOY.context_length) / 8
    assert plan.num_parameters == gpt_parameters(TOY)
    assert plan.mesh == dict(make_mesh(mesh).shape)


def test_the_check_allocates_and_runs_what_was_planned():
    config = on(MESHES["fsdp 8"])
    plan = make_plan(config, jax.devices())
    used = run_two_steps(config, jax.devices())
    assert used.state == plan.memory.parameters + plan.memory.optimizer
    # Compiled as a run compiles it, without the options that make a plan: 0.94 measured.
    assert 0.85 < plan.memory.total / used.program < 1.05
    assert used.program != plan.memory.total
    assert used.peak is None  # CPUs do not count


def test_devices_that_count_tell_the_most_that_one_held(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert peak_bytes([Device({"peak_bytes_in_use": n}) for n in (3, 9, 4)]) == 9
    assert peak_bytes([Device(None), Device({})]) is None


def test_sharing_parameters_divides_their_memory_and_gathers_them():
    copies, shared = (make_plan(on(MESHES[mesh]), jax.devices()) for mesh in ("data 8", "fsdp 8"))
    assert shared.memory.parameters < copies.memory.parameters / 4
    assert "all-gather" in shared.collectives
    assert "all-gather" not in copies.collectives


def test_slices_save_activations_and_keep_the_work():
    # The slices are of one size: the work a step does must not depend on how it is cut.
    long = dataclasses.replace(TOY, context_length=64)
    whole, cut = (
        make_plan(on(MeshConfig(), model=long, accumulation=n), jax.devices()[:2]) for n in (1, 4)
    )
    assert cut.memory.activations < whole.memory.activations / 2
    assert cut.model_flops == whole.model_flops
    assert cut.compiled_flops == pytest.approx(whole.compiled_flops, rel=0.1)
    assert cut.traffic == pytest.approx(whole.traffic, rel=0.25)
    assert whole.compiled_flops == pytest.approx(whole.model_flops, rel=0.35)


def test_every_slice_gathers_for_itself():
    """XLA's CPU compiler would gather before the loop, and hold the whole model through it."""
    whole, cut = (make_plan(on(MESHES["fsdp 8"], accumulation=n), jax.devices()) for n in (1, 2))
    assert cut.collectives["all-gather"].number == 2 * whole.collectives["all-gather"].number


def test_rematerialising_saves_activations_for_work():
    long = dataclasses.replace(TOY, context_length=64, num_layers=3)
    kept, again = (
        make_plan(on(MeshConfig(), model=dataclasses.replace(long, remat=r)), jax.devices()[:1])
        for r in ("none", "full")
    )
    assert again.memory.activations < 0.5 * kept.memory.activations
    assert again.compiled_flops > 1.1 * kept.compiled_flops
    assert again.model_flops == kept.model_flops


def test_the_work_of_every_scanned_layer_is_counted():
    """XLA counts the loop over them once; what is sent in it counts as often as it is run."""
    deep = dataclasses.replace(TOY, num_layers=3)
    unrolled, scanned = (
        make_plan(on(MESHES["fsdp 8"], model=model), jax.devices())
        for model in (deep, dataclasses.replace(deep, scan_layers=True))
    )
    assert scanned.compiled_flops == pytest.approx(unrolled.compiled_flops, rel=0.02)
    assert scanned.traffic == pytest.approx(unrolled.traffic, rel=0.1)
    assert scanned.num_parameters == unrolled.num_parameters
    assert scanned.model_flops == unrolled.model_flops
    for part in ("parameters", "optimizer", "batch"):
        assert getattr(scanned.memory, part) == getattr(unrolled.memory, part)
    # Each device keeps its own rows through the loop; gradients alone are summed.
    assert scanned.memory.activations < 2 * unrolled.memory.activations
    sums = [plan.collectives["all-reduce"].bytes for plan in (scanned, unrolled)]
    assert sums[0] == pytest.approx(sums[1], rel=0.02)


PAIRS = dataclasses.replace(TRANSFORMER_PRESETS["toy"], vocab_size=0, context_length=64)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LanguageConfig(model=dataclasses.replace(TOY, vocab_size=0)), 4096),
        (
            LanguageConfig(
                model=dataclasses.replace(TOY, vocab_size=0), data=DataConfig(tokenizer="bytes")
            ),
            256,
        ),
        (LanguageConfig(model=TOY, data=DataConfig(tokenizer="characters")), 64),
        (CopyTranslationConfig(model=PAIRS, data=CopyConfig(num_symbols=7)), 7 + 3),
        (NumbersTranslationConfig(model=PAIRS), 512 + 3),
        (TextTranslationConfig(model=PAIRS, data=TextPairsConfig(vocab_size=300)), 300 + 3),
    ],
)
def test_the_vocabulary_is_taken_from_the_configuration(config, tokens):
    assert abstract_spec(config).config.model.vocab_size == tokens


def test_a_vocabulary_that_only_the_text_knows_is_asked_for():
    open_model = dataclasses.replace(TOY, vocab_size=0)
    config = LanguageConfig(model=open_model, data=DataConfig(tokenizer="characters"))
    with pytest.raises(UserError, match="give the number with --model"):
        abstract_spec(config)


def test_the_longest_pair_is_bounded_by_the_data_or_by_the_context():
    assert longest_pair(CopyTranslationConfig(model=PAIRS, data=CopyConfig(max_length=9))) == 10
    text = TextTranslationConfig(model=PAIRS, data=TextPairsConfig(max_tokens=40))
    assert longest_pair(text) == 41
    assert longest_pair(TextTranslationConfig(model=PAIRS)) == 64  # the context, not 100 tokens
    assert longest_pair(NumbersTranslationConfig(model=PAIRS, data=NumbersConfig())) == 64


def test_the_largest_batch_of_pairs_is_one_that_a_run_meets():
    config = CopyTranslationConfig(
        model=dataclasses.replace(PAIRS, vocab_size=10),
        data=CopyConfig(num_symbols=7, max_length=30),
        batch_tokens=1000,
        accumulation=2,
    )
    mesh = make_mesh(MeshConfig(), jax.devices())
    batch = largest_batch(config, mesh)
    sides = [np.zeros(length, np.int32) for length in range(1, 31)] * 50
    pairs = TokenPairs(Sequences.of(sides, "<u2"), Sequences.of(sides, "<u2"))
    met = PairBatches(pairs, SpecialTokens(7, 8, 9), 1000, row_multiple=16)
    assert batch.shape in met.shapes
    assert batch.shape == max(met.shapes, key=lambda shape: shape[0] * shape[1] ** 2)
    assert [x.dtype for x in batch.arrays] == [x.dtype for x in met[0]]


SIXTEEN = Plan(
    config=LanguageConfig(model=dataclasses.replace(TOY, dtype="bfloat16")),
    num_parameters=gpt_parameters(TOY),
    mesh={"data": 2, "fsdp": 1, "tensor": 1},
    batch_shape=(8, 16),
    memory=Memory(1, 2, 3, 4, 5, 6),
    model_flops=312e9,
    compiled_flops=0.0,
    traffic=0.0,
    collectives={"all-reduce": Total(2, 100, 300e6), "all-gather": Total(1, 100, 0.0)},
    seconds=1.0,
)


def test_a_step_is_its_longer_half_and_what_it_sends():
    gpu = GPUS["A100-40GB"]
    found = predict(SIXTEEN, gpu)
    assert found.product == "bfloat16"
    assert found.compute == pytest.approx(1e-3 / PRODUCT_SHARE)
    assert found.collectives == pytest.approx(1e-3 / TRAFFIC_SHARE)
    assert found.step == found.compute + found.collectives
    assert found.mfu == pytest.approx(1e-3 / found.step)
    moves = dataclasses.replace(SIXTEEN, traffic=1555e9)
    assert predict(moves, gpu).step == pytest.approx(1 / TRAFFIC_SHARE + found.collectives)
    # What is computed again takes time, and counts for nothing.
    again = dataclasses.replace(SIXTEEN, compiled_flops=2 * SIXTEEN.model_flops)
    assert predict(again, gpu).compute == 2 * found.compute
    assert predict(again, gpu).mfu == pytest.approx(1e-3 / predict(again, gpu).step)


def test_a_type_without_products_of_its_own_is_multiplied_in_float32():
    assert predict(SIXTEEN, GPUS["V100"]).peak == 15.7e12
    plan = dataclasses.replace(SIXTEEN, config=LanguageConfig(model=TOY))
    assert predict(plan, GPUS["H100"]).product == "tensorfloat32"
    assert predict(plan, GPUS["T4"]).product == "float32"
    wide = LanguageConfig(model=dataclasses.replace(TOY, dtype="float64"))
    with pytest.raises(UserError, match="float64"):
        predict(dataclasses.replace(SIXTEEN, config=wide), GPUS["H100"])


def planner(needs):
    """Plans by a formula in the place of the compiler; each configuration is planned once."""
    made = []

    def make(config):
        mesh = {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor}
        assert config not in made
        made.append(config)
        bytes_needed = Memory(0, 0, 0, 0, needs(config), 0)
        return dataclasses.replace(SIXTEEN, config=config, mesh=mesh, memory=bytes_needed)

    return make, made


def asked(needs, room: int) -> list[tuple[str, bool]]:
    config = LanguageConfig(model=TOY, mesh=MeshConfig(data=2), batch_size=64)
    make, _ = planner(needs)
    plan = dataclasses.replace(make(config), batch_shape=(64, 16))
    found = suggestions(plan, make, lambda plan: plan.memory.total <= room)
    return [(one.flags, one.fits) for one in found]


def test_the_fewest_slices_that_fit_are_found():
    found = asked(lambda config: 1000 // config.accumulation, room=130)
    assert found == [
        ("--mesh.data 1 --mesh.fsdp 2", False),
        ("--model.remat full", False),
        ("--accumulation 8", True),
    ]


def test_changes_are_put_together_only_if_none_is_enough():
    def needs(config):
        return 1000 // (config.mesh.fsdp * (5 if config.model.remat == "full" else 1)) + 100

    assert asked(needs, room=300)[-1] == ("--accumulation 32", False)
    assert asked(needs, room=250)[-2:] == [
        ("--accumulation 32", False),
        ("--mesh.data 1 --mesh.fsdp 2 --model.remat full", True),
    ]
    found = asked(lambda config: 64 // config.accumulation // config.mesh.fsdp, room=1)
    assert found[-1] == ("--mesh.data 1 --mesh.fsdp 2 --model.remat full --accumulation 32", True)


def test_slices_leave_the_largest_batch_of_pairs_as_it_is():
    config = CopyTranslationConfig(
        model=dataclasses.replace(PAIRS, vocab_size=10),
        data=CopyConfig(num_symbols=7, max_length=30),
        batch_tokens=750,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    shape = largest_batch(config, mesh).shape
    assert shape == (24, 31)
    plan = dataclasses.replace(SIXTEEN, config=config, batch_shape=shape)
    assert slice_numbers(plan) == [2, 3, 4, 6, 12]
    for number in slice_numbers(plan):
        cut = dataclasses.replace(config, accumulation=number)
        assert largest_batch(cut, mesh).shape == shape
    eight = dataclasses.replace(config, accumulation=8)
    assert largest_batch(eight, mesh).shape != shape, "what is not offered changes it"


def test_a_change_that_was_made_is_not_suggested():
    again = dataclasses.replace(TOY, remat="full")
    config = LanguageConfig(model=again, mesh=MeshConfig(data=1), batch_size=6)
    make, made = planner(lambda config: 7)
    plan = dataclasses.replace(make(config), batch_shape=(6, 16))
    found = [one.flags for one in suggestions(plan, make, lambda plan: False)]
    assert found == ["--accumulation 6"]
    assert len(made) == 2


@pytest.mark.slow  # the quick set suggests on the command line: tests/cli/test_plan.py
def test_a_suggestion_is_the_plan_of_its_flags():
    model = dataclasses.replace(TOY, context_length=64, remat="full")
    config = on(MeshConfig(data=1), model=model, batch_size=4)
    plan = make_plan(config, jax.devices()[:1])
    room = plan.memory.total - 1
    (found,) = suggestions(
        plan, lambda config: make_plan(config, jax.devices()[:1]), lambda p: p.memory.total <= room
    )
    assert (found.flags, found.fits) == ("--accumulation 2", True)
    cut = make_plan(dataclasses.replace(config, accumulation=2), jax.devices()[:1])
    assert found.plan.memory == cut.memory
    assert found.plan.memory.total <= room
