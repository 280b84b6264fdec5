package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"

	podv1 "keelson.dev/proto/keelson/pod/v1"
)

// podData is the size in bytes of the largest piece of data in a message.
const podData = 32 << 10

// Logs returns the log of a container of a pod, as o selects it; nil selects all of it. The caller
// closes it. Nothing is awaited: a failure, such as a missing pod, is the error of Read. A log that
// is complete ends with io.EOF. Permission: get on pods/log.
func (c *Client) Logs(ctx context.Context, namespace, pod string, o *corev1.PodLogOptions) (io.ReadCloser, error) {
	if o == nil {
		o = &corev1.PodLogOptions{}
	}
	r := &podv1.LogsRequest{
		Container:    &podv1.ContainerRef{Namespace: namespace, Pod: pod, Container: o.Container},
		Follow:       o.Follow,
		Previous:     o.Previous,
		SinceSeconds: o.SinceSeconds,
		Timestamps:   o.Timestamps,
		TailLines:    o.TailLines,
		LimitBytes:   o.LimitBytes,
	}
	what := "logs of pod " + namespace + "/" + pod
	if o.SinceTime != nil {
		r.SinceTime = timestamppb.New(o.SinceTime.Time)
	}
	if o.Stream != nil {
		switch *o.Stream {
		case "", corev1.LogStreamAll:
		case corev1.LogStreamStdout:
			r.Stream = podv1.LogsRequest_STREAM_STDOUT
		case corev1.LogStreamStderr:
			r.Stream = podv1.LogsRequest_STREAM_STDERR
		default:
			return nil, fmt.Errorf("%s: unknown stream %q: want All, Stdout or Stderr", what, *o.Stream)
		}
	}
	if o.InsecureSkipTLSVerifyBackend {
		return nil, fmt.Errorf("%s: insecureSkipTLSVerifyBackend is not supported: apiservers do not connect to nodes", what)
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := podv1.NewPodServiceClient(c.conn).Logs(ctx, r)
	if err != nil {
		cancel()
		return nil, fromRPC(ctx, what, err)
	}
	return &logReader{ctx: ctx, stream: stream, cancel: cancel, what: what}, nil
}

// logReader reads a log. Close may be called during Read.
type logReader struct {
	ctx    context.Context
	stream podv1.PodService_LogsClient
	cancel context.CancelFunc
	what   string
	rest   []byte
	err    error
}

// Read implements io.Reader.
func (l *logReader) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		m, err := l.stream.Recv()
		if err != nil {
			l.err = fromRPC(l.ctx, l.what, err)
			l.cancel()
		}
		l.rest = m.GetData()
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (l *logReader) Close() error {
	l.cancel()
	return nil
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Columns, Rows uint16 }

// Streams are the local ends of an Exec or Attach.
type Streams struct {
	// Stdin is sent, and then its end. If it is nil, there is no standard input. A Read may be
	// in progress when Exec or Attach returns, and then takes what it reads.
	Stdin io.Reader
	// Stdout and Stderr receive the output. It is discarded if they are nil. With a terminal,
	// all output is Stdout's. An error of Write ends the call.
	Stdout, Stderr io.Writer
	// TTY is true if there is a terminal.
	TTY bool
	// Resize delivers the sizes of the terminal, the first of them at the beginning. It is read
	// until it is closed or the call returns. It may be nil.
	Resize <-chan TerminalSize
}

// ExecOptions describes a command.
type ExecOptions struct {
	// Container is the name of the container. It may be empty if the pod has only one.
	Container string
	// Command is the command and its arguments, at least one. No shell interprets them.
	Command []string
	Streams
}

// ExitError is the error of a command that ended with an exit code other than 0.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string {
	return fmt.Sprintf("command terminated with exit code %d", e.Code)
}

// Exec runs a command in a running container and returns when it has ended. If its exit code is not
// 0, the error is an [*ExitError]. When ctx ends, so does the command's standard input, but the
// command is not killed, as in Kubernetes. After another error, the command may have run. Permission: create on pods/exec.
func (c *Client) Exec(ctx context.Context, namespace, pod string, o ExecOptions) error {
	what := "exec in pod " + namespace + "/" + pod
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := podv1.NewPodServiceClient(c.conn).Exec(ctx)
	if err != nil {
		return fromRPC(ctx, what, err)
	}
	start := &podv1.ExecStart{
		Container: &podv1.ContainerRef{Namespace: namespace, Pod: pod, Container: o.Container},
		Command:   o.Command, Stdin: o.Stdin != nil, Tty: o.TTY,
	}
	// If a message cannot be sent, Recv returns why.
	_ = stream.Send(&podv1.ExecRequest{Message: &podv1.ExecRequest_Start{Start: start}})
	in := &terminalInput{
		data: func(p []byte) error {
			return stream.Send(&podv1.ExecRequest{Message: &podv1.ExecRequest_Stdin{Stdin: p}})
		},
		end: func() error {
			return stream.Send(&podv1.ExecRequest{Message: &podv1.ExecRequest_StdinEnd{StdinEnd: &podv1.StdinEnd{}}})
		},
		resize: func(s *podv1.TerminalSize) error {
			return stream.Send(&podv1.ExecRequest{Message: &podv1.ExecRequest_Resize{Resize: s}})
		},
		fail: cancel,
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: the stream ended without an exit code", what)
		}
		if err != nil {
			return in.cause(ctx, fromRPC(ctx, what, err))
		}
		switch m := m.GetMessage().(type) {
		case *podv1.ExecResponse_Started:
			in.run(ctx, &o.Streams)
		case *podv1.ExecResponse_Stdout:
			err = write(o.Stdout, m.Stdout)
		case *podv1.ExecResponse_Stderr:
			err = write(o.Stderr, m.Stderr)
		case *podv1.ExecResponse_Exit:
			if code := m.Exit.GetCode(); code != 0 {
				return &ExitError{Code: int(code)}
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: write the output: %w", what, err)
		}
	}
}

