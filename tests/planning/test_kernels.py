"""What a GPU launches is read from its program's text."""

from jaxformer.planning.hlo import array_bytes
from jaxformer.planning.kernels import read_kernels

H100 = """\
HloModule jit_train_step, is_scheduled=true, num_partitions=1

%fused_convert (param_0: f32[768,768]) -> bf16[768,768] {
  %param_0 = f32[768,768]{1,0} parameter(0)
  ROOT %convert.1 = bf16[768,768]{1,0} convert(%param_0)
}

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused_reduce (param_0: f32[128,768], param_1: f32[]) -> f32[768] {
  ROOT %reduce.1 = f32[768]{0} reduce(%param_0, %param_1), dimensions={0}, to_apply=%region_0.1
}

%body (state: (s32[], f32[16,64,257])) -> (s32[], f32[16,64,257]) {
  %state = (s32[], f32[16,64,257]{2,1,0}) parameter(0)
  %loop_pad_fusion = bf16[272,768]{1,0} fusion(%embedding), kind=kLoop, calls=%fused_pad
  ROOT %tuple.2 = (s32[], f32[16,64,257]{2,1,0}) tuple(%next, %logits)
}

%condition (state: (s32[], f32[16,64,257])) -> pred[] {
  ROOT %less.1 = pred[] fusion(%state), kind=kLoop, calls=%wrapped_compare
}

ENTRY %main (step: s32[], kernel: f32[768,768]) -> (s32[], f32[768,768]) {
  %step = s32[] parameter(0)
  %copy.1 = s32[] copy(%step), metadata={scheduling_name="copy.1"}
  %wrapped_convert = bf16[768,768]{1,0} fusion(%kernel), kind=kLoop, calls=%fused_convert, \
backend_config={"operation_queue_id":"0"}
  %gemm_fusion = bf16[16384,768]{1,0} fusion(%x, %wrapped_convert), kind=kCustom, \
calls=%gemm_computation, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %fwd = (bf16[16,12,1024,64]{3,1,2,0}, f32[16,12,1024]{2,1,0}, /*index=2*/u8[0]{0}) \
custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config":{"fmha_scale":0.125,"algorithm":{"kind":"none"}}}
  %out = bf16[16,12,1024,64]{3,1,2,0} get-tuple-element(%fwd), index=0
  %loop = (s32[], f32[16,64,257]{2,1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"16"}}
  %sums = f32[768]{0} fusion(%partial, %zero), kind=kInput, calls=%fused_reduce
  ROOT %tuple.1 = (s32[], f32[768,768]{1,0}) tuple(%copy.1, %new)
}
"""
"""Lines of the GPT-2 step of XLA's GPU compiler, shortened."""


def test_kernels_count_by_kind_and_by_the_trips_of_their_loops():
    kernels = read_kernels(H100)
    assert kernels.launches == {
        "elementwise": 1 + 16,  # the condition of a counted loop is not evaluated
        "copy": 1,
        "triton_gemm": 1,
        "__cudnn$fmhaSoftmax": 1,
        "reduction": 1,
    }
    assert kernels.total == 21
    assert kernels.custom_calls == {"__cudnn$fmhaSoftmax": 1}
    assert not kernels.at_least


def test_the_largest_arrays_that_are_written_come_first():
    arrays = read_kernels(H100).arrays
    assert list(arrays)[:2] == ["bf16[16384,768]", "bf16[16,12,1024,64]"]
    assert arrays["bf16[272,768]"] == 16
    assert "f32[16,64,257]" not in arrays  # named by the loop's tuple, written by no kernel here
    sizes = [array_bytes(array) for array in arrays]
    assert sizes == sorted(sizes, reverse=True)


def test_a_loop_of_unknown_trips_is_a_lower_bound():
    text = H100.replace('"known_trip_count":{"n":"16"}', "")
    kernels = read_kernels(text)
    assert kernels.at_least
    assert kernels.launches["elementwise"] == 1 + 2  # body and condition, once each


def test_asynchronous_operations_launch_once():
    text = H100.replace("copy(%step)", "copy-start(%step)\n  %copy.9 = s32[] copy-done(%copy.1)")
    assert read_kernels(text).launches["copy"] == 1
