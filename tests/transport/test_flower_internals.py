"""What is relied on of Flower's inside, one by one: what turns red first under a new version."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import logging
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from pfl_flower.support.errors import ConfigError
from pfl_flower.transport import flower_internals as inside
from pfl_flower.transport.inprocess import InProcessGrid
from strategies.parameter_server import ParameterServer
from tests.test_imports import GRAPH, MODULES

INSIDE = {"pfl_flower.transport.flower_internals", "pfl_flower.transport.pulling"}
PROMISED = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
"""What Flower documents as its own interface."""


@pytest.mark.parametrize("name", MODULES)
def test_no_other_module_looks_inside(name: str) -> None:
    used = {target for target in GRAPH[name] if target.split(".")[0] == "flwr"}
    assert used <= PROMISED or name in INSIDE
    written = [
        node
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "__dict__"
    ]
    assert not written or name in INSIDE


def test_what_is_listed_is_what_others_use() -> None:
    """And each of it stands in this file."""
    here = inspect.getsource(sys.modules[__name__])
    assert [name for name in inside.__all__ if f"inside.{name}" not in here] == []


def test_every_error_of_flowers_is_one_that_another_try_mends_or_not() -> None:
    """A new code wants a decision: is the question asked again, or is the answer final?"""
    named = {name: code for name, code in vars(ErrorCode).items() if name.isupper()}
    final = {
        "LOAD_CLIENT_APP_EXCEPTION",
        "CLIENT_APP_RAISED_EXCEPTION",
        "MOD_FAILED_PRECONDITION",
        "INVALID_FAB",
    }
    mended = {
        "UNKNOWN",
        "CLIENT_APP_CRASHED",
        "NODE_UNAVAILABLE",
        "MESSAGE_UNAVAILABLE",
        "REPLY_MESSAGE_UNAVAILABLE",
    }
    assert named.keys() == final | mended
    assert {named[name] for name in final} == inside.APP_ERRORS


def message(value: object = 1) -> Message:
    inside.identify_process(1)
    content = RecordDict({"config": ConfigRecord({"a": value, "list": [1, 2]})})  # type: ignore[dict-item]
    return Message(content, 7, MessageType.TRAIN, ttl=60.0, group_id="3")


def test_a_refusal_is_not_logged_again_by_flowers_processes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They log what an app raises by Flower's own logger, with ``exc_info``."""
    for module in ("flwr.simulation.app", "flwr.superlink.runtime.run_serverapp"):
        source = inspect.getsource(importlib.import_module(module))
        assert 'log(ERROR, "%s raised an exception", exc_entity, exc_info=ex)' in source
    inside.log_refusals_once()
    logger = logging.getLogger("flwr")
    logger.propagate = True
    try:
        for error in (ConfigError("lam = -1"), KeyError("a bug")):
            logger.error("%s raised an exception", "Simulation", exc_info=error)
        inside.log(logging.ERROR, "said")
    finally:
        logger.propagate = False
    said = [record.message for record in caplog.records]
    assert said == ["Simulation raised an exception", "said"]


CODE = """
from flwr.app import Message, MessageType, RecordDict
from pfl_flower.transport import flower_internals as inside
try:
    Message(RecordDict(), 7, MessageType.TRAIN)
except RuntimeError:
    print("no identity")
inside.identify_process(5)
metadata = Message(RecordDict(), 7, MessageType.TRAIN).metadata
print(metadata.run_id, metadata.src_node_id == inside.SUPERLINK_NODE_ID)
inside.identify_process(6)
print(Message(RecordDict(), 7, MessageType.TRAIN).metadata.run_id)
"""


