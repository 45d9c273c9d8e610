"""PyTorch's own cases of its recurrent modules, run against ours.

They are those of ``torch.testing._internal.common_modules.module_db``: what modules and calls are
made of, and which of them are errors. What PyTorch's tests ask of each is asked here.
"""

import copy
import functools
import io
import pickle
import re
from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64

# What PyTorch's tests import freezes the flags of the backends, for every test of this process.
with mock.patch("torch.backends.disable_global_flags"):
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in NAMES}
BACKENDS = ("auto", "sequence", "reference")
names = pytest.mark.parametrize("name", NAMES)
backends = pytest.mark.parametrize("backend", BACKENDS)


def _samples(name, dtype=torch.float64, requires_grad=False):
    """Constructor and forward arguments, and PyTorch's oracle of a call, of each case."""
    info, more = INFOS[name], {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    samples = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=True, **more
    )
    assert samples
    return samples


def _made(name, sample, theirs=False, **options):
    given = sample.constructor_input
    kind = getattr(nn if theirs else fused_rnn, name)
    torch.manual_seed(0)
    return kind(*given.args, **{"dtype": torch.float64} | given.kwargs | options)


def _tensors(results):
    """Those of a result or an argument, a PackedSequence's data among them."""
    leaves = pytree.tree_leaves(results, is_leaf=lambda x: isinstance(x, PackedSequence))
    data = [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves]
    return [tensor for tensor in data if isinstance(tensor, torch.Tensor)]


def _with(arguments, tensors):
    """The arguments with other tensors."""
    leaves, form = pytree.tree_flatten(arguments, is_leaf=lambda x: isinstance(x, PackedSequence))
    new = [
        leaf._replace(data=tensor) if isinstance(leaf, PackedSequence) else tensor
        for leaf, tensor in zip(leaves, tensors, strict=True)
    ]
    return pytree.tree_unflatten(new, form)


def _run(module, sample):
    """Outputs, and the gradients of their random product of every input and parameter."""
    arguments = sample.forward_input.args
    leaves = [tensor.detach().clone().requires_grad_() for tensor in _tensors(arguments)]
    outputs = _tensors(module(*_with(arguments, leaves)))
    inputs = {f"input.{i}": leaf for i, leaf in enumerate(leaves)} | dict(module.named_parameters())
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(inputs.values()), cotangents)
    named = {f"output.{i}": output for i, output in enumerate(outputs)}
    return named | {f"d{n}": g for n, g in zip(inputs, gradients, strict=True)}


@backends
@names
def test_forward_and_gradients(name, backend):
    for sample in _samples(name):
        module = _made(name, sample, backend=backend)
        got = _run(module, sample)
        assert_equal_in_float64(got, _run(_made(name, sample, theirs=True), sample), str(sample))
        if not any(isinstance(a, PackedSequence) for a in sample.forward_input.args):
            oracle = sample.reference_fn(module, *sample.forward_input.args)
            outputs = {n: t for n, t in got.items() if n.startswith("output")}
            want = {f"output.{i}": t for i, t in enumerate(_tensors(oracle))}
            assert_equal_in_float64(outputs, want, str(sample))


@pytest.mark.parametrize("order", [1, 2])
@backends
@names
def test_gradcheck(name, backend, order):
    """Along random directions."""
    check = {1: gradcheck, 2: gradgradcheck}[order]
    for sample in _samples(name):
        module = _made(name, sample, backend=backend)
        arguments = sample.forward_input.args
        leaves = [tensor.detach().clone().requires_grad_() for tensor in _tensors(arguments)]
        keys, parameters = zip(*module.named_parameters(), strict=True)
        run = functools.partial(_functional, module, arguments, keys)
        assert check(run, (*leaves, *parameters), fast_mode=True)


def _functional(module, arguments, keys, *tensors):
    """A call with other inputs and parameters."""
    inputs, parameters = tensors[: -len(keys)], tensors[-len(keys) :]
    weights = dict(zip(keys, parameters, strict=True))
    return tuple(_tensors(functional_call(module, weights, _with(arguments, inputs))))


@names
def test_pickles_and_copies(name):
    for sample in _samples(name):
        module = _made(name, sample)
        want = _run(module, sample)
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        for other in (saved, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(other) is type(module)
            assert_equal_in_float64(_run(other, sample), want, str(sample))


@names
def test_moves(name):
    """To other dtypes, to no device and back; and made there from the start."""
    for sample in _samples(name):
        module = _made(name, sample)
        want = _run(module, sample)
        moved = module.float()
        assert moved is module
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            arguments = [tensor.to(dtype) for tensor in _tensors(sample.forward_input.args)]
            outputs = _tensors(module.to(dtype)(*_with(sample.forward_input.args, arguments)))
            assert {output.dtype for output in outputs} == {dtype}
        again = _made(name, sample)
        for there in (again.to("meta"), _made(name, sample, device="meta")):
            assert all(p.is_meta for p in there.parameters())
            back = there.to_empty(device="cpu")
            back.load_state_dict(_made(name, sample).state_dict())
            assert_equal_in_float64(_run(back, sample), want, str(sample))


def _without_nonlinearity(module):
    """Its representation: torch.nn.RNN leaves the nonlinearity out, its cell does not quote it."""
    return re.sub(r', nonlinearity="?\w+"?', "", repr(module))


@names
def test_made_as_asked(name):
    """Other values of the same seed, frozen parameters, training and evaluation, text."""
    for sample in _samples(name):
        theirs, module = _made(name, sample, theirs=True), _made(name, sample)
        assert _without_nonlinearity(module) == _without_nonlinearity(theirs)
        assert module.training
        assert not module.eval().training
        frozen = _made(name, sample).requires_grad_(False)
        outputs = _tensors(frozen(*sample.forward_input.args))
        assert not any(output.requires_grad for output in outputs)


@names
def test_not_contiguous_input(name):
    for sample in _samples(name):
        module, arguments = _made(name, sample), sample.forward_input.args
        strided = [
            torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]
            for tensor in _tensors(arguments)
        ]
        got = _tensors(module(*_with(arguments, strided)))
        want = _tensors(module(*arguments))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@backends
@names
def test_errors(name, backend):
    """Of PyTorch's types; the words are our own."""
    info = INFOS[name]
    cases = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    assert cases
    for case in cases:
        sample = case.module_error_input
        made = sample.constructor_input
        if len(made.args) > 2 and isinstance(made.args[2], str):
            # A nonlinearity in the place of ``bias``, which torch.nn takes as true.
            with pytest.raises(TypeError, match="bias: expected bool, got str"):
                _made(name, sample, backend=backend)
        elif case.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type):
                _made(name, sample, backend=backend)
        else:
            module = _made(name, sample, backend=backend)
            with pytest.raises(case.error_type):
                module(*sample.forward_input.args, **sample.forward_input.kwargs)
