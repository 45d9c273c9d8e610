"""Building C++ and keeping it: each time in a process of its own, with a cache of its own."""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from fused_rnn.kernels.cpu import compiler, engine

from fused_rnn import machine
from fused_rnn.engines import choose

if compiler.find() is None:
    pytest.skip(compiler.why_not(), allow_module_level=True)

RUN = """
    import sys, time
    import torch
    import fused_rnn
    from fused_rnn import machine
    from fused_rnn.engines import choose
    from fused_rnn.kernels.cpu import compiler
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
    assert (code, said) == (0, [want, "sequence"])
    assert complained.count("RuntimeWarning") == 1
    assert 'runs "sequence", which is slower' in complained
    assert "Install GCC or Clang, set FUSED_RNN_CXX" in complained
    code, _, complained = _run("cpp", tmp_path / "cache", **nothing)
    assert code == 1
    assert "cpp\" cannot run cell 'peephole_lstm' here: there is no C++ compiler" in complained


WINDOWS = """
    import os, pathlib, platform, sys, warnings
    import torch
    # As far as another system can be played once torch is imported.
    pathlib.WindowsPath = pathlib.PosixPath
    os.name, sys.platform, platform.system = "nt", "win32", lambda: "Windows"
    for name in ("geteuid", "getuid", "killpg", "sysconf", "register_at_fork", "fork"):
        delattr(os, name)
    sys.modules["fcntl"] = None  # its import fails
    import fused_rnn

    def used(*layers):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for layer in layers:
                layer(torch.randn(4, 3, 5))[0].sum().backward()
                assert all(p.grad.isfinite().all() for p in layer.parameters())
        return [str(warning.message) for warning in caught]

    print(used(fused_rnn.LSTM(5, 7), fused_rnn.PeepholeLSTM(5, 7), fused_rnn.CIFGLSTM(5, 7)))
    print(used(fused_rnn.PeepholeLSTM(5, 7, backend="sequence")))
    try:
        used(fused_rnn.PeepholeLSTM(5, 7, backend="cpp"))
    except RuntimeError as error:
        print(error)
