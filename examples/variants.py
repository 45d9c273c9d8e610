"""Train every cell on three small problems, at equal numbers of parameters.

    python examples/variants.py --quick              # all cells, one seed; under two minutes
    python examples/variants.py                      # the run in bench/results/variants
    python examples/variants.py --cells lstm gru mut1 --tasks copying --seeds 5

The problems: adding two marked numbers of a sequence (Hochreiter & Schmidhuber 1997), copying
symbols after a pause (Arjovsky et al. 2016), and the character model of char_lm.py. Each model has
one recurrent layer, with as many units as bring the whole model nearest to the problem's number of
parameters. The learning rate is the one of RATES with which the first seed does best on held-out
data; all seeds are then scored on other held-out data.

The results go to results.json in --out as they come, so an interrupted run continues where it was.
variants_report.py makes a page and a plot of them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import char_lm  # before torch: it sets the threads' waiting
import torch
from torch import Tensor, nn
from torch.nn import functional

import fused_rnn
from fused_rnn import Cell, cells

RATES = (0.01, 0.03)
# Cells with other first values of the biases of some gates.
BIASED = {"lstm_forget_bias_1": ("lstm", {"f": 1.0})}
# These cells are defined with matrices that see the input before, too.
SEE_TWO_INPUTS = {"qrnn", "tgru", "tlstm"}


class Adding:
    """The sum of the two numbers that are marked, at the end of the sequence."""

    title, unit, chance = "adding", "mean squared error", 1 / 6
    T, B, parameters, steps, features = 20, 20, 4000, 500, 2

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.held_out = [self._draw(500, torch.Generator().manual_seed(s)) for s in (-1, -2)]

    def model(self, layer: nn.Module) -> nn.Module:
        return LastOutput(layer)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        return self._error(model, *self._draw(self.B, self.generator))

    def score(self, model: nn.Module, part: int) -> float:
        return self._error(model, *self.held_out[part]).item()

    def _error(self, model, x, sums):
        return functional.mse_loss(model(x), sums)

    def _draw(self, rows, generator):
        """Numbers and marks (T, rows, 2), one mark in each half; the sums (rows,)."""
        numbers, marks = torch.rand(self.T, rows, generator=generator), torch.zeros(self.T, rows)
        for begin in (0, self.T // 2):
            place = torch.randint(begin, begin + self.T // 2, (1, rows), generator=generator)
            marks.scatter_(0, place, 1.0)
        return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


class LastOutput(nn.Module):
    """A number per row, from the last output of a recurrent layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.recurrent, self.head = layer, nn.Linear(layer.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][-1]).squeeze(-1)


class Copying:
    """Symbols, blanks, a sign, and then the symbols again."""

    title, unit, chance = "copying", "bits per symbol", 3.0
    symbols, kinds, pause = 3, 8, 5
    B, parameters, steps, features = 20, 4000, 500, 8

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.held_out = [self._draw(500, torch.Generator().manual_seed(s)) for s in (-1, -2)]

    def model(self, layer: nn.Module) -> nn.Module:
        states = len(layer.cell.states)
        return char_lm.CharModel(self.kinds + 2, self.features, layer, states, torch.float32)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        return self._bits(model, *self._draw(self.B, self.generator))

    def score(self, model: nn.Module, part: int) -> float:
        return self._bits(model, *self.held_out[part]).item()

    def _bits(self, model, x, wanted):
        logits, _ = model(x, model.initial_state(x.shape[1]))
        answer = logits[-self.symbols :].flatten(0, 1)
        return functional.cross_entropy(answer, wanted.flatten()) / math.log(2)

    def _draw(self, rows, generator):
        """The sequence (2 symbols + pause + 1, rows), and what is to be copied (symbols, rows)."""
        said = torch.randint(self.kinds, (self.symbols, rows), generator=generator)
        blank = torch.full((self.pause, rows), self.kinds)
        sign = torch.full((1, rows), self.kinds + 1)
        return torch.cat([said, blank, sign, blank[:1].expand(self.symbols, rows)]), said


