"""The compiled library: found, chosen by an environment variable, missed with one notice, and safe in its memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from secateur.errors import BadInput
from secateur.runtime import library

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src/secateur/runtime/kernels"
INTRINSIC = re.compile(r"\b_mm512_(\w+)")
HAVE = library._open()[0] is not None
needs_kernels = pytest.mark.skipif(not HAVE, reason="secateur was installed without a C compiler")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As a process starts: nothing loaded, the variable not set. Afterwards the best path again."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library.load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    library.load.cache_clear()
    if HAVE:
        library.use(library.features()["paths"][-1])


@needs_kernels
@pytest.mark.parametrize("path", library.PATHS)
def test_the_variable_takes_a_path_or_says_that_there_is_none(fresh: pytest.MonkeyPatch, path: str) -> None:
    available = library.features()["paths"]
    library.load.cache_clear()
    fresh.setenv(library.VARIABLE, path)
    if path in available:
        assert library.features()["path"] == path
    else:
        with pytest.raises(
            BadInput, match=f"{path} is more than this processor has; its best is {available[-1]}"
        ):
            library.features()


def test_the_variable_can_ask_for_torch_and_then_there_is_no_notice() -> None:
    code = "from secateur.runtime import library; print(library.load(), library.features()['path'])"
    environment = {**os.environ, library.VARIABLE: "torch", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout + done.stderr).strip() == "None torch"


def test_a_variable_that_is_no_path_is_one_line(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv(library.VARIABLE, "avx")
    with pytest.raises(BadInput, match="'avx' is no SECATEUR_KERNELS; did you mean 'avx2'") as caught:
        library.load()
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_noticed_once(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(library, "FILE", "no-such-file.so")
    with pytest.warns(library.KernelsMissing, match=r"no compiled kernels \(not built") as seen:
        assert [library.load() for _ in range(3)] == [None] * 3
        assert library.features()["path"] == "torch" and library.features()["paths"] == []
    assert len(seen) == 1
    with pytest.raises(BadInput, match="no compiled kernels to take avx2 in"):
        library.use("avx2")


def test_a_file_that_is_no_library_is_a_notice_too(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / library.FILE).write_bytes(b"not a library")
    fresh.setattr("secateur.runtime.__path__", [str(tmp_path)])
    with pytest.warns(library.KernelsMissing, match="no compiled kernels"):
        assert library.load() is None


@needs_kernels
def test_the_newest_of_two_libraries_is_taken(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import secateur.runtime

    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / library.FILE).write_bytes(b"old, and damaged")
    fresh.setattr(secateur.runtime, "__path__", [str(tmp_path), *secateur.runtime.__path__])
    os.utime(tmp_path / "kernels" / library.FILE, (0, 0))
    assert library._open()[0] is not None
    os.utime(tmp_path / "kernels" / library.FILE, (4e9, 4e9))
    assert library._open()[0] is None


@needs_kernels
def test_a_library_built_from_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI", -1)
    found, why = library._open()
    assert found is None and "was built from other sources" in why


@needs_kernels
def test_features_say_what_runs_here() -> None:
    known = library.features()
    assert known["path"] in known["paths"] and known["paths"] == list(library.PATHS[: len(known["paths"])])
    assert known["threads"] == torch.get_num_threads()
    assert known["pool"] == ("OpenMP of torch" if library.openmp() else "own")
    with pytest.raises(BadInput, match="'sse' is no path"):
        library.use("sse")


@needs_kernels
def test_memory_is_read_at_a_measurable_speed() -> None:
    assert 0.2e9 < library.bandwidth(megabytes=16, repeats=2) < 2e12


@needs_kernels
def test_the_notice_does_not_come_where_the_kernels_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load() is not None


_AT_THE_EDGE = """
import ctypes, mmap, torch
from dataclasses import replace
from secateur.runtime import library, ops
from tests.runtime.matrices import every

libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
held = []

def at_the_edge(tensor):  # its last byte is the last one that may be read
    room = (tensor.nbytes + PAGE - 1) // PAGE * PAGE
    memory = mmap.mmap(-1, room + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(PAGE), 0) == 0
    held.append(memory)
    moved = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - tensor.nbytes)
    return moved.view(tensor.shape).copy_(tensor)

for path in library.features()["paths"]:
    library.use(path)
    for columns in (132, 68, 124):
        for name, packed in every(20, columns):
            tensors = {key: at_the_edge(t) if t.numel() else t for key, t in packed.tensors.items()}
            product, wanted = ops.Product(replace(packed, **tensors)), ops.Product(packed)
            for batch in (1, 2, 9, 40):
                x = torch.randn(batch, columns)
                large = x.clone()
                large[:, [0, columns - 1]] = 50.0  # multiplied by themselves
                for given in (x, x.bfloat16(), large.bfloat16()):
                    assert torch.equal(product(given), wanted(given)), (path, columns, name, batch)
