"""Compiles simd/all.c once per instruction set and links the objects; everything else is in pyproject.toml.

Switches in the environment: FASTGRU_OPENMP=0|1 (default: if it compiles and links), FASTGRU_SANITIZE=address,undefined,
FASTGRU_COVERAGE=1.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SIMD = Path("fastgru/simd")
HEADERS = sorted(str(p) for p in [*SIMD.glob("*.h"), *SIMD.glob("*.c")])
X86, ARM = "defined(__x86_64__) || defined(_M_X64)", "defined(__aarch64__) || defined(_M_ARM64)"
# name: (macro of the processors that have it, flags of gcc and clang, flags of MSVC)
ISAS = {
    "scalar": ("1", [], []),
    "avx2": (X86, ["-mavx2", "-mfma"], ["/arch:AVX2"]),
    "avx512": (X86, ["-mavx512f"], ["/arch:AVX512"]),
    "wide": (f"{X86} || {ARM}", {"x86": ["-mavx2", "-mfma"]}, ["/arch:AVX2"]),
    "neon": (ARM, [], []),
}
# Flags of the environment that would change results, or make a build that only this machine can run: everything -m but
# the ABI, and the parts of -ffast-math
STRIPPED = ("-m", "-flto", "-ffast-math", "-funsafe-math", "-ffinite-math", "-fassociative", "-freciprocal", "-Ofast")
STRIPPED += ("-fno-signed-zeros", "-ffp-contract", "-ffp-model")
KEPT = ("-m64", "-m32", "-mabi", "-mmacosx-version-min", "-mbranch-protection", "-mno-")
# How far each is optimised: the arithmetic is in the kernels, and in the loops of `arrays`. A wheel has at most 1 MB.
EXTENSIONS = {
    "isa": "-Os",
    "gru": "-O2",
    "stack": "-O2",
    "stream": "-O2",
    "backward": "-Os",
    "dense": "-Os",
    "arrays": "-O3",
}
SANITIZE = os.environ.get("FASTGRU_SANITIZE", "")
COVERAGE = os.environ.get("FASTGRU_COVERAGE", "") == "1"


def stripped(flag: str) -> bool:
    return flag.startswith(STRIPPED) and not flag.startswith(KEPT)


def one_architecture(flags: list[str]) -> list[str]:
    """A universal Python compiles for two processors at once, which no kernel can: keep this machine's."""
    found = [flags[i + 1] for i, flag in enumerate(flags[:-1]) if flag == "-arch"]
    if len(found) < 2:
        return flags
    mine = platform.machine()
    drop = {j for i, flag in enumerate(flags[:-1]) if flag == "-arch" and flags[i + 1] != mine for j in (i, i + 1)}
    return [flag for i, flag in enumerate(flags) if i not in drop]


def smaller(flags: list[str], level: str) -> list[str]:
    """The same with less optimisation: a wheel of at most 1 MB, where speed is decided elsewhere."""
    return [level if flag == "-O3" else flag for flag in flags]


