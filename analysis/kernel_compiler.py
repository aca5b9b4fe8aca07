"""How kernels are compiled: by Numba, but each function once for a kernel that calls it, and without needless passes.

Numba alone optimises every function and makes machine code of it, and does so again with all that it calls for whoever
calls it. Here only kernels are optimised, with all that they call, which takes two thirds of the time. What Numba's
Python finds out again and again is found out once, which takes three quarters of what is left.

A kernel in Numba's cache counts for nothing once a file that it was made of has changed, also one that Numba alone
would not look at.
"""

from __future__ import annotations

import functools
import os
import sys
from contextlib import contextmanager

import llvmlite.binding as llvm
import numba
from numba.core import base, ir, typed_passes, types, untyped_passes
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.postproc import PostProcessor
from numba.core.transforms import canonicalize_cfg
from numba.core.types.functions import BaseFunction
from numba.core.typing.typeof import typeof_impl

from analysis import layout

NEEDLESS = {
    untyped_passes.WithLifting,
    untyped_passes.InlineClosureLikes,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.InlineInlinables,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll,
    untyped_passes.LiteralPropagationSubPipelinePass,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.IRLegalization,
    typed_passes.DumpParforDiagnostics,
}
"""Passes for closures, array expressions, tuples of several types, arrays that a kernel makes, and other things that
kernels do without."""


NUMBERS = types.Number, types.Boolean
PLAIN = str, int, ir.Loc, type(None)


def remembering(find_type):
    """`find_type` that asks Numba's rules once what an operation on numbers gives, not at each place it is used."""
    known = {}

    @functools.wraps(find_type)
    def get_call_type(operation, context, args, kws):
        if kws or not all(isinstance(each, NUMBERS) for each in args):
            return find_type(operation, context, args, kws)
        key = operation.key, args
        if key not in known:
            signature = find_type(operation, context, args, kws)
            known[key] = signature, operation.get_impl_key(signature)
        signature, operation._impl_keys[signature.args] = known[key]
        return signature

    return get_call_type


def variables_in(instruction, value):
    """The variables in `value`, a part of an instruction. Most parts are plain, which Numba's own way asks last."""
    if isinstance(value, ir.Var):
        return [value]
    if isinstance(value, PLAIN):
        return []
    if isinstance(value, ir.Inst):
        return value.list_vars()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    found = []
    for each in parts:
        if not isinstance(each, PLAIN):
            found += variables_in(instruction, each)
    return found


def after_pass(process):
    """`process`, without looking for how long each variable lives, which only generators and Python's objects need."""

    @functools.wraps(process)
    def run(self, emit_dels=False, extend_lifetimes=False):
        if emit_dels or self.func_ir.is_generator:
            process(self, emit_dels, extend_lifetimes)
        else:
            self.func_ir.blocks = canonicalize_cfg(self.func_ir.blocks)
            self.func_ir.generator_info = None

    return run


HASTENED = (
    (BaseFunction, "get_call_type", remembering(BaseFunction.get_call_type)),
    (PostProcessor, "run", after_pass(PostProcessor.run)),
    (ir.Inst, "_rec_list_vars", variables_in),
    (base, "_has_loc", functools.cache(base._has_loc)),
    (llvm.ffi.lib._lock, "_cblist", []),  # what Numba does at each call of LLVM, to time it
)
"""What of Numba is another while kernels are compiled."""


@contextmanager
def hastened():
    """Numba as kernels need it; as it was for what others compile. (Only one thread at a time compiles.)"""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in HASTENED]
    try:
        for owner, name, other in HASTENED:
            setattr(owner, name, other)
        yield
    finally:
        for owner, name, own in before:
            setattr(owner, name, own)


def only_names(names):
    """Bitcode of functions that stop the program."""
    stop = "{ call void @llvm.trap() unreachable }"
    text = "declare void @llvm.trap()" + "".join(f'\ndefine void @"{name}"() {stop}' for name in names)
    return llvm.parse_assembly(text).as_bitcode()


class KernelLibrary(JITCodeLibrary):
    """The code of a kernel and all that it calls: optimised as a whole, and only then."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        """All passes, once. (Numba goes twice, to count references less often. Kernels count none.)"""
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)

    def serialize_using_object_code(self):
        """Machine code and names. The rest, for others to compile it into theirs, is half of what loading costs."""
        self._ensure_finalized()
        names = [each.name for each in self._final_module.functions if not each.is_declaration]
        return self.name, "object", (self._get_compiled_object(), only_names(names))


class PartLibrary(KernelLibrary):
    """The code of a function that kernels call. It is linked into theirs as it is, and never runs by itself."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        return self

    def set_env(self, name, environment):
        """There is no memory yet in which the environment's address could be set. (Only Python objects need one.)"""


class KernelCompiler(CompilerBase):
    """For functions that Python calls."""

    library = KernelLibrary

    def _compile_core(self):
        with hastened():
            return super()._compile_core()

    def define_pipelines(self):
        self.state.library = self.library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.library.enable_object_caching()
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [each for each in pipeline.passes if each[0] not in NEEDLESS]
        pipeline.finalize()
        return [pipeline]


class PartCompiler(KernelCompiler):
    """For functions that only kernels call."""

    library = PartLibrary


@functools.cache
def changed(file):
    """When it was changed last, and its size."""
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size


@functools.cache
def modules_behind(module):
    """The names of modules of podtap whose functions this one uses, and itself."""
    used = {getattr(value, "__module__", None) or "" for value in vars(sys.modules[module]).values()}
    used = {name for name in used if name.startswith("analysis.") and name != module}
    return {module}.union(*(modules_behind(name) for name in used))


class KernelCache(FunctionCache):
    """Knows all files that a kernel was made of. Loads it: Numba would first load all that it can compile."""

    def __init__(self, function):
        super().__init__(function)
        modules = {__name__, layout.__name__} | modules_behind(function.__module__)
        self._cache_file._source_stamp = [changed(sys.modules[name].__file__) for name in sorted(modules)]

    def load_overload(self, sig, target_context):
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def kernel(function):
    """For what Python calls. It gets all its arrays, makes none, and so need not count who uses them."""
    compiler = numba.njit(
        pipeline_class=KernelCompiler, cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True, _nrt=False
    )
    dispatcher = compiler(function)
    if dispatcher is not function:  # as it is where compiling is switched off
        dispatcher._cache = KernelCache(function)
    return dispatcher


class Part:
    """What only kernels call. Numba has to know of it when it compiles one that does, which hardly any run needs."""

    def __init__(self, function, options):
        functools.update_wrapper(self, function)
        self.options = options

    @functools.cached_property
    def dispatcher(self):
        compiler = numba.njit(
            pipeline_class=PartCompiler,
            boundscheck=True,
            nogil=True,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            _nrt=False,
            **self.options,
        )
        dispatcher = compiler(self.__wrapped__)
        find = dispatcher.get_call_template
        dispatcher.get_call_template = lambda args, kws: find(tuple(types.unliteral(each) for each in args), kws)
        return dispatcher


@typeof_impl.register(Part)
def type_of_part(part, _):
    """To a kernel, a part is the function that Numba makes of it."""
    return types.Dispatcher(part.dispatcher)


def inner(function, **options):
    """For what only kernels call. It is cached as a part of them, and compiled once for all literal numbers that they
    give it: Numba does so for each anew."""
    return function if numba.config.DISABLE_JIT else Part(function, options)


def hot(function):
    """As `inner`, for what every packet needs: a call would hand over every array of a named tuple, field by field."""
    return inner(function, forceinline=True)