// AttachOptions describes what to attach to.
type AttachOptions struct {
	// Container is the name of the container. It may be empty if the pod has only one.
	Container string
	// Streams must agree with the container's spec: TTY is spec.containers.tty, and Stdin needs
	// spec.containers.stdin.
	Streams
}

// Attach connects to the first process of a running container and returns when it has ended. When
// ctx ends, the process continues. Permission: create on pods/attach.
func (c *Client) Attach(ctx context.Context, namespace, pod string, o AttachOptions) error {
	what := "attach to pod " + namespace + "/" + pod
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := podv1.NewPodServiceClient(c.conn).Attach(ctx)
	if err != nil {
		return fromRPC(ctx, what, err)
	}
	start := &podv1.AttachStart{
		Container: &podv1.ContainerRef{Namespace: namespace, Pod: pod, Container: o.Container}, Stdin: o.Stdin != nil, Tty: o.TTY,
	}
	// If a message cannot be sent, Recv returns why.
	_ = stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_Start{Start: start}})
	in := &terminalInput{
		data: func(p []byte) error {
			return stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_Stdin{Stdin: p}})
		},
		end: func() error {
			return stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_StdinEnd{StdinEnd: &podv1.StdinEnd{}}})
		},
		resize: func(s *podv1.TerminalSize) error {
			return stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_Resize{Resize: s}})
		},
		fail: cancel,
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return in.cause(ctx, fromRPC(ctx, what, err))
		}
		switch m := m.GetMessage().(type) {
		case *podv1.AttachResponse_Started:
			in.run(ctx, &o.Streams)
		case *podv1.AttachResponse_Stdout:
			err = write(o.Stdout, m.Stdout)
		case *podv1.AttachResponse_Stderr:
			err = write(o.Stderr, m.Stderr)
		}
		if err != nil {
			return fmt.Errorf("%s: write the output: %w", what, err)
		}
	}
}

func write(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(p)
	return err
}

// terminalInput sends the standard input and the sizes of the terminal, once the session is open.
type terminalInput struct {
	mu     sync.Mutex // of the functions that send
	data   func([]byte) error
	end    func() error
	resize func(*podv1.TerminalSize) error
	fail   context.CancelCauseFunc
}

// inputError is an error of the local standard input.
type inputError struct{ error }

// cause returns the error of the standard input if it has ended the call, and otherwise err.
func (t *terminalInput) cause(ctx context.Context, err error) error {
	var local inputError
	if errors.As(context.Cause(ctx), &local) {
		return fmt.Errorf("read the standard input: %w", local.error)
	}
	return err
}

// run starts sending. Its goroutines end with ctx; a Read of Stdin ends by itself.
func (t *terminalInput) run(ctx context.Context, s *Streams) {
	if s.Stdin != nil {
		go t.sendInput(ctx, s.Stdin)
	}
	if s.Resize != nil {
		go t.sendSizes(ctx, s.Resize)
	}
}

func (t *terminalInput) send(what func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return what()
}

func (t *terminalInput) sendInput(ctx context.Context, in io.Reader) {
	buf := make([]byte, podData)
	for ctx.Err() == nil {
		n, err := in.Read(buf)
		if n > 0 && t.send(func() error { return t.data(buf[:n]) }) != nil {
			return // Recv returns why
		}
		if errors.Is(err, io.EOF) {
			_ = t.send(t.end)
			return
		}
		if err != nil {
			t.fail(inputError{err})
			return
		}
	}
}

func (t *terminalInput) sendSizes(ctx context.Context, sizes <-chan TerminalSize) {
	for {
		select {
		case s, ok := <-sizes:
			if !ok || t.send(func() error { return t.resize(&podv1.TerminalSize{Columns: uint32(s.Columns), Rows: uint32(s.Rows)}) }) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
