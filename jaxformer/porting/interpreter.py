"""A JAX function as a tape: its jaxpr with every call walked and every loop unrolled.

`record` runs the function once, operation by operation, and keeps every intermediate value with
the line of source it comes from. The tape is the one view of NNX, Linen, plain functions and
callable pytrees.

Arithmetic is float64 whatever the code asks for: a cast to float32 is a cast to float64, so that
a norm that is computed in float32 does not hide a fault. Casts to half precision are kept unless
`halves` is false. Tables that were computed in float32 outside the function stay as they are.

The only file that imports `jax.extend.core`, which moves between versions of jax.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxformer.porting.numpy_rules import RULES
from jaxformer.porting.tape import Place, Step, Tape

RANDOM = ("random_bits", "threefry2x32", "random_gamma", "rng_bit_generator", "random_gumbel")
LONGEST_LOOP = 10_000
"""Trips of a `while` that are unrolled; a longer one is one opaque operation."""
_HALVES = (jnp.float16, jnp.bfloat16)
_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(str(module.__file__))) + os.sep for module in (jax, flax)
)
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def record(
    function: Callable[..., Any],
    leaves: Mapping[str, Any],
    inputs: Mapping[str, Any],
    halves: bool = True,
) -> Tape:
    """The tape of `function(leaves, inputs)`, a function of two dicts of arrays.

    The function is traced in float64. Where its own types forbid that, it is traced in the types
    that it was written in, and still evaluated in float64.

    Args:
        function: returns a list of arrays.
        leaves: parameters and other state by path.
        inputs: the arrays that the model is called with, by path.
        halves: keep casts to float16 and bfloat16.
    """
    with jax.enable_x64(True):
        sources = [("leaf", name) for name in sorted(leaves)]
        sources += [("input", name) for name in sorted(inputs)]
        sides = {"leaf": leaves, "input": inputs}
        given = [_as_numpy(sides[kind][name]) for kind, name in sources]
        wide = [_widened(value, halves=False) for value in given]
        try:
            closed = _traced(function, leaves, inputs, wide)
        except (TypeError, ValueError):
            with jax.enable_x64(False):
                closed = _traced(function, leaves, inputs, given)
        writer = _Writer(halves)
        operands = [
            writer.source(kind, value, name)
            for (kind, name), value in zip(sources, wide, strict=True)
        ]
        writer.tape.outputs = writer.walk(closed.jaxpr, closed.consts, operands, "")
        return writer.tape


def _traced(
    function: Callable[..., Any], leaves: Mapping, inputs: Mapping, values: Sequence[Any]
) -> core.ClosedJaxpr:
    def call(flat: list[Any]) -> Any:
        named = dict(zip(sorted(leaves), flat, strict=False))
        rest = flat[len(leaves) :]
        return function(named, dict(zip(sorted(inputs), rest, strict=True)))

    return jax.make_jaxpr(call)(values)


class _Writer:
    """Evaluates a jaxpr and writes the tape."""

    def __init__(self, halves: bool):
        self.halves = halves
        self.tape = Tape()

    def source(self, kind: str, value: Any, name: str = "") -> int:
        return self.add(Place(len(self.tape.places), kind, (), "", "", name), value)

    def add(self, place: Place, value: Any) -> int:
        self.tape.places.append(place)
        self.tape.values.append(value)
        return place.index

    def walk(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], operands: Sequence[int], scope: str
    ) -> list[int]:
        env: dict[Any, int] = {}

        def read(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                return self.source("constant", self.literal(atom))
            return env[atom]

        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.source("constant", self.widened(_as_numpy(const)))
        env.update(zip(jaxpr.invars, operands, strict=True))
        for eqn in jaxpr.eqns:
            found = self.equation(eqn, [read(atom) for atom in eqn.invars], scope)
            env.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, operands: list[int], scope: str) -> list[int]:
        scope = _joined(scope, str(eqn.source_info.name_stack))
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self.scan(params, operands, scope)
        if name == "while":
            return self.loop(eqn, operands, scope)
        if name == "cond":
            index = int(self.tape.values[operands[0]])
            branch = params["branches"][min(max(index, 0), len(params["branches"]) - 1)]
            return self.walk(branch.jaxpr, branch.consts, operands[1:], scope)
        inner = next(
            (params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None
        )
        if isinstance(inner, core.ClosedJaxpr) and len(inner.jaxpr.invars) == len(operands):
            return self.walk(inner.jaxpr, inner.consts, operands, scope)
        sharded = name in ("pallas_call", "shard_map")
        if isinstance(inner, core.Jaxpr) and len(inner.invars) == len(operands) and not sharded:
            return self.walk(inner, [], operands, scope)
        if inner is not None or "callback" in name or name in ("pallas_call", "custom_call"):
            self.tape.opaque.add(name)
        return self.operation(eqn, operands, scope)

    def scan(self, params: Mapping[str, Any], operands: list[int], scope: str) -> list[int]:
        fixed, carried = scan_counts(params)
        consts, carry = operands[:fixed], operands[fixed : fixed + carried]
        rows, body, length = operands[fixed + carried :], params["jaxpr"], params["length"]
        columns: list[list[int]] = [[] for _ in body.jaxpr.outvars[carried:]]
        order = range(length)[::-1] if params["reverse"] else range(length)
        for trip in order:
            row = [self.derived("slice", functools.partial(_row, trip), (x,), scope) for x in rows]
            out = self.walk(body.jaxpr, body.consts, [*consts, *carry, *row], scope)
            carry = out[:carried]
            for column, value in zip(columns, out[carried:], strict=True):
                column.append(value)
        if params["reverse"]:
            columns = [column[::-1] for column in columns]
        if not length:
            empty = [
                self.source("constant", np.zeros((0, *var.aval.shape), var.aval.dtype))
                for var in body.jaxpr.outvars[carried:]
            ]
            return [*carry, *empty]
        return [*carry, *(self.derived("stack", _stacked, tuple(c), scope) for c in columns)]

    def loop(self, eqn: Any, operands: list[int], scope: str) -> list[int]:
        params = eqn.params
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        test, body = params["cond_jaxpr"], params["body_jaxpr"]
        fixed, carry = operands[tests : tests + bodies], operands[tests + bodies :]
        for _ in range(LONGEST_LOOP):
            (going,) = self.walk(test.jaxpr, test.consts, [*operands[:tests], *carry], scope)
            if not bool(self.tape.values[going]):
                return carry
            carry = self.walk(body.jaxpr, body.consts, [*fixed, *carry], scope)
        self.tape.opaque.add("while")
        return self.operation(eqn, operands, scope)

    def operation(self, eqn: Any, operands: list[int], scope: str) -> list[int]:
        function = functools.partial(_evaluate, eqn, self.halves)
        values = function(*[self.tape.values[index] for index in operands])
        line, outputs = source_line(eqn), []
        for value in values:
            place = Place(len(self.tape.places), eqn.primitive.name, tuple(operands), scope, line)
            outputs.append(self.add(place, value))
        narrow = _narrowing(eqn)
        if narrow:
            self.tape.pins[outputs[0]] = narrow
        self.tape.steps.append(Step(function, tuple(operands), tuple(outputs)))
        return outputs

    def derived(
        self, kind: str, function: Callable[..., Any], operands: tuple[int, ...], scope: str
    ) -> int:
        """A value that unrolling a loop needs: a row of an input, the stack of outputs."""
        (value,) = function(*[self.tape.values[index] for index in operands])
        index = self.add(Place(len(self.tape.places), kind, operands, scope, ""), value)
        self.tape.steps.append(Step(function, operands, (index,)))
        return index

    def widened(self, value: Any) -> Any:
        return _widened(value, self.halves)

    def literal(self, atom: core.Literal) -> Any:
        aval: Any = atom.aval
        return self.widened(np.asarray(atom.val, aval.dtype))


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are fixed, and how many are carried."""
    if "ft_in" in params:  # since jax 0.12
        fixed, carried, _ = (len(part.vals) for part in params["ft_in"].unpack())
        return fixed, carried
    return params["num_consts"], params["num_carry"]


