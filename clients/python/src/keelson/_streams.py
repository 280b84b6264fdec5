"""Logs, exec, attach and port-forward: streams with the containers of pods."""
from __future__ import annotations

import datetime
import queue
import socket
import threading
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Optional, Sequence, Union

import grpc
from google.protobuf.message import Message

from keelson import errors
from keelson._connection import Connection
from keelson.pod.v1 import pod_pb2 as rpc

SERVICE = "/keelson.pod.v1.PodService/"
CHUNK = 32 << 10
MOST_CONNECTIONS = 64


class Streams:
    """The part of the client that talks to containers."""

    connection: Connection

    def logs(
        self, pod: str, namespace: str, *, container: str = "", follow: bool = False, previous: bool = False, since_seconds: Optional[int] = None,
        since_time: Optional[datetime.datetime] = None, timestamps: bool = False, tail_lines: Optional[int] = None, limit_bytes: Optional[int] = None,
    ) -> Iterator[bytes]:
        """Yields the log of a container, line by line, each with its newline."""
        request = rpc.LogsRequest(
            container=rpc.ContainerRef(namespace=namespace, pod=pod, container=container), follow=follow, previous=previous, timestamps=timestamps)
        if since_seconds is not None:
            request.since_seconds = since_seconds
        if since_time is not None:
            request.since_time.FromDatetime(since_time.astimezone(datetime.timezone.utc).replace(tzinfo=None))
        if tail_lines is not None:
            request.tail_lines = tail_lines
        if limit_bytes is not None:
            request.limit_bytes = limit_bytes
        call = self.connection.stream(SERVICE + "Logs", request, rpc.LogsResponse)
        rest = b""
        try:
            for chunk in call:
                *lines, rest = (rest + chunk.data).split(b"\n")
                for line in lines:
                    yield line + b"\n"
            if rest:
                yield rest
        except grpc.RpcError as err:
            raise errors.from_rpc(f"logs of {namespace}/{pod}", err) from None
        finally:
            call.cancel()

    def exec(self, pod: str, namespace: str, command: Sequence[str], *, container: str = "", stdin: bool = False, tty: bool = False) -> "Session":
        """Runs a command in a container and returns a session with it. See run for commands without a dialogue."""
        start = rpc.ExecStart(container=rpc.ContainerRef(namespace=namespace, pod=pod, container=container), command=command, stdin=stdin, tty=tty)
        return Session(self.connection, f"exec in {namespace}/{pod}", "Exec", rpc.ExecRequest(start=start), rpc.ExecResponse)

    def attach(self, pod: str, namespace: str, *, container: str = "", stdin: bool = False, tty: bool = False) -> "Session":
        """Connects to the first process of a container."""
        start = rpc.AttachStart(container=rpc.ContainerRef(namespace=namespace, pod=pod, container=container), stdin=stdin, tty=tty)
        return Session(self.connection, f"attach to {namespace}/{pod}", "Attach", rpc.AttachRequest(start=start), rpc.AttachResponse)

    def run(self, pod: str, namespace: str, command: Sequence[str], *, container: str = "", input: Optional[bytes] = None) -> "Completed":
        """Runs a command to its end and returns its exit code and output."""
        with self.exec(pod, namespace, command, container=container, stdin=input is not None) as session:
            if input is not None:
                # The command may write before it has read all.
                threading.Thread(target=session.feed, args=(input,), daemon=True).start()
            out: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
            for name, data in session:
                out[name] += data
        return Completed(session.exit_code or 0, bytes(out["stdout"]), bytes(out["stderr"]))

    def port_forward(self, pod: str, namespace: str, port: int, *, local_port: int = 0) -> "PortForward":
        """Listens on a port of 127.0.0.1, by default a free one, and connects whoever connects there to a port of the pod."""
        return PortForward(self, pod, namespace, port, local_port)

    def dial(self, pod: str, namespace: str, port: int) -> "Session":
        """Opens one TCP connection to a port of a pod. The session yields ("data", bytes)."""
        start = rpc.PortForwardStart(namespace=namespace, pod=pod, port=port)
        return Session(
            self.connection, f"connect to port {port} of {namespace}/{pod}", "PortForward", rpc.PortForwardRequest(start=start), rpc.PortForwardResponse)


