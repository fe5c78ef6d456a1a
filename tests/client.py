"""The native client, compiled for the machine of the tests."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cni

SOURCE = Path(cni.__file__).parent / "client/client.c"


def compile_client(directory: Path) -> Path:
    """The client in a directory, made with SHIMLAN_CLIENT_CFLAGS (such as -fsanitize=address,undefined) if set.

    Skips the test that asks for it where there is no compiler.
    """
    if compiler := shutil.which("cc") or shutil.which("gcc"):
        command = [compiler]
    elif find_spec("ziglang"):
        command = [sys.executable, "-m", "ziglang", "cc"]
    else:
        pytest.skip("no C compiler: neither cc nor ziglang is installed")
    path = directory / "shimlan"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", f'-DSHIMLAN_VERSION="{cni.__version__}"']
    more = shlex.split(os.environ.get("SHIMLAN_CLIENT_CFLAGS", ""))
    subprocess.run([*command, *flags, *more, "-o", path, SOURCE], check=True)
    return path