class Build(build_ext):
    """build_ext that knows the instruction sets."""

    def build_extensions(self) -> None:
        self.msvc = self.compiler.compiler_type == "msvc"
        self.parallel = self.parallel or (None if self.msvc else os.cpu_count())
        if not self.msvc:  # flags of the Python that runs this must not reach the kernels: each ISA brings its own
            for name in ("compiler", "compiler_so", "compiler_cxx", "linker_so"):
                flags = getattr(self.compiler, name, None) or []
                setattr(self.compiler, name, one_architecture([f for f in flags if not stripped(f)]))
            ignored = [f for f in shlex.split(os.environ.get("CFLAGS", "")) if stripped(f)]
            if ignored:
                print(f"fastgru: {' '.join(ignored)} in CFLAGS ignored: the instruction set is chosen at run time")
        common = self.common_flags()
        openmp, openmp_link = self.openmp_flags()
        for ext in self.extensions:
            ext.extra_compile_args = [*smaller(common, EXTENSIONS[ext.name.rpartition(".")[2]]), *openmp]
            ext.extra_link_args = [*self.link_flags(), *openmp_link]
        isa_ext = next(ext for ext in self.extensions if ext.name.endswith(".isa"))
        isa_ext.extra_objects = self.kernels(common)
        super().build_extensions()

    def common_flags(self) -> list[str]:
        if self.msvc:
            return ["/O2", "/fp:precise", "/std:c11"]
        flags = ["-std=c11", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]
        flags += ["-fno-asynchronous-unwind-tables"]  # nothing here throws, or is debugged
        if SANITIZE:
            flags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
            flags += ["-g", "-O1"]
        return flags + (["--coverage", "-O0"] if COVERAGE else [])

    def link_flags(self) -> list[str]:
        return ([f"-fsanitize={SANITIZE}"] if SANITIZE else []) + (["--coverage"] if COVERAGE else [])

    def openmp_flags(self) -> tuple[list[str], list[str]]:
        wanted = os.environ.get("FASTGRU_OPENMP", "")
        if wanted == "0":
            return [], []
        program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        candidates = [(["/openmp"], [])] if self.msvc else [(["-fopenmp"], ["-fopenmp"])]
        if sys.platform == "darwin":
            candidates.append((["-Xpreprocessor", "-fopenmp"], ["-lomp"]))
        for compile_args, link_args in candidates:
            if self.compiles(program, compile_args, link_args):
                return compile_args, link_args
        if wanted == "1":
            raise CompileError("FASTGRU_OPENMP=1, but no OpenMP program compiles and links here")
        print("fastgru: no OpenMP here, building for one thread (macOS: brew install libomp)")
        return [], []

    def compiles(self, program: str, args: list[str], link_args: list[str] | None = None) -> bool:
        """Whether a program compiles, and links too where `link_args` is given."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=args)
                if link_args is not None:
                    probe = os.path.join(folder, "probe.so")
                    self.compiler.link_shared_object(objects, probe, extra_postargs=link_args)
            except (CompileError, LinkError):
                return False
        return True

    def kernels(self, common: list[str]) -> list[str]:
        """Object files of every ISA for the target processor, and of the dispatcher."""
        have: list[tuple[str, str]] = []
        flags_of: dict[str, list[str]] = {}
        x86 = self.compiles(f"#if !({X86})\n#error other\n#endif\n", [])
        # a tile's loop of 119 bytes lies in two lines of the instruction cache or in three: up to 8 % of a product
        align = ["-falign-loops=64"]
        if self.msvc or not self.compiles("typedef int one;\n", [*align, "-Werror"]):
            align = []
        for name, (macro, gnu, msvc) in ISAS.items():
            if not self.compiles(f"#if !({macro})\n#error other\n#endif\n", []):
                continue
            if SANITIZE and name == "avx512":
                continue  # a minute of compiling; wide is the same code, and runs on more machines
            flags = msvc if self.msvc else gnu if isinstance(gnu, list) else gnu["x86"] if x86 else []
            if self.msvc and not x86:
                flags = []
            level = smaller(common, "-Os") if name in ("scalar", "wide") else [*common, *align]
            flags_of[name] = [*level, *flags]
            have.append((f"FG_HAVE_{name.upper()}", "1"))

        def compile_isa(name: str) -> list[str]:
            return self.compile_c("all.c", name, [(f"FG_ISA_{name.upper()}", "1")], flags_of[name])

        with ThreadPoolExecutor(1 if self.msvc else os.cpu_count()) as pool:
            objects = [name for one in pool.map(compile_isa, flags_of) for name in one]
        return objects + self.compile_c("dispatch.c", "dispatch", have, common)

    def compile_c(self, source: str, folder: str, macros: list[tuple[str, str]], flags: list[str]) -> list[str]:
        """One C file into a folder of its own, so that the objects of one source don't overwrite each other."""
        return self.compiler.compile(
            [str(SIMD / source)],
            output_dir=os.path.join(self.build_temp, folder),
            macros=macros,
            extra_postargs=flags,
            depends=HEADERS,
        )


def extension(name: str) -> Extension:
    return Extension(
        f"fastgru._core.{name}",
        [f"fastgru/_core/{name}.pyx"],
        include_dirs=[str(SIMD), numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        depends=HEADERS,
    )


setup(
    ext_modules=cythonize(
        [extension(name) for name in EXTENSIONS],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": True,
        },
        show_all_warnings=True,
    ),
    cmdclass={"build_ext": Build},
)