@dataclass(frozen=True)
class Completed:
    """What a command did."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Session:
    """A stream with a container: iterate over it for ("stdout" | "stderr" | "data", bytes).

    Close it, or use it in a with statement; closing kills a command of exec.
    """

    def __init__(self, connection: Connection, what: str, method: str, start: Message, answer: Any) -> None:
        self._what = what
        self._request = type(start)
        self._input = "data" if method == "PortForward" else "stdin"
        # What waits to be sent: a writer waits while it is full.
        self._out: "queue.Queue[Optional[Message]]" = queue.Queue(maxsize=8)
        self._out.put(start)
        self._ended = threading.Event()
        self.exit_code: Optional[int] = None  #: of an exec, once the iteration has ended
        self._call = connection.both(SERVICE + method, self._requests(), answer)
        self._call.add_callback(self._ended.set)
        try:
            first = next(self._call)
        except grpc.RpcError as err:
            raise errors.from_rpc(what, err) from None
        except StopIteration:
            raise ValueError(f"{what}: the stream ended before it began") from None
        if first.WhichOneof("message") != "started":
            self.close()
            raise ValueError(f"{what}: the server's first message is not started")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        try:
            for message in self._call:
                which = message.WhichOneof("message")
                if which == "exit":
                    self.exit_code = message.exit.code
                elif which == "data_end":
                    return
                elif which is not None:
                    yield which, getattr(message, which)
        except grpc.RpcError as err:
            raise errors.from_rpc(self._what, err) from None

    def write(self, data: bytes) -> None:
        """Sends data, and waits while the receiver does not read. It raises BrokenPipeError after the end."""
        for i in range(0, len(data), CHUNK):
            self._send(self._request(**{self._input: data[i:i + CHUNK]}))

    def feed(self, data: Union[bytes, Iterable[bytes]]) -> None:
        """Writes all of data and ends the input; it stops quietly if the stream ends first."""
        try:
            for part in (data,) if isinstance(data, bytes) else data:
                self.write(part)
            self.close_stdin()
        except BrokenPipeError:
            pass

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size of the terminal."""
        self._send(self._request(resize=rpc.TerminalSize(columns=columns, rows=rows)))

    def close_stdin(self) -> None:
        """Ends the input. Output continues."""
        self._send(None)

    def close(self) -> None:
        """Ends the stream."""
        self._ended.set()
        self._call.cancel()

    def _send(self, message: Optional[Message]) -> None:
        while not self._ended.is_set():
            try:
                return self._out.put(message, timeout=0.2)
            except queue.Full:
                continue
        raise BrokenPipeError(f"{self._what}: the stream has ended")

    def _requests(self) -> Iterator[Message]:
        while not self._ended.is_set():
            try:
                message = self._out.get(timeout=0.2)
            except queue.Empty:
                continue
            if message is None:
                return
            yield message


class PortForward:
    """A listener on loopback whose connections go to a port of a pod. Close it, or use it in a with statement.

    At most 64 connections are open at once; others wait.
    """

    def __init__(self, client: Streams, pod: str, namespace: str, port: int, local_port: int) -> None:
        self._client, self._pod, self._namespace, self._port = client, pod, namespace, port
        self._listener = socket.create_server(("127.0.0.1", local_port))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]  #: where to connect
        self.last_error: Optional[Exception] = None  #: why the last connection failed
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: set[Union[socket.socket, Session]] = set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "PortForward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening and ends all connections."""
        with self._lock:
            self._closed = True
            open_now = list(self._open)
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        for c in open_now:
            c.close()

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _hold(self, what: Union[socket.socket, Session]) -> bool:
        with self._lock:
            if not self._closed:
                self._open.add(what)
            return not self._closed

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, self._client.dial(self._pod, self._namespace, self._port) as session:
                if not self._hold(connection) or not self._hold(session):
                    return
                sender = threading.Thread(target=self._send, args=(connection, session), daemon=True)
                sender.start()
                for _, data in session:
                    connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                sender.join()
        except Exception as err:  # one connection's failure does not end the others
            self.last_error = err
        finally:
            with self._lock:
                self._open -= {c for c in self._open if c is connection or isinstance(c, Session) and c._ended.is_set()}
            self._slots.release()

    @staticmethod
    def _send(connection: socket.socket, session: Session) -> None:
        try:
            while data := connection.recv(CHUNK):
                session.write(data)
            session.close_stdin()
        except OSError:
            pass
