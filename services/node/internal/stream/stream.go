// Package stream is the node's side of the tunnel. It keeps a connection open to every
// apiserver and serves their requests (logs, exec, attach, port-forward and dials) on
// streams that the node opens, so a node needs no inbound port.
//
// It must never serve a pod that is not this node's, and never keep a session alive that
// its apiserver has abandoned.
package stream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/internal/telemetry"
)

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
	// maxSessions is how many sessions one apiserver may have open.
	maxSessions = 256
	// maxData is the maximum payload of a frame in bytes.
	maxData = 32 << 10
	// lookEvery is the interval at which the certificate is checked for renewal.
	lookEvery = 10 * time.Second
)

// Config configures Run.
type Config struct {
	Node      string
	Endpoints []string
	// Dial connects to one apiserver.
	Dial func(endpoint string) (*grpc.ClientConn, error)
	// Certificate returns the certificate that Dial currently presents. The field is nil if
	// the certificate never changes.
	Certificate func() *x509.Certificate
	// Handler serves sessions.
	Handler Handler
	// Welcome is called with the heartbeat interval that an apiserver expects. It may be
	// nil.
	Welcome func(time.Duration)

	lookEvery time.Duration // overridden by tests
}

// Handler serves sessions. The error of Serve ends the session: it is an *ExitError, an API
// status, or any other error, which is reported as an internal error.
type Handler interface {
	// Check returns an error to refuse a session before it is opened.
	Check(open *nodev1.Open) error
	// Serve serves a session until it ends. ctx ends when the apiserver ends the session.
	Serve(ctx context.Context, open *nodev1.Open, s *Session) error
}

// ExitError is a command's non-zero exit code.
type ExitError struct{ Code int32 }

func (e *ExitError) Error() string {
	return fmt.Sprintf("command terminated with exit code %d", e.Code)
}

// Run serves all apiservers until ctx ends and every session has ended.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Certificate == nil {
		cfg.Certificate = func() *x509.Certificate { return nil }
	}
	if cfg.lookEvery == 0 {
		cfg.lookEvery = lookEvery
	}
	var wg sync.WaitGroup
	for _, e := range cfg.Endpoints {
		wg.Go(func() { keep(ctx, cfg, e) })
	}
	wg.Wait()
	return nil
}

