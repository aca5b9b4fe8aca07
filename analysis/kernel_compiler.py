"""How kernels are compiled: by Numba, but each function once for a kernel that calls it, and without needless passes.

Numba alone optimises every function and makes machine code of it, and does so again with all that it calls for whoever
calls it. Here only kernels are optimised, with all that they call, which takes two thirds of the time.

A kernel in Numba's cache counts for nothing once a file that it was made of has changed, also one that Numba alone
would not look at.
"""

from __future__ import annotations

import functools
import os
import sys

import llvmlite.binding as llvm
import numba
from numba.core import typed_passes, untyped_passes
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.runtime import rtsys

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
    typed_passes.DumpParforDiagnostics,
}
"""Passes for closures, array expressions, tuples of several types and other things that kernels do without."""


def only_names(names):
    """Bitcode of functions that stop the program."""
    stop = "{ call void @llvm.trap() unreachable }"
    text = "declare void @llvm.trap()" + "".join(f'\ndefine void @"{name}"() {stop}' for name in names)
    return llvm.parse_assembly(text).as_bitcode()


class KernelLibrary(JITCodeLibrary):
    """The code of a kernel and all that it calls: optimised as a whole, and only then."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

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
    """Knows all files that a kernel was made of. Loads it, and what it calls to make arrays: Numba would first load all
    that it can compile."""

    def __init__(self, function):
        super().__init__(function)
        modules = {__name__, layout.__name__} | modules_behind(function.__module__)
        self._cache_file._source_stamp = [changed(sys.modules[name].__file__) for name in sorted(modules)]

    def load_overload(self, sig, target_context):
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def cached(compiler):
    """What compiles as `compiler` does, or takes from the cache what was compiled before."""

    def compiled(function):
        dispatcher = compiler(function)
        if dispatcher is not function:  # as it is where compiling is switched off
            dispatcher._cache = KernelCache(function)
        return dispatcher

    return compiled


allocating = cached(
    numba.njit(pipeline_class=KernelCompiler, cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True)
)
"""For a kernel that makes arrays."""

kernel = cached(
    numba.njit(
        pipeline_class=KernelCompiler, cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True, _nrt=False
    )
)
"""For a kernel that gets all its arrays, and need not count who uses them."""

inner = numba.njit(
    pipeline_class=PartCompiler,
    boundscheck=True,
    nogil=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    _nrt=False,
)
"""For what only kernels call. It is cached as a part of them."""

hot = numba.njit(
    pipeline_class=PartCompiler,
    boundscheck=True,
    nogil=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    _nrt=False,
    forceinline=True,
)
"""As `inner`, for what every packet needs: a call would hand over every array of a named tuple, field by field."""