class Characters:
    """The next character of a text: the model and the data of char_lm.py."""

    title, unit, chance = "characters", "bits per character", None
    T, B, parameters, steps, features = 20, 20, 10000, 400, 16

    def __init__(self, seed: int):
        text = char_lm.read_text(None)
        vocabulary, args = sorted(set(text)), SimpleNamespace(batch=self.B, length=self.T)
        args.device = "cpu"
        self.kinds = len(vocabulary)
        self.streams, held_out = char_lm.make_streams(args, text, vocabulary)
        self.held_out = held_out[:1000].split(500)
        self.state = None

    def model(self, layer: nn.Module) -> nn.Module:
        states = len(layer.cell.states)
        return char_lm.CharModel(self.kinds, self.features, layer, states, torch.float32)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        x, y, fresh = char_lm.window(self.streams, self.T, step)
        state = model.initial_state(self.B) if fresh else self.state
        logits, state = model(x, state)
        self.state = [s.detach() for s in state]
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten()) / math.log(2)

    def score(self, model: nn.Module, part: int) -> float:
        return char_lm.bits_per_character(model, self.held_out[part])


TASKS = {task.title: task for task in (Adding, Copying, Characters)}


class CellLayer(nn.Module):
    """A layer of any cell over features (T, B, I), which gives it what its wiring asks for.

    Where gates of the cell take x itself, x is first projected to as many features as units. Of
    the streams "time" is the number of the step, "elapsed" is 1, and any other is a learned
    projection of x, such as the memory below that of the first layer of a depth-gated LSTM (Yao et
    al. 2015).
    """

    num_layers = 1

    def __init__(self, name: str, features: int, hidden: int):
        super().__init__()
        name, biases = BIASED.get(name, (name, {}))
        self.cell, self.hidden_size = cells.get(name), hidden
        self.sees_two = name in SEE_TWO_INPUTS
        width = 2 * features if self.sees_two else features
        self.project = nn.Linear(width, hidden) if self.cell.raw_gates else nn.Identity()
        width = hidden if self.cell.raw_gates else width
        made = Streamed if self.cell.streams else fused_rnn.Recurrent
        self.layer = made(self.cell, width, hidden)
        for gate, value in biases.items():
            first = self.cell.x_gates.index(gate) * hidden
            nn.init.constant_(self.layer.bias_ih_l0.detach()[first : first + hidden], value)

    def forward(self, x: Tensor, hx=None):
        if self.sees_two:
            x = torch.cat([x, functional.pad(x, (0, 0, 0, 0, 1, 0))[:-1]], -1)
        return self.layer(self.project(x), hx)


class Streamed(nn.Module):
    """A layer of a cell with streams, by ``scan``; its weights begin as those of ``Recurrent``."""

    def __init__(self, cell: Cell, features: int, hidden: int):
        super().__init__()
        self.cell, self.hidden = cell, hidden
        self.input = nn.Linear(features, len(cell.x_gates) * hidden)
        bias = torch.empty(len(cell.bias_gates) * hidden)
        self.bias = nn.Parameter(bias) if cell.bias_gates else None
        self.weights = nn.ParameterList(
            torch.empty((end - begin) * hidden, size * hidden)
            for (begin, end), size in zip(cell.spans, cell.source_sizes, strict=True)
        )
        self.params = nn.ParameterList(torch.empty(hidden) for _ in cell.params)
        bound = hidden**-0.5
        for tensor in self.parameters():
            nn.init.uniform_(tensor, -bound, bound)
        for tensor, param in zip(self.params, cell.given.values(), strict=True):
            if callable(param.init):
                param.init(tensor.detach())
        made = [name for name in cell.streams if name not in ("time", "elapsed")]
        self.streams = nn.ModuleDict({name: nn.Linear(features, hidden) for name in made})

    def forward(self, x: Tensor, hx=None):
        steps, rows, _ = x.shape
        if hx is None:
            hx = [x.new_zeros(1, rows, self.hidden)] * len(self.cell.states)
        given = {
            "time": torch.arange(steps).to(x)[:, None, None].expand(steps, rows, self.hidden),
            "elapsed": x.new_ones(steps, rows, self.hidden),
        }
        output, finals = fused_rnn.scan(
            self.cell,
            self.input(x),
            list(self.weights),
            [state[0] for state in hx],
            bias=self.bias,
            params=list(self.params),
            streams=[given.get(n) if n in given else self.streams[n](x) for n in self.cell.streams],
        )
        return output, tuple(state[None] for state in finals)


@dataclass(frozen=True)
class Run:
    """One training, by its settings."""

    cell: str
    task: str
    rate: float
    seed: int
    steps: int

    @property
    def key(self) -> str:
        return f"{self.cell} {self.task} {self.rate:g} {self.seed} {self.steps}"


