"""The examples learn, resume exactly, coincide with their peers and say what does not fit."""

import functools
import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from pydoc_data import topics

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = Path(__file__).parents[2] / "examples" / "char_lm_peers.py"
TINY = ["--hidden=8", "--embedding=4", "--batch=4", "--length=6", "--device=cpu"]


@pytest.fixture(scope="module")
def peers():
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PATH.parent))
        yield importlib.import_module("char_lm_peers")
    for name in ("char_lm", "char_lm_peers"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def char_lm(peers):
    return peers.char_lm


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics.topics.values())[:3000], "utf-8")
    return str(path)


@pytest.fixture
def train(peers, text, tmp_path, monkeypatch):
    """Runs char_lm_peers.py; returns its checkpoint."""

    def train(options, out="out", plot=False):
        if not plot:  # it takes longer than all the rest
            monkeypatch.setattr(peers, "plot", lambda *args: None)
        peers.main([*TINY, "--text", text, "--out", str(tmp_path / out), *options.split()])
        return torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)

    return train


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_learns(train, tmp_path, capsys):
    # Eight units learn too little to tell it from luck.
    size = "--hidden 64 --batch 16 --length 24"
    checkpoint = train(f"--steps 150 --lr 0.02 --cell peephole_lstm_io {size}", plot=True)
    losses = checkpoint["learners"][0]["losses"]
    assert len(losses) == 150
    assert sum(losses[-10:]) / 10 < losses[0] - 2
    steps, bits = zip(*checkpoint["held_out"], strict=True)
    assert steps == tuple(range(15, 151, 15))
    assert bits[-1] < bits[0] - 0.5
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert f"{bits[-1]:.3f} bits per character held out after 150 steps" in out
    assert len(out.split("\n\n", 1)[1]) >= 20  # the sample
    assert re.search(r"^ *\d+%\|.*\| \d+/150 \[\d\d:\d\d<", err, re.M)  # a bar, and the time left
    assert "\r" not in err  # where there is no terminal, in lines


def test_the_short_program_prints_the_same_numbers(train, char_lm, text, capsys):
    options = "--steps 20 --cell gru --hidden 16"
    ours = train(options)
    capsys.readouterr()
    char_lm.main([*TINY, "--text", text, *options.split(), "--sample", "30"])
    out, _, sample = capsys.readouterr().out.partition("\n\n")
    losses = ours["learners"][0]["losses"]
    line = f"{sum(losses[-2:]) / 2:.3f} bits per character in training, "
    assert out.endswith(f"{line}{ours['held_out'][-1][1]:.3f} held out")
    assert len(out.splitlines()) == 10
    assert len(sample) == 31


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--cell gru --layers 2 --against torch --backend sequence",
        "--cell peephole_lstm --against eager --against-steps 13",
        "--cell cifg_lstm --dtype float16",
    ],
)
def test_resumed_is_uninterrupted(train, tmp_path, options):
    whole = train(f"--steps 20 {options}")
    train(f"--steps 20 --stop-at 10 {options}", "resumed")
    resumed = train(f"--resume {tmp_path / 'resumed' / 'checkpoint.pt'} {options}", "resumed")
    for checkpoint in (whole, resumed):
        for learner in checkpoint["learners"]:
            assert len(learner.pop("seconds")) == len(learner["losses"])
    assert len(resumed["learners"][0]["losses"]) == 20
    assert same(whole, resumed)


def test_settings_need_no_repeating(train, peers, tmp_path):
    train("--steps 6 --stop-at 3 --cell gru --seed 3", "first")
    peers.main(["--resume", str(tmp_path / "first" / "checkpoint.pt"), "--sample", "0"])
    resumed = torch.load(tmp_path / "first" / "checkpoint.pt", weights_only=True)
    assert same(
        resumed["learners"][0]["module"],
        train("--steps 6 --cell gru --seed 3")["learners"][0]["module"],
    )


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("backend", ["aten", "auto", "sequence"])
def test_coincides_with_torch(train, cell, backend, capsys):
    ours, theirs = train(
        f"--steps 12 --cell {cell} --backend {backend} --against torch --layers 2"
    )["learners"]
    if backend == "aten":
        assert ours["losses"] == theirs["losses"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    out = capsys.readouterr().out
    assert "fused_rnn: " in out
    assert "torch.nn: " in out
    assert "In the first 12 steps their losses differ by at most" in out


@pytest.mark.parametrize(("other", "words"), [(3.0, "2.00 times the time"), (0.75, "0.50 times")])
def test_says_who_is_faster(peers, capsys, other, words):
    def learner(name, seconds):
        return peers.Peer(*[None] * 5, name=name, losses=[5.0, 4.0], seconds=[seconds] * 2)

    args = types.SimpleNamespace(batch=4, length=6)
    peers.report(args, [learner("fused_rnn", 1.5), learner("torch.nn", other)])
    out = capsys.readouterr().out
    assert f"torch.nn needs {words}" in out
    assert ("fused_rnn is faster here" in out) == (other > 1.5)
    assert ("fused_rnn is slower here" in out) == (other < 1.5)


def test_coincides_with_eager_loop(train):
    ours, loop = train("--steps 10 --cell gru_reset_before --against eager --against-steps 7")[
        "learners"
    ]
    assert len(ours["losses"]) == 10
    assert ours["losses"][:7] == pytest.approx(loop["losses"], abs=1e-5)


@pytest.mark.parametrize(
    ("dtype", "within"), [("bfloat16", 0.1), ("float16", 0.01), ("float64", 1e-4)]
)
def test_dtypes(train, dtype, within):
    wanted, checkpoint = train("--steps 10"), train(f"--steps 10 --dtype {dtype}")
    losses = checkpoint["learners"][0]["losses"]
    assert losses == pytest.approx(wanted["learners"][0]["losses"], abs=within)
    kept = torch.float64 if dtype == "float64" else torch.float32
    assert {value.dtype for value in checkpoint["learners"][0]["module"].values()} == {kept}
    assert bool(checkpoint["learners"][0]["scaler"]) == (dtype == "float16")


def test_compiled(train, monkeypatch):
    wanted = train("--steps 4 --cell peephole_lstm")["learners"][0]["losses"]
    compile = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile)
    losses = train("--steps 4 --cell peephole_lstm --compile")["learners"][0]["losses"]
    assert losses == pytest.approx(wanted, abs=1e-5)