def _row(index: int, stacked: Any) -> tuple[Any]:
    return (stacked[index],)


def _stacked(*rows: Any) -> tuple[Any]:
    return (np.stack(rows) if isinstance(rows[0], np.ndarray) else jnp.stack(rows),)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _wide(dtype: Any, halves: bool) -> Any:
    """float64 for a floating point type; half precision stays if `halves`."""
    if not _is_float(dtype) or (halves and dtype in _HALVES):
        return dtype
    return jnp.dtype(jnp.float64)


def _widened(value: Any, halves: bool) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        return value.astype(jnp.complex128)
    return value.astype(_wide(value.dtype, halves)) if _is_float(value.dtype) else value


def _evaluate(eqn: Any, halves: bool, *operands: Any) -> Sequence[Any]:
    """One equation in float64, or in its own types where it knows no others."""
    operands = tuple(_agreeing(eqn, operands))
    params = {
        key: _wide(jnp.dtype(value), halves) if _is_float_type(value) else value
        for key, value in eqn.params.items()
    }
    rule = RULES.get(eqn.primitive.name)
    if rule is not None and all(_is_plain(x) for x in operands):
        with np.errstate(all="ignore"):
            out = rule(params, *operands)
        if out is not NotImplemented:
            return out if isinstance(out, list) else [np.asarray(out)]
    with jax.enable_x64(True):
        try:
            out = _bound(eqn.primitive, params, operands)
        except (TypeError, ValueError, NotImplementedError):
            native = [
                x.astype(atom.aval.dtype) if _is_float_type(x.dtype) else x
                for x, atom in zip(operands, eqn.invars, strict=True)
            ]
            out = _bound(eqn.primitive, eqn.params, native)
    return [_widened(_as_numpy(x), halves) for x in out]


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (
        value.dtype == np.float64 or value.dtype.kind in "iub"
    )


