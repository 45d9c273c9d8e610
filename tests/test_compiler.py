"""Building C++ and keeping it: each time in a process of its own, with a cache of its own."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fused_rnn.kernels import cpu

from fused_rnn import compiler

if compiler.find() is None:
    pytest.skip(compiler.why_not(), allow_module_level=True)

RUN = """
    import sys, time
    import torch
    import fused_rnn
    from fused_rnn import compiler
    torch.manual_seed(0)
    layer = fused_rnn.PeepholeLSTM(5, 7, backend=sys.argv[1])
    x = torch.randn(4, 3, 5)
    layer(x)[0].sum().backward()
    print(f"{layer.weight_hh_l0.grad.norm():.5f}", fused_rnn.explain(layer, 4, 3).backend)
"""


def _start(backend, cache, **environment):
    code = textwrap.dedent(RUN)
    command = [sys.executable, "-c", code, backend]
    full = os.environ | {"FUSED_RNN_CACHE": str(cache)} | environment
    return subprocess.Popen(
        command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _run(backend, cache, **environment):
    process = _start(backend, cache, **environment)
    said, complained = process.communicate(timeout=120)
    return process.returncode, said.split(), complained


def test_builds_once_and_reads_the_cache_after(tmp_path):
    code, first, _ = _run("cpp", tmp_path)
    assert (code, first[1]) == (0, "cpp")
    made = sorted(tmp_path.iterdir())
    assert [file.name.split("-")[0] for file in made] == ["loop", "peephole_lstm"]
    times = [file.stat().st_mtime_ns for file in made]
    assert _run("cpp", tmp_path)[:2] == (0, first)
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.iterdir())] == times


def test_processes_that_build_at_once(tmp_path):
    processes = [_start("cpp", tmp_path) for _ in range(4)]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert len({out for out, _ in said}) == 1
    assert len(list(tmp_path.iterdir())) == 2  # nothing half made is left


def test_no_compiler(tmp_path):
    nothing = {"PATH": str(tmp_path), "CXX": "", "FUSED_RNN_CXX": ""}
    want = _run("sequence", tmp_path / "cache")[1][0]
    code, said, complained = _run("auto", tmp_path / "cache", **nothing)
    assert (code, said, complained) == (0, [want, "sequence"], "")
    code, _, complained = _run("cpp", tmp_path / "cache", **nothing)
    assert code == 1
    assert "cpp\" cannot run cell 'peephole_lstm' here: there is no C++ compiler" in complained


def test_a_compiler_that_fails(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\ncase "$*" in *loop-*) echo no; exit 3;; esac; exec c++ "$@"\n')
    broken.chmod(0o755)
    code, said, complained = _run("auto", tmp_path / "cache", FUSED_RNN_CXX=str(broken))
    assert (code, said[1]) == (0, "sequence")
    assert "RuntimeWarning" in complained
    assert "exit status 3: no" in complained
    code, _, complained = _run("cpp", tmp_path / "cache", FUSED_RNN_CXX=str(broken))
    assert code == 1
    assert "exit status 3: no" in complained


def test_flags_of_the_user_are_part_of_the_build(tmp_path):
    assert _run("cpp", tmp_path)[0] == 0
    before = len(list(tmp_path.iterdir()))
    assert _run("cpp", tmp_path, FUSED_RNN_CXXFLAGS="-DOTHER -g0")[0] == 0
    assert len(list(tmp_path.iterdir())) == 2 * before
    code, _, complained = _run("cpp", tmp_path, FUSED_RNN_CXXFLAGS="-no-such-flag")
    assert code == 1
    assert "no-such-flag" in complained


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert _run("cpp", tmp_path)[0] == 0


def test_a_cache_below_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert _run("cpp", file / "cache")[0] == 0


def test_the_package_has_its_sources():
    folder = Path(cpu.__file__).parent
    assert {"loop.cpp", "products.h", "pointwise.h"} <= {file.name for file in folder.iterdir()}
    assert shutil.which(compiler.find().command)


def test_another_header_is_another_library(tmp_path):
    (tmp_path / "number.h").write_text("#define NUMBER 1")
    text = '#include "number.h"\nextern "C" int number() { return NUMBER; }'
    first = compiler.build("number", text, tmp_path)
    (tmp_path / "number.h").write_text("#define NUMBER 2")
    second = compiler.build("number", text, tmp_path)
    assert first != second
    assert compiler.load(second).number() == 2
