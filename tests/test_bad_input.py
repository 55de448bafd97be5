"""Every argument of every public callable is given some seventy bad values, one after another.

Each call raises a TypeError or ValueError that begins with the argument's name, or works for a
reason that tests/bad_input/accepted.py gives. It changes no input, takes no memory to speak of and
comes back. How many calls were tried is at the end of pytest's output.
"""

import faulthandler
import inspect
import pkgutil
import resource
import signal
import traceback
import types
from dataclasses import is_dataclass
from fnmatch import fnmatch
from importlib import import_module

import pytest
import torch

import robustcore
from bad_input.accepted import EXEMPT, OTHERS, takes_long, why_accepted
from bad_input.examples import EXAMPLES
from bad_input.values import bad_values

SECONDS = 10  # a call may take, with other tests beside it
MEMORY = 4 << 30  # and all of them, in bytes of address space


def public():
    """Names of the public callables, to what has their signature."""
    found, seen = {}, set()
    exported = {id(getattr(module, name)) for _, module in homes() for name in module.__all__}
    for prefix, module in homes():
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, types.ModuleType) or not callable(thing) or id(thing) in seen:
                continue
            seen.add(id(thing))
            if not inspect.isclass(thing):
                found[prefix + name] = thing
            elif not issubclass(thing, Exception):
                found.update(of_class(prefix + name, thing, exported, seen))
    return {name: thing for name, thing in found.items() if inspect.signature(thing).parameters}


def homes():
    yield "", robustcore
    yield "ops.", robustcore.ops  # before the families that hand some of them on
    for module in pkgutil.iter_modules(robustcore.__path__):
        if module.ispkg and hasattr(home := import_module(f"robustcore.{module.name}"), "__all__"):
            yield f"{module.name}.", home
            for name in home.__all__:
                part = getattr(home, name)
                if isinstance(part, types.ModuleType) and hasattr(part, "__all__"):
                    yield f"{module.name}.{name}.", part


def of_class(name, kind, exported, seen):
    """Constructor and public methods, those that our own code defines, each once.

    A dataclass without a ``__post_init__`` is a result: the package makes it, the user reads it.
    """
    for attribute in ("__init__", "__call__", *(a for a in dir(kind) if not a.startswith("_"))):
        method = getattr(kind, attribute, None)
        ours = getattr(method, "__module__", None) or ""
        if not callable(method) or not ours.startswith("robustcore"):
            continue
        if attribute == "__init__":
            result = is_dataclass(kind) and not hasattr(kind, "__post_init__")
            if not result and not inspect.isabstract(kind):
                yield name, kind
        elif len(inspect.signature(method).parameters) > (not inspect.ismethod(method)):
            owner = next(c for c in kind.__mro__ if attribute in vars(c))
            if owner is not kind and (id(owner) in exported or id(vars(owner)[attribute]) in seen):
                continue
            seen.add(id(vars(owner)[attribute]))
            yield f"{name}.{attribute}", method


PUBLIC = {
    name: thing
    for name, thing in public().items()
    if not any(fnmatch(name, pattern) for pattern in EXEMPT)
}


def test_every_callable_has_an_example():
    for name, thing in PUBLIC.items():
        parameters = inspect.signature(thing).parameters.values()
        want = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        left_out = want - {"self", *EXAMPLES[name]()[1]}
        assert not left_out, f"the example of {name} leaves out {left_out}"


def test_every_example_is_of_a_callable():
    assert sorted(PUBLIC) == sorted({name.split("/")[0] for name in EXAMPLES})


@pytest.fixture
def limits():
    """A call that hangs is interrupted, or the process ends with a traceback; memory is bounded."""

    def interrupt(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_bad_input(name, limits, record_property, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a string is the name of a file
    make, name = EXAMPLES[name], name.split("/")[0]
    callee, arguments = make()
    callee(**arguments)
    signature = inspect.signature(PUBLIC[name])
    faults, tried = [], 0
    for argument, good in arguments.items():
        for label, bad in bad_values(good):
            if takes_long(name, argument, label):
                continue
            tried += 1
            callee, given = make()
            given[argument] = bad
            fault = try_call(name, callee, given, argument, label, signature)
            if fault:
                faults.append(f"{argument}, {label}: {fault}")
    record_property("bad_input", (len(arguments), tried))
    assert not faults, f"{len(faults)} of {tried}:\n" + "\n".join(faults)


def try_call(name, callee, given, argument, label, signature):
    """What is wrong with this call, or None."""
    before = {n: state(v) for n, v in given.items() if n != "out"}
    signal.alarm(SECONDS)
    try:
        callee(**given)
    except (TypeError, ValueError) as error:
        other = OTHERS.get((name, argument))
        if not names(str(error), argument, signature, label, other) and not of_model(error):
            return f"{type(error).__name__}: {str(error)[:200]}"
    except Exception as error:
        if not of_model(error) and not out_of_memory(error, label):
            return f"{type(error).__name__}: {str(error)[:200]}"
    else:
        parameter = signature.parameters.get(argument)
        if not why_accepted(name, argument, label, parameter):
            return "accepted"
    finally:
        signal.alarm(0)
    changed = [n for n, was in before.items() if was != state(given[n])]
    return f"changes {changed}" if changed else None


def names(message, argument, signature, label, other):
    """Whether the message begins with the argument's name, or that of one it does not go with."""

    def begins(name):
        return message.startswith((f"{name}:", f"{name} ", f"{name},", f"{name}["))

    if begins(argument) or (other and begins(other)):
        return True
    tensor = label.startswith(("itself", "tensor"))
    return (tensor or argument in message) and any(map(begins, signature.parameters))


def of_model(error):
    """Whether a model, called by us, raised it: that passes through as it is.

    So does a value in a model's logits that is no number, which all penalties refuse.
    """
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = next((i for i, name in enumerate(frames) if "/robustcore/" in name), len(frames))
    modules = [i for i, name in enumerate(frames) if name.endswith("torch/nn/modules/module.py")]
    return any(i > ours for i in modules) or str(error).startswith("logits: NaN")


def out_of_memory(error, label):
    """Whether that much was asked for, and torch or NumPy said that there is not so much."""
    wanted = label.endswith(("rows", "elements", "2**31"))
    says = ("can't allocate memory", "aoti_torch_empty_strided", "torch_call_dispatcher")
    return wanted and (isinstance(error, MemoryError) or any(s in str(error) for s in says))


def state(value):
    """Something that changes with the value: version, shape and layout of a tensor."""
    if not isinstance(value, torch.Tensor):
        return repr(value) if isinstance(value, (list, dict, set)) else None
    if value.is_nested or value.layout != torch.strided or value.is_inference():
        return value.layout
    return value._version, value.dtype, value.shape, value.stride(), value.requires_grad