def test_a_process_has_an_identity_and_keeps_the_one_it_has() -> None:
    """inside.identify_process; if Flower no longer asks for one, the function can go."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:3] == ["no identity", "5 True", "5"]


def test_a_run_that_no_superlink_keeps() -> None:
    run = inside.empty_run(5)
    assert isinstance(run, inside.Run)
    assert run.run_id == 5
    annotation = inspect.signature(Grid.set_run).parameters["run"].annotation
    assert annotation in (inside.Run, "Run")


def test_error_codes() -> None:
    """As the strategies read them in a reply; Flower counts them in its protocol."""
    assert inside.NODE_UNAVAILABLE == 5
    assert inside.CLIENT_APP_RAISED == 2
    assert Error(inside.CLIENT_APP_RAISED, "why").code == 2


def test_a_message_gets_its_number_and_its_reply_names_it() -> None:
    asked = inside.number(message(), "m-1")
    assert asked.metadata.message_id == "m-1"
    reply = Message(RecordDict(), reply_to=asked)
    assert reply.metadata.reply_to_message_id == "m-1"
    assert reply.metadata.dst_node_id == inside.SUPERLINK_NODE_ID


def context() -> Context:
    state = RecordDict({"a": ConfigRecord({"b": 1})})
    return Context(run_id=1, node_id=2, node_config={"c": 3}, state=state, run_config={"d": 4})


THINGS = {
    "an array": Array(np.arange(3.0)),
    "an array record": ArrayRecord({"a": Array(np.arange(3.0))}),
    "a config record": ConfigRecord({"a": [1, 2], "b": "text", "c": b"bytes", "d": True}),
    "a metric record": MetricRecord({"a": 0.5, "b": [1, 2]}),
    "records": RecordDict({"a": ConfigRecord({"b": 1})}),
    "a context": context(),
    "an error": Error(2, "why"),
    "metadata": message().metadata,
}


@pytest.mark.parametrize("name", THINGS)
def test_a_twin_is_what_copy_makes(name: str) -> None:
    thing = THINGS[name]
    twin, copied = inside.twin(thing), copy.copy(thing)
    assert type(twin) is type(thing)
    assert twin is not thing
    assert vars(twin) == vars(thing)
    assert repr(twin) == repr(copied) == repr(thing)
    assert getattr(type(thing), "__slots__", ()) == ()


RECORDS = [name for name in THINGS if "record" in name]


@pytest.mark.parametrize("name", RECORDS)
def test_entries_are_a_dict_and_a_record_that_holds_them_is_as_if_they_were_set(name: str) -> None:
    record = THINGS[name]
    entries = inside.entries(record)
    assert type(entries) is dict
    assert entries == dict(record.items())
    assert list(entries) == list(record)
    one_by_one = type(record)()
    for key, entry in entries.items():
        inside.put(one_by_one, key, entry)
    assert one_by_one == record
    empty = type(record)()
    assert empty.object_id != record.object_id
    made = inside.holding(empty, dict(entries))
    assert type(made) is type(record)
    assert made == record
    assert len(empty) == 0
    assert made.object_id == record.object_id
    with pytest.raises(TypeError):
        made["wrong"] = object()


def test_an_assembled_message_has_the_parts_it_was_given() -> None:
    asked = inside.number(message(), "m-1")
    content, other = RecordDict({"x": ConfigRecord({})}), inside.number(message(), "m-2").metadata
    made = inside.assembled(asked, other, content=content)
    assert type(made) is Message
    assert vars(made).keys() == vars(asked).keys()
    assert made.has_content() and not made.has_error()
    assert made.content is content
    assert made.metadata is other
    assert asked.content is not content
    failed = inside.assembled(asked, other, error=Error(2, "why"))
    assert failed.has_error() and not failed.has_content()
    assert failed.error.reason == "why"
    again = Message(Error(2, "why"), reply_to=asked)
    assert vars(again).keys() == vars(failed).keys()


def test_a_new_array_is_flowers_own() -> None:
    theirs = Array(np.arange(6.0).reshape(2, 3))
    ours = inside.new_array(theirs.dtype, tuple(theirs.shape), theirs.data)
    assert ours == theirs
    assert vars(ours) == {field.name: getattr(theirs, field.name) for field in fields(Array)}
    assert ours.object_id == theirs.object_id
    assert np.array_equal(ours.numpy(), theirs.numpy())


def test_an_array_of_another_kind_has_flowers_fields_and_its_own() -> None:
    class Own(Array):
        """One with a field more."""

    made = inside.array_of(Own, "float64", (2,), extra=3)
    assert isinstance(made, Own) and vars(made) == {
        "dtype": "float64",
        "shape": (2,),
        "stype": "numpy.ndarray",
        "extra": 3,
    }
    assert vars(inside.twin(made)) == vars(made)


def test_flowers_log_is_the_logger_that_an_engine_turns_to_a_file() -> None:
    """``support.console.logged_to`` names it, and cannot import it."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear()
    logging.getLogger("flwr").addHandler(ear)
    try:
        inside.log(logging.INFO, "round %d", 3)
    finally:
        logging.getLogger("flwr").removeHandler(ear)
    assert heard == ["round 3"]


def test_the_grid_has_what_flowers_asks_for() -> None:
    assert not InProcessGrid.__abstractmethods__
    for name, theirs in inspect.getmembers(Grid, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(InProcessGrid, name)).parameters
            assert list(ours) == list(inspect.signature(theirs).parameters), name


def test_the_strategy_has_what_flowers_loop_asks_for() -> None:
    """Its ``start`` is Flower's with a roster before it: same arguments, same result."""
    assert not ParameterServer.__abstractmethods__
    assert set(Strategy.__abstractmethods__) == {
        "configure_train",
        "aggregate_train",
        "configure_evaluate",
        "aggregate_evaluate",
        "summary",
    }
    for name in [*Strategy.__abstractmethods__, "start"]:
        ours = inspect.signature(getattr(ParameterServer, name)).parameters
        assert list(ours) == list(inspect.signature(getattr(Strategy, name)).parameters), name
    assert {field.name for field in fields(Result)} == {
        "arrays",
        "train_metrics_clientapp",
        "evaluate_metrics_clientapp",
        "evaluate_metrics_serverapp",
    }