"""


def test_windows_as_far_as_it_can_be_played(tmp_path):
    """There a C++ compiler is not looked for: one warning, and PyTorch's operations."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WINDOWS)],
        env=os.environ | {"FUSED_RNN_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, error = done.stdout.splitlines()
    assert first.count("on Windows the C++ engine cannot be built yet") == 1
    assert first.count("fused_rnn: ") == 1
    assert second == "[]"
    assert "backend \"cpp\" cannot run cell 'peephole_lstm' here: on Windows" in error
    assert not list(tmp_path.iterdir())


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
    folder = Path(engine.__file__).parent
    assert {"loop.cpp", "products.h", "pointwise.h"} <= {file.name for file in folder.iterdir()}
    assert shutil.which(compiler.find().command)


def test_another_header_is_another_library(tmp_path):
    text = '#include "number.h"\nextern "C" int number() { return NUMBER; }'
    for number in (1, 2):
        (tmp_path / "number.h").write_text(f"#define NUMBER {number}")
        assert compiler.library("number", text, tmp_path).number() == number


def _fake(folder, body):
    """A compiler that does what ``body`` says in the place of making a library, OUT."""
    file = folder / "c++"
    file.write_text(
        "#!/bin/bash\nOUT= BEFORE=\n"
        'for A in "$@"; do [ "$BEFORE" = -o ] && OUT=$A; BEFORE=$A; done\n'
        f'if [ -z "$OUT" ]; then exec {shutil.which("c++")} "$@"; fi\n{body}\n'
    )
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 0", "it made nothing"),
        (": > $OUT", "it made nothing"),
        ("head -c 5000 /dev/zero > $OUT", "its output cannot be loaded"),
        (r"printf '\xff\xfe boom' >&2; exit 1", "exit status 1: .* boom"),
        ("kill -SEGV $$", "exit status -11"),
        ("sleep 1000 & wait", "no end after"),
    ],
)
def test_a_compiler_that_fails_is_warned_of_once(body, said, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CXX", _fake(tmp_path, body))
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "IDLE", 2.0)
    for _ in range(2):
        with pytest.raises(compiler.BuildError, match=said):
            compiler.library("simple", SIMPLE, tmp_path)
    assert not list((tmp_path / "cache").iterdir())
    choose._say_once.cache_clear()
    reason = compiler.Fault("it failed")
    with pytest.warns(RuntimeWarning, match="it failed"):
        choose._say_once(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose._say_once(reason)


@pytest.mark.parametrize("form", ["{} -m64", "env {} -DX='a b'"])
def test_a_compiler_with_options(form, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", form.format(shutil.which("c++")))
    monkeypatch.delenv("FUSED_RNN_CXX", raising=False)
    found = compiler.find()
    assert found is not None
    assert set(form.replace("'", "").split()[-1:]) & set(" ".join(found.flags).split())


def test_a_chosen_compiler_that_does_not_work_is_said(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CXX", "/no/such/compiler --at-all")
    with pytest.warns(RuntimeWarning, match="FUSED_RNN_CXX is '/no/such/compiler --at-all'"):
        assert compiler.find() is not None


SIMPLE = 'extern "C" int answer() { return 42; }\n'


def _answer(folder):
    return compiler.library("simple", SIMPLE, folder).answer()


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:4096],
    "zeros": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:0x1200] + bytes([content[0x1200] ^ 1]) + content[0x1201:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_built_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    assert _answer(tmp_path) == 42
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_bytes()
    file.unlink()  # and not written over: it is loaded
    file.write_bytes(DAMAGE[damage](good))
    file.chmod(0o600)
    assert _answer(tmp_path) == 42
    assert [other.read_bytes() for other in (tmp_path / "cache").iterdir()] == [good]


@pytest.mark.skipif(os.name != "posix", reason="owners and modes as POSIX has them")
def test_what_others_may_write_is_not_loaded(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("FUSED_RNN_CACHE", str(cache))
    assert _answer(tmp_path) == 42
    (file,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    file.chmod(0o666)
    assert machine.read(file) is None
    assert _answer(tmp_path) == 42
    assert file.stat().st_mode & 0o022 == 0
    cache.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others may write to it .mode 777."):
        assert compiler.cache_directory() != cache
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        assert compiler.cache_directory().stat().st_mode & 0o777 == 0o700
        assert _answer(tmp_path) == 42
        assert machine.recall({"a": 1}) is None
        assert not machine.remember({"a": 1}, {})
    cache.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if cache.stat().st_uid != 0:
        machine._refused.clear()
        with pytest.warns(RuntimeWarning, match="it belongs to user"):
            assert machine.own_directory() is None


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    for place in ("/proc/nowhere", "/dev/null/cache"):
        monkeypatch.setenv("FUSED_RNN_CACHE", place)
        own = compiler.cache_directory()
        assert own.stat().st_mode & 0o777 == 0o700
        assert not machine.remember({"a": 1}, {})
    shutil.rmtree(own)  # as cleaners of old files do
    assert compiler.cache_directory().is_dir()
    monkeypatch.delenv("FUSED_RNN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        assert machine.cache_directory() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"x"',
        b"\x00\xff",
        b"[" * 100_000,
        b'{"key":' * 3000,
        b"1" * 9999,
    ],
    ids=lambda content: repr(content[:8]),
)
def test_any_content_of_a_remembered_file_is_nothing(content, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    key = {"a": 1}
    assert machine.remember(key, {"b": 2})
    assert machine.recall(key) == {"key": key, "b": 2}
    machine.file_of(key).write_bytes(content)
    assert machine.recall(key) is None
    assert machine.remember(key, {"b": 3})
    assert machine.recall(key)["b"] == 3


def test_other_things_in_the_place_of_a_remembered_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    key = {"a": 1}
    file = machine.file_of(key)
    file.mkdir()
    assert machine.recall(key) is None
    assert not machine.remember(key, {})
    file.rmdir()
    os.mkfifo(file)
    assert machine.recall(key) is None
    file.unlink()
    file.symlink_to(tmp_path / "nothing")
    assert machine.recall(key) is None
    assert machine.remember(key, {})
    assert [other.name for other in tmp_path.iterdir()] == [file.name]
