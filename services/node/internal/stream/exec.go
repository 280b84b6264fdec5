package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

// exec runs a command in a container and relays its streams.
func (b *Backend) exec(ctx context.Context, req *nodev1.Exec, s *Session) error {
	_, _, c, err := b.container(ctx, req.GetPod())
	if err != nil {
		return err
	}
	if c == nil || c.State != cri.StateRunning {
		return notRunning(req.GetPod())
	}
	address, err := b.Runtime.ExecURL(ctx, &runtimev1.ExecRequest{
		ContainerId: c.ID, Cmd: req.GetCommand(), Tty: req.GetTty(),
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr() && !req.GetTty(),
	})
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	return run(ctx, address, s, req.GetStdin(), req.GetStdout(), req.GetStderr() && !req.GetTty(), req.GetTty())
}

// attach connects to a container's main process.
func (b *Backend) attach(ctx context.Context, req *nodev1.Attach, s *Session) error {
	p, _, c, err := b.container(ctx, req.GetPod())
	if err != nil {
		return err
	}
	if c == nil || c.State != cri.StateRunning {
		return notRunning(req.GetPod())
	}
	spec, _ := pod.Find(p, req.GetPod().GetContainer())
	tty := spec.TTY
	address, err := b.Runtime.AttachURL(ctx, &runtimev1.AttachRequest{
		ContainerId: c.ID, Tty: tty,
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr() && !tty,
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return run(ctx, address, s, req.GetStdin(), req.GetStdout(), req.GetStderr() && !tty, tty)
}

func notRunning(ref *nodev1.PodRef) error {
	return apierrors.NewBadRequest(fmt.Sprintf("container not found (%q): it is not running", ref.GetContainer()))
}

// run connects a session with the streams that the runtime serves at address.
func run(ctx context.Context, address string, s *Session, stdin, stdout, stderr, tty bool) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("parse the runtime's streaming address: %w", err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}, http.MethodPost, u)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := remotecommand.StreamOptions{Tty: tty}
	input, feed := io.Pipe()
	defer feed.Close()
	sizes := &sizeQueue{ctx: ctx, sizes: make(chan remotecommand.TerminalSize, 4)}
	if stdin {
		o.Stdin = input
	}
	if stdout {
		o.Stdout = s.Writer(nodev1.Channel_CHANNEL_STDOUT)
	}
	if stderr {
		o.Stderr = s.Writer(nodev1.Channel_CHANNEL_STDERR)
	}
	if tty {
		o.TerminalSizeQueue = sizes
	}
	go func() {
		if err := receive(ctx, s, feed, sizes); err != nil {
			cancel() // the apiserver is gone
		}
	}()
	err = executor.StreamWithContext(ctx, o)
	var code exec.CodeExitError
	if errors.As(err, &code) {
		return &ExitError{Code: int32(code.Code)}
	}
	return err
}

// receive passes on a command's input and its terminal size. It returns nil only if the
// session ended cleanly.
func receive(ctx context.Context, s *Session, stdin *io.PipeWriter, sizes *sizeQueue) error {
	defer stdin.Close()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m := m.GetMessage().(type) {
		case *nodev1.SessionResponse_Data:
			// A command that has stopped reading does not end the session.
			_, _ = stdin.Write(m.Data.GetPayload())
		case *nodev1.SessionResponse_CloseChannel:
			_ = stdin.Close()
		case *nodev1.SessionResponse_Resize:
			sizes.put(remotecommand.TerminalSize{Width: uint16(m.Resize.GetWidth()), Height: uint16(m.Resize.GetHeight())})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// sizeQueue queues terminal sizes. When it is full, the oldest are dropped.
type sizeQueue struct {
	ctx   context.Context
	sizes chan remotecommand.TerminalSize
}

func (q *sizeQueue) put(s remotecommand.TerminalSize) {
	for {
		select {
		case q.sizes <- s:
			return
		default:
		}
		select {
		case <-q.sizes: // drop the oldest
		default:
		}
	}
}

// Next implements remotecommand.TerminalSizeQueue.
func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	select {
	case s := <-q.sizes:
		return &s
	case <-q.ctx.Done():
		return nil
	}
}
