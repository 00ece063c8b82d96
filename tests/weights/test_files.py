"""Tensors in safetensors files: what is written is read, by us and by PyTorch's own reader."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import SafetensorError
from safetensors.torch import load_file

from jaxformer.errors import UserError
from jaxformer.weights.files import load_tensors, save_tensors

TYPES = (np.float32, np.float64, np.float16, np.int32, np.int64, np.bool_, jnp.bfloat16)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    values = np.arange(-3, np.prod(shape, dtype=int) - 3).reshape(shape)
    return values.astype(draw(st.sampled_from(TYPES))).transpose()


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), arrays()))
def test_what_is_written_is_read(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    tensors.pop("__metadata__", None)
    save_tensors(tensors, path)
    found = load_tensors(path)
    assert found.keys() == tensors.keys()
    theirs = load_file(path)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape == tuple(theirs[name].shape)
        assert found[name].tobytes() == tensor.tobytes()
        assert np.array_equal(theirs[name].double().numpy(), tensor.astype(np.float64))


def test_a_file_without_tensors_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere is not a file"):
        load_tensors(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a file"):
        load_tensors(tmp_path)
    (tmp_path / "text").write_text("no tensors at all", encoding="utf-8")
    with pytest.raises(UserError, match="text holds no tensors in the safetensors format"):
        load_tensors(tmp_path / "text")


def test_types_that_numpy_does_not_have_are_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F8_E5M2","shape":[3],"data_offsets":[0,3]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(UserError, match="float8_e5m2"):
        load_tensors(path)


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_tensors({"a": np.ones(3)}, path)
    with pytest.raises(SafetensorError):
        save_tensors({"a": np.array(["text"])}, path)
    assert load_tensors(path)["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def saved_in_parts(folder: Path) -> dict[str, str]:
    """Two files and their index; returns the index's map."""
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    for part in ("one", "two"):
        named = [name for name, file in weight_map.items() if file.startswith(part)]
        tensors = {name: np.full(3, ord(name), np.float32) for name in named}
        save_tensors(tensors, folder / f"{part}.safetensors")
    (folder / "index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return weight_map


def test_a_model_in_several_files_is_read_by_its_index(tmp_path: Path):
    weight_map = saved_in_parts(tmp_path)
    found = load_tensors(tmp_path / "index.json")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: [ord(name)] * 3 for name in weight_map
    }


def test_what_an_index_does_not_name_is_not_read(tmp_path: Path):
    """A tensor that is left from another division of the model lies in a part as well."""
    weight_map = saved_in_parts(tmp_path)
    one = next(iter(weight_map))
    rest = {name: part for name, part in weight_map.items() if name != one}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": rest}), encoding="utf-8")
    assert set(load_tensors(tmp_path / "index.json")) == set(rest)


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path):
    weight_map = saved_in_parts(tmp_path)
    index = tmp_path / "index.json"
    for text in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\0"):
        index.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"index.json is not the index"):
            load_tensors(index)
    for part, said in (
        ("two.safetensors", "lacks a"),
        ("absent.safetensors", "absent.safetensors is not a file"),
        ("index.json", "index.json holds no tensors"),
        ("../elsewhere/two.safetensors", "lacks a"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map | {"a": part}}), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            load_tensors(index)
    with pytest.raises(UserError, match=r"nowhere.json cannot be read"):
        load_tensors(tmp_path / "nowhere.json")