// keep keeps a control stream to one apiserver open. The apiserver ends it when the
// certificate of its connection expires, so whenever there is a new certificate, keep opens
// a new control stream on a connection of its own. The old stream lasts until the apiserver
// has the new one, and sessions on the old connection last until they end.
func keep(ctx context.Context, cfg Config, endpoint string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	look := time.NewTicker(cfg.lookEvery)
	defer look.Stop()
	slots := make(chan struct{}, maxSessions)
	delay := time.Duration(0)
	up := true
	for ctx.Err() == nil {
		began := time.Now()
		shown := cfg.Certificate()
		ended := make(chan error, 1)
		wg.Go(func() { connect(ctx, cfg, endpoint, slots, ended) })
		var err error
		for live := true; live; {
			select {
			case err = <-ended:
				live = false
			case <-look.C:
				live = cfg.Certificate() == shown
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			continue // the certificate has changed
		}
		if up || time.Since(began) > retryMost {
			slog.WarnContext(ctx, "tunnel is down", "apiserver", endpoint, "error", err)
			up = false
		}
		delay = min(max(2*delay, retryFirst), retryMost)
		if time.Since(began) > retryMost {
			delay = retryFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// connect runs one control stream until it ends, sends its error to ended, and then waits
// for the stream's sessions.
func connect(ctx context.Context, cfg Config, endpoint string, slots chan struct{}, ended chan<- error) {
	conn, err := cfg.Dial(endpoint)
	if err != nil {
		ended <- fmt.Errorf("tunnel: %w", err)
		return
	}
	defer conn.Close()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	ended <- control(ctx, cfg, endpoint, nodev1.NewTunnelServiceClient(conn), slots, &sessions)
}

// control runs one control stream and starts the sessions that the apiserver requests.
func control(ctx context.Context, cfg Config, endpoint string, client nodev1.TunnelServiceClient, slots chan struct{}, sessions *sync.WaitGroup) error {
	streaming, cancel := context.WithCancel(ctx)
	defer cancel()
	control, err := client.Connect(streaming)
	if err != nil {
		return err
	}
	hello := &nodev1.ConnectRequest{Message: &nodev1.ConnectRequest_Hello{Hello: &nodev1.Hello{Node: cfg.Node}}}
	if err := control.Send(hello); err != nil {
		_, err = control.Recv() // returns the reason
		return err
	}
	var send sync.Mutex
	refuse := func(id string, err error) {
		send.Lock()
		defer send.Unlock()
		_ = control.Send(&nodev1.ConnectRequest{Message: &nodev1.ConnectRequest_Refused{
			Refused: &nodev1.Refused{SessionId: id, Status: encode(err)},
		}})
	}
	for up := false; ; {
		m, err := control.Recv()
		if err != nil {
			return err
		}
		switch m := m.GetMessage().(type) {
		case *nodev1.ConnectResponse_Welcome:
			if !up {
				slog.InfoContext(ctx, "tunnel is up", "apiserver", endpoint)
				up = true
			}
			if cfg.Welcome != nil {
				cfg.Welcome(time.Duration(m.Welcome.GetHeartbeatSeconds()) * time.Second)
			}
		case *nodev1.ConnectResponse_Open:
			open := m.Open
			select {
			case slots <- struct{}{}:
			default:
				refuse(open.GetSessionId(), apierrors.NewTooManyRequests("the node has too many open sessions", 1))
				continue
			}
			sessions.Go(func() {
				defer func() { <-slots }()
				if err := cfg.Handler.Check(open); err != nil {
					refuse(open.GetSessionId(), err)
					return
				}
				serve(ctx, client, cfg.Handler, open)
			})
		}
	}
}

// serve opens one session and serves it until it ends.
func serve(ctx context.Context, client nodev1.TunnelServiceClient, h Handler, open *nodev1.Open) {
	ctx, cancel := context.WithCancel(telemetry.ContextWithTraceparent(ctx, open.GetTraceparent()))
	defer cancel()
	rpc, err := client.Session(ctx)
	if err != nil {
		return
	}
	first := &nodev1.SessionRequest{Message: &nodev1.SessionRequest_SessionId{SessionId: open.GetSessionId()}}
	if err := rpc.Send(first); err != nil {
		return
	}
	s := &Session{rpc: rpc, frames: make(chan *nodev1.SessionResponse), over: make(chan struct{})}
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		defer cancel() // the apiserver has ended the session: its client is gone
		s.pump()
	}()
	err = h.Serve(ctx, open, s)
	close(s.over)
	if ctx.Err() == nil {
		s.exit(err)
		// The apiserver ends the stream once it has read the exit.
	}
	<-pumped
}

// Session is one open session. It is safe for concurrent use.
type Session struct {
	rpc    nodev1.TunnelService_SessionClient
	send   sync.Mutex
	frames chan *nodev1.SessionResponse
	err    error // why frames was closed
	over   chan struct{}
}

// pump receives frames and hands them to Recv. Frames that arrive after the handler has
// returned are dropped.
func (s *Session) pump() {
	defer close(s.frames)
	for {
		m, err := s.rpc.Recv()
		if err != nil {
			s.err = err
			return
		}
		select {
		case s.frames <- m:
		case <-s.over:
		}
	}
}

// Recv returns the apiserver's next frame.
func (s *Session) Recv() (*nodev1.SessionResponse, error) {
	select {
	case m, ok := <-s.frames:
		if !ok {
			return nil, s.err
		}
		return m, nil
	case <-s.over:
		return nil, context.Canceled
	}
}

// Writer returns a writer to a channel.
func (s *Session) Writer(c nodev1.Channel) *Writer { return &Writer{s: s, channel: c} }

func (s *Session) frame(m *nodev1.SessionRequest) error {
	s.send.Lock()
	defer s.send.Unlock()
	return s.rpc.Send(m)
}

// exit sends the result of the session.
func (s *Session) exit(err error) {
	exit := &nodev1.Exit{}
	var code *ExitError
	switch {
	case errors.As(err, &code):
		exit.Code = code.Code
	case err != nil:
		exit.Status = encode(err)
	}
	if s.frame(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_Exit{Exit: exit}}) == nil {
		_ = s.rpc.CloseSend()
	}
}

// Writer is one channel to the apiserver.
type Writer struct {
	s       *Session
	channel nodev1.Channel
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		piece := p[n:min(len(p), n+maxData)]
		data := &nodev1.Data{Channel: w.channel, Payload: piece}
		if err := w.s.frame(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_Data{Data: data}}); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// Close signals that the channel has no more data.
func (w *Writer) Close() error {
	return w.s.frame(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_CloseChannel{CloseChannel: w.channel}})
}

// internalPrefix is the prefix of the messages of internal errors.
const internalPrefix = "Internal error occurred: "

// encode returns the encoded Status for an error.
func encode(err error) []byte {
	var api apierrors.APIStatus
	st := apierrors.NewInternalError(err).Status()
	if errors.As(err, &api) {
		st = api.Status()
	} else if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		st.Message = s.Message()
	}
	// The runtime's streaming server adds the prefix too: keep only one.
	for strings.HasPrefix(st.Message, internalPrefix+internalPrefix) {
		st.Message = st.Message[len(internalPrefix):]
	}
	st.Status = metav1.StatusFailure
	b, marshalErr := st.Marshal()
	if marshalErr != nil {
		return nil
	}
	return b
}