def _as_numpy(value: Any) -> Any:
    """A numpy array; a key of random numbers stays what it is."""
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _bound(primitive: Any, params: Mapping[str, Any], operands: Sequence[Any]) -> Sequence[Any]:
    found = primitive.get_bind_params(dict(params))
    functions, rest = found if isinstance(found, tuple) else ((), found)  # as it was and is
    out = primitive.bind(*functions, *operands, **rest)
    return out if primitive.multiple_results else [out]


def _agreeing(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Operands that had one type have one type again: float64 if any of them is."""
    native = {atom.aval.dtype for atom in eqn.invars if _is_float_type(_dtype_of(atom))}
    floats = {x.dtype for x in operands if hasattr(x, "dtype") and _is_float(x.dtype)}
    if len(native) == 1 and len(floats) > 1:
        return [
            x.astype(jnp.float64) if hasattr(x, "dtype") and _is_float(x.dtype) else x
            for x in operands
        ]
    return operands


def _dtype_of(atom: Any) -> Any:
    return getattr(atom.aval, "dtype", None)


def _is_array_type(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype)


def _is_float_type(value: Any) -> bool:
    return isinstance(value, np.dtype) and _is_float(value)


def _narrowing(eqn: Any) -> str:
    """The type that the code casts to, if it is narrower than what it casts."""
    if eqn.primitive.name != "convert_element_type":
        return ""
    old, new = _dtype_of(eqn.invars[0]), jnp.dtype(eqn.params["new_dtype"])
    if old is None or not (_is_float_type(old) and _is_float(new)):
        return ""
    return new.name if new.itemsize < jnp.dtype(old).itemsize else ""


def _joined(outer: str, inner: str) -> str:
    return "/".join(part for part in (outer, inner) if part)


def source_line(eqn: Any) -> str:
    """`file.py:line` of the innermost frame that is the user's, not of jax or flax."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith((*_LIBRARIES, _HERE, "<")):
            return f"{frame.file_name}:{frame.line_num}"
    return ""


def parameters_of(step: Step) -> Mapping[str, Any]:
    """The parameters of an operation's equation; none of what unrolling a loop needs."""
    function: Any = step.function
    given = isinstance(function, functools.partial) and function.func is _evaluate
    return function.args[0].params if given else {}