def test_two_processes(train, text, tmp_path):
    options = "--steps 8 --stop-at {} --cell peephole_lstm --against eager"
    one = train(options.format(8))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = functools.partial(
        subprocess.run, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    checkpoint = tmp_path / "two" / "checkpoint.pt"
    train(options.format(4), "two")  # by one process; two go on
    program = Path(__file__).parents[1] / "support" / "left_threads.py"
    command = [*launch, "--nproc-per-node", "2", str(program), str(PATH.parent), PATH.stem]
    done = run([*command, "--resume", str(checkpoint), "--sample", "0"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left: []") == 2, done.stdout  # they would abort the interpreter's end
    assert done.stdout.count("bits per character held out after 8 steps") == 1
    two = torch.load(checkpoint, weights_only=True)
    for a, b in zip(one["learners"], two["learners"], strict=True):
        assert a["losses"] == pytest.approx(b["losses"], abs=1e-5)
        for name, value in a["module"].items():
            torch.testing.assert_close(b["module"][name], value, atol=1e-4, rtol=1e-3)
        for ours, theirs in zip(a["state"], b["state"], strict=True):
            assert ours.shape == (1, 4, 8)
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cell lstn", "--cell: expected one of rnn_tanh, "),
        ("--cell peephole_lstm_x", "got 'peephole_lstm_x'"),
        ("--cell cifg_lstm --against torch", "torch.nn has only lstm, gru, rnn_tanh, rnn_relu"),
        ("--against torch --dtype float16", "on CPUs torch.nn has no layers under autocast"),
        ("--backend tritan", "--backend: expected one of auto, triton, "),
        ("--backend aten --cell cifg_lstm", "backend \"aten\" cannot run cell 'cifg_lstm'"),
        ("--hidden 0", "--hidden: expected at least 1, got 0"),
        ("--lr nan", "--lr: expected"),
        ("--stop-at -1", "--stop-at: expected at least 1, got -1"),
        ("--batch 1000", "3000 characters are too few, --batch 1000 and --length 6 take 66"),
        ("--text nowhere.txt", "--text: [Errno 2] No such file"),
        ("--device nonsense", "nonsense"),
        ("--resume nowhere.pt", "--resume: [Errno 2] No such file"),
        (f"--resume {PATH}", "--resume: not a checkpoint of this program"),
    ],
)
def test_errors(train, options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        train(options)
    assert exit.value.code == 2
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert message in last


def test_checkpoint_of_another_run(train, tmp_path, capsys):
    train("--steps 2", "first")
    checkpoint = tmp_path / "first" / "checkpoint.pt"
    for options, message in (
        ("--hidden 9", "the checkpoint was made with hidden 8, not 9"),
        ("--cell gru", "the checkpoint was made with cell lstm, not gru"),
        ("--against torch", "the checkpoint was made with against None, not torch"),
        (f"--text {PATH}", "the checkpoint is of a run on another text"),
    ):
        with pytest.raises(SystemExit):
            train(f"--resume {checkpoint} {options}")
        assert message in capsys.readouterr().err


def test_streams_hold_every_character_once(char_lm):
    streams = char_lm.fold(torch.arange(31), 3)
    assert streams.t().tolist() == [
        list(range(0, 11)),
        list(range(10, 21)),
        list(range(20, 31)),
    ]
    seen, starts = [], []
    for step in range(5):
        x, y, fresh = char_lm.window(streams, 5, step)
        assert torch.equal(y, x + 1)
        starts.append(fresh)
        seen += x[:, 0].tolist()
    assert seen[:10] == list(range(10))
    assert starts == [True, False, True, False, True]