def find_units(task, name: str) -> int:
    """The units with which the model is nearest to ``task.parameters``."""
    best, off = 0, math.inf
    for hidden in range(1, 2000):
        try:
            model = task.model(CellLayer(name, task.features, hidden))
        except ValueError:  # such as heads that do not divide it
            continue
        distance = abs(count(model) - task.parameters)
        if distance >= off:
            break
        best, off = hidden, distance
    return best


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def train(run: Run) -> dict:
    """Train and score; the scores are None where the run diverged."""
    began, task = time.process_time(), TASKS[run.task](run.seed)
    units = find_units(task, run.cell)
    torch.manual_seed(run.seed)
    model = task.model(CellLayer(run.cell, task.features, units))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    schedule = SimpleNamespace(steps=run.steps, lr=run.rate)
    for step in range(run.steps):
        for group in optimizer.param_groups:
            group["lr"] = char_lm.learning_rate(schedule, step)
        loss = task.loss(model, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        choosing, score = (task.score(model, part) for part in (0, 1))
    finite = math.isfinite(choosing) and math.isfinite(score)
    return {
        "choosing": choosing if finite else None,
        "score": score if finite else None,
        "units": units,
        "parameters": count(model),
        "seconds": round(time.process_time() - began, 2),
    }


def train_all(known: dict, name: str, title: str, seeds: int, steps: int, rates) -> dict:
    """The runs of a cell on a problem that are not known yet, by their keys."""
    made = {}

    def result(rate, seed):
        run = Run(name, title, rate, seed, steps)
        if run.key not in known | made:
            made[run.key] = train(run)
        return (known | made)[run.key]

    rate = choose_rate({rate: result(rate, 0) for rate in rates})
    for seed in range(1, seeds):
        result(rate, seed)
    return made


def choose_rate(first: dict[float, dict]) -> float:
    """The rate whose run of the first seed did best on the data for choosing."""

    def badness(rate):
        score = first[rate]["choosing"]
        return math.inf if score is None else score

    return min(first, key=badness)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    import variants_report  # with matplotlib and tqdm, which the workers do without

    problems = {title: problem(task) for title, task in TASKS.items()}
    results = load(args.out) or {"problems": problems, "starts": [], "runs": {}}
    if results["problems"] != problems:
        parser.error(f"--out: {args.out} has runs of other problems; give another folder")
    runs, jobs = results["runs"], []
    for name in args.cells:
        for title in args.tasks:
            steps = args.steps or TASKS[title].steps // (5 if args.quick else 1)
            known = {key: run for key, run in runs.items() if key.startswith(f"{name} {title} ")}
            rates, seeds = (RATES[-1:], 1) if args.quick else (RATES, args.seeds)
            jobs.append((known, name, title, seeds, steps, rates))
    began, before = time.perf_counter(), len(runs)
    start = variants_report.facts()
    results["starts"].append(start)
    bar = variants_report.progress_bar(0, len(jobs), disable=False)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(args.workers, context, torch.set_num_threads, (1,))
    try:
        for future in as_completed([pool.submit(train_all, *job) for job in jobs]):
            runs.update(future.result())
            start["minutes"] = round((time.perf_counter() - began) / 60, 1)
            start["runs"] = len(runs) - before
            save(args.out, results)
            bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    print(variants_report.write(args.out, results))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, known = parser.add_argument, [*cells.names(), *BIASED]
    add("--cells", nargs="+", choices=known, default=known, metavar="NAME", help="default: all")
    add("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    add("--seeds", type=int, default=3, help="runs of each cell (default %(default)s)")
    add("--steps", type=int, help="updates of each run (default: by problem)")
    add("--quick", action="store_true", help="one seed, one rate and a fifth of the updates")
    add("--workers", type=int, default=2, help="processes of one thread (default %(default)s)")
    add("--out", type=Path, default=Path("runs/variants"), help="default %(default)s")
    return parser


def problem(task) -> dict:
    """The sizes of a problem, which its results depend on."""
    sizes = {name: value for name, value in vars(task).items() if isinstance(value, int)}
    return {name: value for name, value in sizes.items() if name != "steps"}


def load(out: Path) -> dict | None:
    path = out / "results.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def save(out: Path, results: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.tmp").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    os.replace(out / "results.tmp", out / "results.json")  # never half of one


if __name__ == "__main__":
    main()
