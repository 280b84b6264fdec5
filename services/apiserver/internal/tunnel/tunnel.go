// Package tunnel is the apiserver's side of keelson.node.v1.TunnelService, through which it
// reaches nodes, which accept no connections, and of RelayService, through which it reaches
// nodes that are connected to another apiserver.
//
// A node keeps a control stream open. The apiserver asks for a session there, and the node
// opens it as a stream of its own. Invariants:
//
//   - A node acts only for itself: the name in its Hello and the caller of each of its Sessions
//     are the name in its certificate.
//   - A session id cannot be guessed and opens one session, once.
//   - The number of a node's sessions is bounded, and so is the time to open one.
//   - When either side goes away, the other side's calls return.
//   - A node's control stream ends when its certificate expires or is withdrawn, or when its
//     Node is deleted. Its sessions end for the same reasons, except that the expiry of a
//     certificate does not end them while the node is connected with a newer one.
//
// The package must not depend on what a session carries or on who may open one: the front
// authorizes the client before it opens a session.
package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/request"
)

// Config configures a Server. A zero field means the default.
type Config struct {
	// HeartbeatSeconds is how often nodes renew their Leases until SetHeartbeat changes it;
	// default 2.
	HeartbeatSeconds int32
	// MaxSessions bounds the sessions of a node, including those being opened; default 256.
	MaxSessions int
	// OpenTimeout bounds how long opening a session may take, and how long a node may take to
	// send its Hello; default 10 s.
	OpenTimeout time.Duration
	// Peers returns the other apiservers, to reach the nodes that are connected only to them.
	// Nil means that there are none.
	Peers func() []nodev1.RelayServiceClient
	// Registered returns the UID of a node's Node, or false if it does not exist. Nil accepts
	// every node.
	Registered func(node string) (types.UID, bool)
	// RecheckEvery is how often the rights of open streams are checked; default 5 s.
	RecheckEvery time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// Server implements TunnelService.
type Server struct {
	nodev1.UnimplementedTunnelServiceServer
	cfg Config

	mu        sync.Mutex
	nodes     map[string]*link
	sessions  map[string]int // by node, including those being opened
	pending   map[string]*opening
	heartbeat int32         // seconds
	changed   chan struct{} // closed when heartbeat changes
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.HeartbeatSeconds == 0 {
		cfg.HeartbeatSeconds = 2
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 256
	}
	if cfg.OpenTimeout == 0 {
		cfg.OpenTimeout = 10 * time.Second
	}
	if cfg.Registered == nil {
		cfg.Registered = func(string) (types.UID, bool) { return "", true }
	}
	if cfg.RecheckEvery == 0 {
		cfg.RecheckEvery = 5 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Server{
		cfg: cfg, nodes: map[string]*link{}, sessions: map[string]int{}, pending: map[string]*opening{},
		heartbeat: cfg.HeartbeatSeconds, changed: make(chan struct{}),
	}
}

// SetHeartbeat changes how often nodes renew their Leases. It is sent to all connected nodes,
// and to others when they connect.
func (s *Server) SetHeartbeat(seconds int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seconds != s.heartbeat {
		s.heartbeat = seconds
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// welcome returns the Welcome to send, and a channel that is closed when it changes.
func (s *Server) welcome() (*nodev1.ConnectResponse, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &nodev1.ConnectResponse{Message: &nodev1.ConnectResponse_Welcome{
		Welcome: &nodev1.Welcome{HeartbeatSeconds: s.heartbeat},
	}}, s.changed
}

// Errors of Open.
var (
	// ErrNotConnected means that the node has no control stream to this apiserver or a peer.
	ErrNotConnected = errors.New("node is not connected")
	// ErrTooMany means that the node has MaxSessions sessions.
	ErrTooMany = errors.New("node has too many sessions")
	// ErrTimeout means that the node did not open the session in time.
	ErrTimeout = errors.New("node did not open the session in time")
	// ErrGone means that the control stream ended before the session was open.
	ErrGone = errors.New("node's connection ended")
)

// link is a node's control stream.
type link struct {
	node string
	send chan *nodev1.ConnectResponse
	done chan struct{} // closed when the stream has ended
	// replaced is closed when the node has opened a newer control stream.
	replaced chan struct{}
}

// opening is a session that the node has been asked to open.
type opening struct {
	link   *link
	opened chan *Session // buffered
	failed chan error    // buffered
}

// nodeName returns the caller's node name, as in its certificate, or a gRPC status error if the
// caller is not a node.
func nodeName(ctx context.Context) (string, error) {
	user := request.UserFrom(ctx)
	name, ok := strings.CutPrefix(user.Name, "system:node:")
	if !ok || name == "" || !slices.Contains(user.Groups, "system:nodes") {
		return "", grpcstatus.Errorf(codes.PermissionDenied, "only nodes may call this; the caller is %q", user.Name)
	}
	return name, nil
}

// receive calls recv in a goroutine, which ends no later than the stream. The caller need not
// wait for the result.
func receive[T any](recv func() (T, error)) <-chan result[T] {
	c := make(chan result[T], 1)
	go func() {
		v, err := recv()
		c <- result[T]{v, err}
	}()
	return c
}

type result[T any] struct {
	value T
	err   error
}

// Connect registers a node as long as its stream is open.
func (s *Server) Connect(stream nodev1.TunnelService_ConnectServer) error {
	ctx := stream.Context()
	name, err := nodeName(ctx)
	if err != nil {
		return err
	}
	timer := time.NewTimer(s.cfg.OpenTimeout)
	defer timer.Stop()
	select {
	case first := <-receive(stream.Recv):
		if first.err != nil {
			return first.err
		}
		hello := first.value.GetHello()
		if hello == nil {
			return grpcstatus.Error(codes.InvalidArgument, "the first message must be a hello")
		}
		if hello.GetNode() != name {
			return grpcstatus.Errorf(codes.PermissionDenied, "hello names node %q, but the certificate is that of %q", hello.GetNode(), name)
		}
	case <-timer.C:
		return grpcstatus.Error(codes.DeadlineExceeded, "no hello arrived in time")
	case <-ctx.Done():
		return ctx.Err()
	}
	rights, err := s.hold(ctx, name)
	if err != nil {
		return err
	}
	defer rights.release()
	welcome, changed := s.welcome()
	if err := stream.Send(welcome); err != nil {
		return err
	}
	l := s.register(name)
	defer s.unregister(l)
	s.cfg.Log.InfoContext(ctx, "node connected", "node", name)
	defer s.cfg.Log.InfoContext(ctx, "node disconnected", "node", name)

	ended := make(chan error, 1)
	go func() { ended <- s.listen(l, stream) }()
	for {
		select {
		case m := <-l.send:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-changed:
			welcome, changed = s.welcome()
			if err := stream.Send(welcome); err != nil {
				return err
			}
		case <-l.replaced:
			return grpcstatus.Error(codes.Aborted, "the node opened a newer connection")
		case <-rights.expired():
			return errExpired
		case <-rights.tick.C:
			if err := rights.check(ctx); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// listen handles the node's messages after its Hello, which are refusals of sessions.
func (s *Server) listen(l *link, stream nodev1.TunnelService_ConnectServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		refused := m.GetRefused()
		if refused == nil {
			return grpcstatus.Error(codes.InvalidArgument, "unexpected message")
		}
		if o := s.take(refused.GetSessionId(), l.node); o != nil {
			s.release(l.node)
			o.failed <- refusal(l.node, refused.GetStatus())
		}
	}
}

// refusal returns the error of a node that refused a session. raw is its encoded Status.
func refusal(node string, raw []byte) error {
	var st metav1.Status
	if err := unmarshal(&st, raw); err != nil || len(raw) == 0 {
		return apierrors.NewInternalError(fmt.Errorf("node %s refused the session without a reason", node))
	}
	return &apierrors.StatusError{ErrStatus: st}
}

// unmarshal recovers from generated decoders that panic on malformed input.
func unmarshal(into interface{ Unmarshal([]byte) error }, raw []byte) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("malformed message")
		}
	}()
	return into.Unmarshal(raw)
}

func (s *Server) register(name string) *link {
	l := &link{
		node:     name,
		send:     make(chan *nodev1.ConnectResponse),
		done:     make(chan struct{}),
		replaced: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.nodes[name]; old != nil {
		close(old.replaced)
	}
	s.nodes[name] = l
	return l
}

func (s *Server) unregister(l *link) {
	s.mu.Lock()
	if s.nodes[l.node] == l {
		delete(s.nodes, l.node)
	}
	s.mu.Unlock()
	close(l.done)
}

// Connected reports whether a node has a control stream to this apiserver.
func (s *Server) Connected(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[node] != nil
}

// take removes and returns the opening with a session id. It returns nil if there is none, or
// if it is for another node.
func (s *Server) take(id, node string) *opening {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.pending[id]
	if o == nil || o.link.node != node {
		return nil
	}
	delete(s.pending, id)
	return o
}

// Open asks a node for a session and waits until the node has opened it. If the node is not
// connected to this apiserver, a peer relays the session. The session ends with ctx or Close.
// Open fills in open's session_id and traceparent. Its errors wrap one of those above or, if
// the node refused, are an *apierrors.StatusError.
func (s *Server) Open(ctx context.Context, node string, open *nodev1.Open) (*Session, error) {
	session, err := s.openHere(ctx, node, open)
	if errors.Is(err, ErrNotConnected) {
		if peer := s.find(ctx, node); peer != nil {
			return s.openThere(ctx, peer, node, open)
		}
	}
	return session, err
}

// openHere opens a session with a node that is connected to this apiserver.
func (s *Server) openHere(ctx context.Context, node string, open *nodev1.Open) (*Session, error) {
	open = proto.CloneOf(open)
	open.SessionId = newID()
	if parent := traceparent(ctx); parent != "" {
		open.Traceparent = parent
	}
	o, err := s.reserve(node, open.GetSessionId())
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	timer := time.NewTimer(s.cfg.OpenTimeout)
	defer timer.Stop()
	message := &nodev1.ConnectResponse{Message: &nodev1.ConnectResponse_Open{Open: open}}
	sent := o.link.send
	for {
		select {
		case sent <- message:
			sent = nil // once
			continue
		case session := <-o.opened:
			context.AfterFunc(ctx, session.Close)
			return session, nil
		case err = <-o.failed:
			return nil, err
		case <-timer.C:
			err = ErrTimeout
		case <-o.link.done:
			err = ErrGone
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	s.abandon(o, open.GetSessionId())
	return nil, fmt.Errorf("node %s: %w", node, err)
}

// reserve counts a new session of a node and registers its id.
func (s *Server) reserve(node, id string) (*opening, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.nodes[node]
	if l == nil {
		return nil, ErrNotConnected
	}
	if s.sessions[node] >= s.cfg.MaxSessions {
		return nil, ErrTooMany
	}
	s.sessions[node]++
	o := &opening{link: l, opened: make(chan *Session, 1), failed: make(chan error, 1)}
	s.pending[id] = o
	return o, nil
}

func (s *Server) release(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(node)
}

func (s *Server) releaseLocked(node string) {
	if s.sessions[node]--; s.sessions[node] == 0 {
		delete(s.sessions, node)
	}
}

// abandon gives up an opening. If the node has taken it in the meantime, the session is closed:
// the goroutine that took it answers at once.
func (s *Server) abandon(o *opening, id string) {
	s.mu.Lock()
	waiting := s.pending[id] == o
	if waiting {
		delete(s.pending, id)
		s.releaseLocked(o.link.node)
	}
	s.mu.Unlock()
	if waiting {
		return
	}
	select {
	case late := <-o.opened:
		late.Close()
	case <-o.failed:
	}
}

// newID returns 128 random bits in base64.
func newID() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// traceparent returns the W3C traceparent of ctx, or "".
func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}
