package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// findTime bounds the search for the apiserver that a node is connected to. Apiservers that do
// not answer within it are ignored.
const findTime = 2 * time.Second

// find asks all other apiservers in parallel and returns the first one that the node is
// connected to, or nil if there is none.
func (s *Server) find(ctx context.Context, node string) nodev1.RelayServiceClient {
	if s.cfg.Peers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	peers := s.cfg.Peers()
	answers := make(chan nodev1.RelayServiceClient, len(peers))
	for _, p := range peers {
		go func() {
			found, err := p.Find(ctx, &nodev1.FindRequest{Node: node})
			if err != nil || !found.GetConnected() {
				p = nil
			}
			answers <- p
		}()
	}
	for range peers {
		if p := <-answers; p != nil {
			return p
		}
	}
	return nil
}

// reasons maps the refusals that do not come from the node to the errors of Open.
var reasons = map[nodev1.RelayRefused_Reason]error{
	nodev1.RelayRefused_REASON_NOT_CONNECTED: ErrNotConnected,
	nodev1.RelayRefused_REASON_TOO_MANY:      ErrTooMany,
	nodev1.RelayRefused_REASON_TIMEOUT:       ErrTimeout,
	nodev1.RelayRefused_REASON_GONE:          ErrGone,
}

// openThere opens a session with a node that is connected to another apiserver.
func (s *Server) openThere(ctx context.Context, peer nodev1.RelayServiceClient, node string, open *nodev1.Open) (*Session, error) {
	open = proto.CloneOf(open)
	open.Traceparent = traceparent(ctx)
	// The stream must outlive ctx, so that the session is ended with its cause first.
	streaming, cancel := context.WithCancel(context.WithoutCancel(ctx))
	opened := context.AfterFunc(ctx, cancel)
	session, err := s.relayed(streaming, peer, &nodev1.RelayBegin{Node: node, Open: open})
	if err != nil {
		cancel()
		return nil, err
	}
	opened()
	context.AfterFunc(ctx, session.Close)
	go func() {
		<-session.done
		cancel()
	}()
	return session, nil
}

// relayed opens a session through a peer. The session's stream ends with ctx.
func (s *Server) relayed(ctx context.Context, peer nodev1.RelayServiceClient, begin *nodev1.RelayBegin) (*Session, error) {
	stream, err := peer.Relay(ctx)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w: %w", begin.GetNode(), ErrGone, err)
	}
	if err := stream.Send(&nodev1.RelayRequest{Message: &nodev1.RelayRequest_Begin{Begin: begin}}); err != nil {
		return nil, fmt.Errorf("node %s: %w: %w", begin.GetNode(), ErrGone, err)
	}
	// The peer may take as long as this apiserver would, and the messages between them take
	// time.
	timer := time.NewTimer(s.cfg.OpenTimeout + findTime)
	defer timer.Stop()
	select {
	case first := <-receive(stream.Recv):
		if first.err != nil {
			return nil, fmt.Errorf("node %s: %w: %w", begin.GetNode(), ErrGone, first.err)
		}
		if refused := first.value.GetRefused(); refused != nil {
			if err := reasons[refused.GetReason()]; err != nil {
				return nil, fmt.Errorf("node %s: %w", begin.GetNode(), err)
			}
			return nil, refusal(begin.GetNode(), refused.GetStatus())
		}
	case <-timer.C:
		return nil, fmt.Errorf("node %s: %w", begin.GetNode(), ErrTimeout)
	}
	session := &Session{stream: far{stream}, done: make(chan struct{})}
	context.AfterFunc(stream.Context(), func() { session.end(ErrEnded) })
	return session, nil
}

// far is a session's stream that is relayed by another apiserver.
type far struct {
	stream nodev1.RelayService_RelayClient
}

func (f far) Send(m *nodev1.SessionResponse) error {
	return f.stream.Send(&nodev1.RelayRequest{Message: &nodev1.RelayRequest_Frame{Frame: m}})
}

func (f far) Recv() (*nodev1.SessionRequest, error) {
	m, err := f.stream.Recv()
	if err != nil {
		return nil, err
	}
	return m.GetFrame(), nil
}

// Relay implements RelayService, which other apiservers call.
type Relay struct {
	nodev1.UnimplementedRelayServiceServer

	server *Server
	allow  func(context.Context) error
}

// Relay returns the RelayService of a Server. allow returns a gRPC status error if the caller
// is not an apiserver.
func (s *Server) Relay(allow func(context.Context) error) *Relay {
	return &Relay{server: s, allow: allow}
}

// Find reports whether a node is connected to this apiserver.
func (r *Relay) Find(ctx context.Context, in *nodev1.FindRequest) (*nodev1.FindResponse, error) {
	if err := r.allow(ctx); err != nil {
		return nil, err
	}
	return &nodev1.FindResponse{Connected: r.server.Connected(in.GetNode())}, nil
}

// Relay relays a session with a node that is connected to this apiserver.
func (r *Relay) Relay(stream nodev1.RelayService_RelayServer) error {
	if err := r.allow(stream.Context()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	timer := time.NewTimer(r.server.cfg.OpenTimeout)
	defer timer.Stop()
	var begin *nodev1.RelayBegin
	select {
	case first := <-receive(stream.Recv):
		if begin = first.value.GetBegin(); first.err != nil || begin.GetOpen() == nil {
			return grpcstatus.Error(codes.InvalidArgument, "the first frame must be a begin with an open")
		}
	case <-timer.C:
		return grpcstatus.Error(codes.DeadlineExceeded, "no first frame arrived in time")
	}
	session, err := r.server.openHere(ctx, begin.GetNode(), begin.GetOpen())
	if err != nil {
		return stream.Send(&nodev1.RelayResponse{Message: &nodev1.RelayResponse_Refused{Refused: refused(err)}})
	}
	defer session.Close()
	if err := stream.Send(&nodev1.RelayResponse{Message: &nodev1.RelayResponse_Opened{Opened: &nodev1.RelayOpened{}}}); err != nil {
		return err
	}
	go func() { // ends with this call
		defer session.Close()
		for {
			m, err := stream.Recv()
			if err != nil || m.GetFrame() == nil || session.send(m.GetFrame()) != nil {
				return
			}
		}
	}()
	for {
		m, err := session.Recv()
		if err != nil {
			return nil // the node ended the session; all its frames have been relayed
		}
		if err := stream.Send(&nodev1.RelayResponse{Message: &nodev1.RelayResponse_Frame{Frame: m}}); err != nil {
			return err
		}
	}
}

// refused encodes an error of openHere, so that relayed can restore it.
func refused(err error) *nodev1.RelayRefused {
	for reason, known := range reasons {
		if errors.Is(err, known) {
			return &nodev1.RelayRefused{Reason: reason}
		}
	}
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		status = apierrors.NewInternalError(err)
	}
	raw, err := status.ErrStatus.Marshal()
	if err != nil {
		raw = nil // the peer reports a refusal without a reason
	}
	return &nodev1.RelayRefused{Status: raw}
}
