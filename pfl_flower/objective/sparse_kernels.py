"""Two loops over the numbers of a sparse matrix, compiled for this processor by LLVM.

A linear model has few classes, so a number of the matrix is multiplied with few others, which lie
side by side: one instruction or two. BLAS libraries multiply by ten columns as by eight and by two,
and want the matrix a second time, by columns, for products with its transpose. These read one copy
and take 0.4 to 0.7 of the time (``experiments/benchmark/README.md``).

Numbers are added in the order in which they stand, by one thread: the bits depend on the operands
alone. (Whether a product is rounded before it is added is the processor's: not where it has FMA.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

IN_FLIGHT = 256
"""Bytes of the sums, four at most, that take a row's numbers in turns. A single sum would wait for
its last addition, four cycles; more bytes would leave AVX2 no registers for the operands."""

INT32, INT64, POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType()
TYPES = {torch.float32: ir.FloatType(), torch.float64: ir.DoubleType()}


@dataclass(frozen=True)
class Kernel:
    """A compiled loop over the rows of a matrix.

    Attributes
    ----------
    function : callable
        Takes the number of rows and five addresses; other threads run Python meanwhile.
    engine
        Whose memory the machine code is in.
    """

    function: Callable[..., None]
    engine: Any

    def __call__(self, rows: int, *tensors: Tensor) -> None:
        """Run over so many rows of ``starts, columns, values``, with an operand and a result."""
        self.function(rows, *(one.data_ptr() for one in tensors))


@cache
def scores_kernel(classes: int, lanes: int, dtype: torch.dtype) -> Kernel:
    """``result[a, i] = sum_k values[k] operand[columns[k], a]`` over the numbers k of row i.

    ``operand`` is ``(q, lanes)``, of which the first columns are the classes', and ``result``
    ``(classes, n)``.
    """
    code = _Code(lanes, dtype)
    sums = max(1, min(4, IN_FLIGHT // code.bytes))
    zero = ir.Constant(code.vector, None)

    def plus(k: ir.Value, total: ir.Value) -> ir.Value:
        number, at = code.number(k)
        return code.plus_product(total, number, code.load(code.vector, at))

    def row(i: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        first, end = code.row(i)
        count = code.build.sub(end, first)
        rest = code.build.sub(end, code.build.srem(count, INT64(sums)))
        found = code.fold(
            (first, rest, sums),
            [zero] * sums,
            lambda k, totals: [
                plus(code.build.add(k, INT64(j)), total) for j, total in enumerate(totals)
            ],
        )
        # The last few, one by one, to the first sum.
        (total,) = code.fold((rest, end, 1), found[:1], lambda k, one: [plus(k, one[0])])
        for other in found[1:]:
            total = code.build.fadd(total, other)
        for a in range(classes):
            score = code.build.extract_element(total, INT32(a))
            code.build.store(score, code.entry("result", a, i))
        return []

    code.fold((INT64(0), code.rows, 1), [], row)
    return code.compiled()


@cache
def sums_kernel(classes: int, lanes: int, dtype: torch.dtype) -> Kernel:
    """``result[columns[k], a] += values[k] operand[a, i]`` for the numbers k of every row i.

    ``operand`` is ``(classes, n)``, and ``result`` ``(q, lanes)``.
    """
    code = _Code(lanes, dtype)

    def row(i: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        first, end = code.row(i)
        slopes = ir.Constant(code.vector, None)
        for a in range(classes):
            slope = code.load(code.type, code.entry("operand", a, i))
            slopes = code.build.insert_element(slopes, slope, INT32(a))

        def add(k: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
            number, at = code.number(k, of="result")
            total = code.plus_product(code.load(code.vector, at), number, slopes)
            code.build.store(total, at, align=code.align)
            return []

        code.fold((first, end, 1), [], add)
        return []

    code.fold((INT64(0), code.rows, 1), [], row)
    return code.compiled()


class _Code:
    """A function that is being written, and the few phrases of which both are made."""

    def __init__(self, lanes: int, dtype: torch.dtype) -> None:
        self.type, self.align = TYPES[dtype], dtype.itemsize
        self.vector = ir.VectorType(self.type, lanes)
        self.bytes = lanes * dtype.itemsize
        self.module = ir.Module()
        signature = ir.FunctionType(ir.VoidType(), [INT64, *[POINTER] * 5])
        function = ir.Function(self.module, signature, "kernel")
        self.rows, *tensors = function.args
        for tensor in tensors:
            tensor.add_attribute("noalias")
        names = ("starts", "columns", "values", "operand", "result")
        self.tensors = dict(zip(names, tensors, strict=True))
        self.build = ir.IRBuilder(function.append_basic_block())

    def load(self, of: ir.Type, at: ir.Value) -> ir.Value:
        # A row of a matrix begins at any of its numbers' addresses.
        return self.build.load(at, typ=of, align=self.align if of is self.vector else None)

    def at(self, tensor: str, index: ir.Value, of: ir.Type) -> ir.Value:
        return self.build.gep(self.tensors[tensor], [index], source_etype=of)

    def entry(self, tensor: str, a: int, i: ir.Value) -> ir.Value:
        """Address of entry (a, i) of a matrix ``(classes, n)``."""
        return self.at(tensor, self.build.add(self.build.mul(self.rows, INT64(a)), i), self.type)

    def row(self, i: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Where row i's numbers begin, and where they end."""
        after = self.build.add(i, INT64(1))
        first, end = (self.load(INT64, self.at("starts", one, INT64)) for one in (i, after))
        return first, end

    def number(self, k: ir.Value, of: str = "operand") -> tuple[ir.Value, ir.Value]:
        """Return the number k, in every lane, and the address of its column's row of a matrix."""
        value = self.load(self.type, self.at("values", k, self.type))
        nothing = ir.Constant(self.vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(INT32, self.vector.count), None)
        first = self.build.insert_element(nothing, value, INT32(0))
        column = self.load(INT32, self.at("columns", k, INT32))
        return (
            self.build.shuffle_vector(first, nothing, everywhere),
            self.at(of, self.build.zext(column, INT64), self.vector),
        )

    def plus_product(self, total: ir.Value, one: ir.Value, other: ir.Value) -> ir.Value:
        product = self.build.fmul(one, other, flags=("contract",))
        return self.build.fadd(total, product, flags=("contract",))

    def fold(
        self,
        counter: tuple[ir.Value, ir.Value, int],
        initial: Sequence[ir.Value],
        body: Callable[[ir.Value, Sequence[ir.Value]], list[ir.Value]],
    ) -> Sequence[ir.Value]:
        """Write a loop from the first up to the second, by steps; return what it ends with.

        ``body`` writes one turn: from the counter and what the last turn gave, what it gives.
        """
        first, stop, step = counter
        function, before = self.build.function, self.build.block
        head, turn, after = (function.append_basic_block() for _ in range(3))
        self.build.branch(head)
        self.build.position_at_end(head)
        phis = [self.build.phi(one.type) for one in (first, *initial)]
        for phi, one in zip(phis, (first, *initial), strict=True):
            phi.add_incoming(one, before)
        self.build.cbranch(self.build.icmp_signed("<", phis[0], stop), turn, after)
        self.build.position_at_end(turn)
        given = [self.build.add(phis[0], INT64(step)), *body(phis[0], phis[1:])]
        for phi, one in zip(phis, given, strict=True):
            phi.add_incoming(one, self.build.block)
        self.build.branch(head)
        self.build.position_at_end(after)
        return phis[1:]

    def compiled(self) -> Kernel:
        """Return what was written, as machine code."""
        self.build.ret_void()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(str(self.module))
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * 5)
        return Kernel(signature(engine.get_function_address("kernel")), engine)
