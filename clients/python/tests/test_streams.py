"""Logs, exec and port-forward against a scripted server."""
from __future__ import annotations

import socket
from typing import Any, Iterator

import fake
import grpc
import keelson
import pytest
from keelson.pod.v1 import pod_pb2 as rpc

from test_calls import connect


def test_logs_come_in_lines() -> None:
    def answer(request: Any, number: int) -> Iterator[Any]:
        for data in (b"on", b"e\ntwo\nth", b"ree"):
            yield rpc.LogsResponse(data=data)

    with fake.Server(Logs=answer) as s, connect(s) as client:
        assert list(client.logs("p", "ns", container="c", tail_lines=0, follow=True)) == [b"one\n", b"two\n", b"three"]
        request = s.calls[0][1]
        assert (request.container.pod, request.container.namespace, request.container.container) == ("p", "ns", "c")
        assert request.follow and request.HasField("tail_lines") and not request.HasField("limit_bytes")


def test_an_error_of_a_log_carries_the_status() -> None:
    def answer(request: Any, number: int) -> Iterator[Any]:
        yield rpc.LogsResponse(data=b"a\n")
        raise fake.Refused(404, "NotFound", grpc.StatusCode.NOT_FOUND)

    with fake.Server(Logs=answer) as s, connect(s) as client:
        log = client.logs("p", "ns")
        assert next(log) == b"a\n"
        with pytest.raises(keelson.NotFound):
            next(log)


def cat(requests: Iterator[Any], number: int) -> Iterator[Any]:
    """Runs a command that copies its input to its output."""
    assert next(requests).start.command == ["cat"]
    yield rpc.ExecResponse(started=rpc.Started())
    for message in requests:
        yield rpc.ExecResponse(stdout=message.stdin)
    yield rpc.ExecResponse(stderr=b"done")
    yield rpc.ExecResponse(exit=rpc.Exit(code=3))


def test_run_returns_exit_code_and_output() -> None:
    data = bytes(range(256)) * 1024  # more than one message
    with fake.Server(Exec=cat) as s, connect(s) as client:
        done = client.run("p", "ns", ["cat"], input=data)
        assert (done.exit_code, done.stdout == data, done.stderr) == (3, True, b"done")


def test_exec_that_is_refused() -> None:
    def refuse(requests: Iterator[Any], number: int) -> Iterator[Any]:
        raise fake.Refused(403, "Forbidden", grpc.StatusCode.PERMISSION_DENIED)

    with fake.Server(Exec=refuse) as s, connect(s) as client, pytest.raises(keelson.Forbidden):
        client.exec("p", "ns", ["cat"])


def test_write_after_the_end_is_a_broken_pipe() -> None:
    def answer(requests: Iterator[Any], number: int) -> Iterator[Any]:
        yield rpc.ExecResponse(started=rpc.Started())
        yield rpc.ExecResponse(exit=rpc.Exit(code=0))

    with fake.Server(Exec=answer) as s, connect(s) as client, client.exec("p", "ns", ["true"], stdin=True) as session:
        assert list(session) == [] and session.exit_code == 0
        with pytest.raises(BrokenPipeError):
            for _ in range(100):
                session.write(b"x")


def test_port_forward_carries_both_directions() -> None:
    def echo(requests: Iterator[Any], number: int) -> Iterator[Any]:
        assert next(requests).start.port == 80
        yield rpc.PortForwardResponse(started=rpc.Started())
        for message in requests:
            yield rpc.PortForwardResponse(data=message.data)
        yield rpc.PortForwardResponse(data=b"!")
        yield rpc.PortForwardResponse(data_end=rpc.DataEnd())

    with fake.Server(PortForward=echo) as s, connect(s) as client, client.port_forward("p", "ns", 80) as forward:
        for _ in range(2):
            with socket.create_connection(forward.address, timeout=30) as c:
                c.sendall(b"hello")
                c.shutdown(socket.SHUT_WR)
                got = b""
                while part := c.recv(100):
                    got += part
                assert got == b"hello!"
    with pytest.raises(OSError):
        socket.create_connection(forward.address, timeout=30)
