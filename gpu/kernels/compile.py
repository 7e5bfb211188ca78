"""Compiles every kernel of this folder to PTX, by NVRTC out of its wheel: no GPU and no CUDA is needed.

With `--check` nothing is written: what is committed must be what comes out, and ptxas, for every kind of GPU that is named here, must keep all in registers.
"""

import argparse
import ctypes
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

HERE = pathlib.Path(__file__).parent
#: The oldest kind of GPU that is served: its PTX runs on every newer one.
OLDEST = "sm_80"
#: Files that are compiled once more, for GPUs from this kind on, which have instructions that others lack.
NEWER = {"fp8.cu": "sm_89"}
#: Kinds of GPUs that nothing may be spilled on, each from the one on that a file is for.
KINDS = {"sm_80": ["sm_80", "sm_90", "sm_100"], "sm_89": ["sm_89", "sm_90", "sm_100"]}


def find(pattern: str) -> pathlib.Path:
    """Returns a file out of NVIDIA's wheels."""
    found = sorted(pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia").rglob(pattern))
    if not found:
        raise SystemExit(f"{pattern} is not installed: pip install -r {HERE / 'requirements.txt'}")
    return found[0]


def ptx(nvrtc: ctypes.CDLL, source: pathlib.Path, kind: str) -> str:
    """Compiles one file for GPUs from a kind on."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def call(name: str, *arguments: object) -> None:
        code = getattr(nvrtc, name)(*arguments)
        if code and name != "nvrtcCompileProgram":
            raise SystemExit(f"{name}: {code}")

    headers = sorted(HERE.glob("*.cuh"))
    texts = (ctypes.c_char_p * len(headers))(*(header.read_bytes() for header in headers))
    names = (ctypes.c_char_p * len(headers))(*(header.name.encode() for header in headers))
    call(
        "nvrtcCreateProgram",
        ctypes.byref(program),
        source.read_bytes(),
        source.name.encode(),
        len(headers),
        texts,
        names,
    )
    options = [f"--gpu-architecture={kind.replace('sm', 'compute')}".encode(), b"--std=c++17", b"--fmad=false"]
    call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
    call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    call("nvrtcGetProgramLog", program, log)
    if log.value.strip():
        raise SystemExit(log.value.decode())
    call("nvrtcGetPTXSize", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    call("nvrtcGetPTX", program, text)
    return text.value.decode()


def resources(ptxas: pathlib.Path, text: str, kinds: list[str]) -> None:
    """Says how many registers a kernel takes on each kind; raises where it takes more than there are."""
    with tempfile.TemporaryDirectory() as folder:
        given = pathlib.Path(folder, "kernel.ptx")
        given.write_text(text)
        for kind in kinds:
            made = [str(ptxas), f"-arch={kind}", "-v", str(given), "-o", str(given.with_suffix(".cubin"))]
            said = subprocess.run(made, capture_output=True, text=True, check=True).stderr
            spills = [int(number) for number in re.findall(r"(\d+) bytes spill", said)]
            if not spills or any(spills):
                raise SystemExit(f"{kind}: {said}")
            taken = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
            print(f"  {kind}: {len(taken)} kernels, {max(taken)} registers at most, nothing spilled")


def main() -> None:
    """Writes or checks the PTX beside each kernel."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing, and fail where something differs")
    check = arguments.parse_args().check
    # NVRTC looks for it where programs lie, not beside itself.
    ctypes.CDLL(str(find("libnvrtc-builtins.so.12.4")), mode=ctypes.RTLD_GLOBAL)
    nvrtc, ptxas = ctypes.CDLL(str(find("libnvrtc.so.12"))), find("ptxas")
    for source in sorted(HERE.glob("*.cu")):
        newer = NEWER.get(source.name)
        for kind in [OLDEST, newer] if newer else [OLDEST]:
            suffix = "" if kind == OLDEST else f"_{kind.replace('_', '')}"
            text, committed = ptx(nvrtc, source, kind), source.with_name(f"{source.stem}{suffix}.ptx")
            print(committed.name)
            resources(ptxas, text, KINDS[kind])
            if not check:
                committed.write_text(text)
            elif not committed.exists() or committed.read_text() != text:
                sys.exit(f"{committed} is not what {source.name} compiles to: run {pathlib.Path(__file__).name}")


if __name__ == "__main__":
    main()