print("read no further")
"""


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards a page with Linux's mprotect")
def test_nothing_is_read_past_the_last_byte() -> None:
    """Every kind, dtype and path on memory that ends where the next page may not be touched."""
    done = subprocess.run([sys.executable, "-c", _AT_THE_EDGE], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "read no further"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_driver_under_the_sanitizers_finds_nothing(tmp_path: Path, sanitizer: str) -> None:
    """Every family, path and tail on memory of exactly its size, built by the package's own CMakeLists.txt."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None or shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no cmake or no C compiler here")
    # -O1: checks are many and the compiler slow; frame pointers so that a report names its lines
    flags = f"-fsanitize={sanitizer} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1"
    driver = ROOT / "tests" / "runtime" / "sanitize.c"
    for command in (
        [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(tmp_path),
            f"-DSECATEUR_FLAGS={flags}",
            f"-DSECATEUR_DRIVER={driver}",
        ],
        [cmake, "--build", str(tmp_path), "--parallel", "2", "--target", "secateur_driver"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if "cannot find" in done.stderr + done.stdout and "san" in done.stderr + done.stdout:
            pytest.skip(f"the compiler has no {sanitizer} sanitizer")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = subprocess.run([str(tmp_path / "secateur_driver")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith(" paths, all as they should be")


def _avx512_in_c(folder: Path) -> Path:
    """What is to be included before a source of the AVX-512 path so that it needs AVX2 only."""
    used = sorted({name for path in KERNELS.glob("*.[ch]") for name in INTRINSIC.findall(path.read_text())})
    lines = [f'#include "{ROOT / "tests/runtime/avx512_in_c.h"}"']
    lines += [f"#undef _mm512_{name}\n#define _mm512_{name} in_c_{name}" for name in used]
    # the compiler may not use AVX-512 by itself; in_register's empty assembly would ask for its registers
    lines += ["#define target(...)", "#define __asm__(...)"]
    (folder / "in_c.h").write_text("\n".join(lines) + "\n")
    return folder / "in_c.h"


@pytest.mark.parametrize("checks", ["", pytest.param("-fsanitize=address,undefined", marks=pytest.mark.slow)])
def test_the_avx512_path_is_right_with_its_instructions_in_plain_c(tmp_path: Path, checks: str) -> None:
    """On any x86 with AVX2: the driver above on all three paths, avx512_in_c.h in place of the intrinsics."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or "avx2" not in library.features()["paths"]:
        pytest.skip("no C compiler or no AVX2 here")
    avx2 = "-mavx2 -mfma -mbmi -mbmi2 -mpopcnt -mlzcnt"
    paths = {2: f"{avx2} -include {_avx512_in_c(tmp_path)}", 1: avx2, 0: ""}
    x86, has = "-DSECATEUR_X86", "-D__builtin_cpu_supports(name)"
    commands = [
        (ROOT / "tests/runtime/sanitize.c", "driver", x86),
        (KERNELS / "entry.c", "entry", f"{x86} {has}=1"),
        (KERNELS / "entry.c", "entry_without", f'{x86} {has}=__builtin_strcmp(name,"avx512bf16")'),
    ]
    for source in sorted(KERNELS.glob("*.c")):
        if source.stem in ("step", "threads"):
            commands.append((source, source.stem, ""))
        elif source.stem != "entry":
            commands += [
                (source, f"{source.stem}{k}", f"-DSECATEUR_PATH={k} {flags}") for k, flags in paths.items()
            ]

    def compiled(command: tuple[Path, str, str]) -> str:
        source, name, flags = command
        common = f"-Og -std=gnu11 -fno-math-errno -ffp-contract=off -Wall -Wextra -Werror -Wno-psabi {checks} {flags}"
        target = str(tmp_path / f"{name}.o")
        done = subprocess.run(
            [compiler, *common.split(), "-c", str(source), "-o", target], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, commands))
    for left_out in ("entry.o", "entry_without.o"):  # without and with VDPBF16PS, which a processor may lack
        inputs = [path for path in objects if not path.endswith(f"/{left_out}")]
        subprocess.run(
            [compiler, *checks.split(), *inputs, "-o", str(tmp_path / "all"), "-lpthread", "-lm"], check=True
        )
        done = subprocess.run([str(tmp_path / "all")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert done.stdout.strip().endswith(" on 3 paths, all as they should be")


@pytest.mark.slow
def test_the_portable_path_is_right_on_arm(tmp_path: Path) -> None:
    """Cross-compiled for 64-bit ARM and run in its emulator; Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no compiler or no emulator for 64-bit ARM here (gcc-aarch64-linux-gnu, qemu-user)")
    sources = sorted(KERNELS.glob("*.c"))
    driver = tmp_path / "driver"
    flags = "-O2 -std=gnu11 -fno-math-errno -ffp-contract=off -Wall -Wextra -Werror -DSECATEUR_PATH=0 -static"
    inputs = [*map(str, sources), str(ROOT / "tests/runtime/sanitize.c")]
    subprocess.run([compiler, *flags.split(), *inputs, "-o", str(driver), "-lpthread", "-lm"], check=True)
    done = subprocess.run([emulator, str(driver)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.strip().endswith(" on 1 paths, all as they should be")
