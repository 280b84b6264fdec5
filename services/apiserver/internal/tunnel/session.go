package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// MaxData is the largest payload of a frame, in bytes.
const MaxData = 32 << 10

// Session is an open session. Recv may be called by one goroutine at a time, the other methods
// by any number.
type Session struct {
	stream frames
	sendMu sync.Mutex

	once  sync.Once
	done  chan struct{}
	cause error // why done was closed
}

// frames is the stream that carries a session.
type frames interface {
	Send(*nodev1.SessionResponse) error
	Recv() (*nodev1.SessionRequest, error)
}

// Session is called by a node to open a session that it was asked for.
func (s *Server) Session(stream nodev1.TunnelService_SessionServer) error {
	ctx := stream.Context()
	node, err := nodeName(ctx)
	if err != nil {
		return err
	}
	timer := time.NewTimer(s.cfg.OpenTimeout)
	defer timer.Stop()
	var o *opening
	select {
	case first := <-receive(stream.Recv):
		if first.err != nil {
			return first.err
		}
		if o = s.take(first.value.GetSessionId(), node); o == nil {
			return grpcstatus.Error(codes.NotFound, "no session with this id is waiting to be opened")
		}
	case <-timer.C:
		return grpcstatus.Error(codes.DeadlineExceeded, "no session id arrived in time")
	case <-ctx.Done():
		return ctx.Err()
	}
	defer s.release(node)
	rights, err := s.hold(ctx, node)
	if err != nil {
		o.failed <- fmt.Errorf("node %s: %w", node, ErrGone)
		return err
	}
	defer rights.release()
	session := &Session{stream: stream, done: make(chan struct{})}
	defer session.end(ErrEnded)
	o.opened <- session
	for {
		select {
		case <-session.done:
			return nil
		case <-rights.tick.C:
			// After the certificate has expired, a control stream with a newer one keeps the
			// sessions open.
			if rights.over() && s.Connected(node) {
				continue
			}
			if err := rights.check(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends the session on both sides. It may be called more than once.
func (s *Session) Close() { s.end(context.Canceled) }

// end closes done. Only the first cause counts.
func (s *Session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.done)
	})
}

// Recv waits for the node's next frame. It fails after Close or when the node has ended the
// session; io.EOF means that the node ended it without an Exit.
func (s *Session) Recv() (*nodev1.SessionRequest, error) { return s.stream.Recv() }

// Send sends p on a channel, in frames of at most MaxData bytes.
func (s *Session) Send(channel nodev1.Channel, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), MaxData)
		data := &nodev1.Data{Channel: channel, Payload: p[:n]}
		if err := s.send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_Data{Data: data}}); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// CloseChannel announces that a channel has no more data.
func (s *Session) CloseChannel(channel nodev1.Channel) error {
	return s.send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_CloseChannel{CloseChannel: channel}})
}

// Resize announces a new size of the terminal, in characters.
func (s *Session) Resize(width, height uint16) error {
	size := &nodev1.Resize{Width: uint32(width), Height: uint32(height)}
	return s.send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_Resize{Resize: size}})
}

func (s *Session) send(m *nodev1.SessionResponse) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	select {
	case <-s.done:
		return s.cause
	default:
		return s.stream.Send(m)
	}
}

// ExitError is the error of a command whose exit code is not 0.
type ExitError struct{ Code int32 }

func (e *ExitError) Error() string {
	return fmt.Sprintf("command terminated with exit code %d", e.Code)
}

// exitError converts an Exit to nil, an *ExitError or an *apierrors.StatusError.
func exitError(exit *nodev1.Exit) error {
	if raw := exit.GetStatus(); len(raw) > 0 {
		var st metav1.Status
		if err := unmarshal(&st, raw); err != nil {
			return apierrors.NewInternalError(fmt.Errorf("cannot decode the node's status: %w", err))
		}
		if st.Status != metav1.StatusSuccess {
			return &apierrors.StatusError{ErrStatus: st}
		}
	}
	if exit.GetCode() != 0 {
		return &ExitError{Code: exit.GetCode()}
	}
	return nil
}

// ErrEnded means that the node ended the session without an Exit.
var ErrEnded = errors.New("the node ended the session")

// Output copies what the node sends to the writers until its Exit arrives, and returns what
// that says: nil, an *ExitError or an *apierrors.StatusError. Data for a nil writer is
// discarded. After a write has failed, the session cannot be used any more.
func (s *Session) Output(stdout, stderr io.Writer) error {
	for {
		m, err := s.Recv()
		if err != nil {
			select {
			case <-s.done:
				return s.cause
			default:
			}
			if errors.Is(err, io.EOF) {
				return ErrEnded
			}
			return fmt.Errorf("%w: %w", ErrEnded, err)
		}
		switch m := m.GetMessage().(type) {
		case *nodev1.SessionRequest_Data:
			w := stdout
			if m.Data.GetChannel() == nodev1.Channel_CHANNEL_STDERR {
				w = stderr
			}
			if w == nil {
				continue
			}
			if _, err := w.Write(m.Data.GetPayload()); err != nil {
				return fmt.Errorf("write to the client: %w", err)
			}
		case *nodev1.SessionRequest_CloseChannel:
			w := stdout
			if m.CloseChannel == nodev1.Channel_CHANNEL_STDERR {
				w = stderr
			}
			if c, ok := w.(io.Closer); ok {
				_ = c.Close()
			}
		case *nodev1.SessionRequest_Exit:
			return exitError(m.Exit)
		}
	}
}

// Input copies r to a channel, and closes the channel at r's end.
func (s *Session) Input(channel nodev1.Channel, r io.Reader) error {
	buf := make([]byte, MaxData)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			// The transport may use the bytes after Send has returned: copy them.
			if err := s.Send(channel, append([]byte(nil), buf[:n]...)); err != nil {
				return err
			}
		}
		if err != nil {
			return s.CloseChannel(channel)
		}
	}
}
