package stream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/front/podsession"
)

// maxForwards bounds the concurrently forwarded connections of one client.
const maxForwards = 256

// maxMessage bounds a WebSocket message of a client in bytes, as the library of the other
// WebSocket protocols does. Messages are read in pieces, so the length in a frame's header is
// never allocated.
const maxMessage = 32 << 20

// portForward serves SPDY, SPDY over WebSocket (kubectl since 1.30), and the old WebSocket
// protocol with ports in the query.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request, pod *corev1.Pod) error {
	f := &forwarder{server: s, pod: pod}
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		upgrader := websocket.Upgrader{
			CheckOrigin:  func(*http.Request) bool { return true }, // there are no cookies to protect
			Subprotocols: []string{portforward.WebsocketsSPDYTunnelingPortForwardV1},
		}
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil { // the upgrader has responded
			return nil
		}
		ws.SetReadLimit(maxMessage)
		streams := make(chan httpstream.Stream, 1)
		conn, err := spdy.NewServerConnection(&tunnelConn{Conn: ws}, f.accept(r.Context(), streams))
		if err != nil {
			_ = ws.Close()
			return nil
		}
		f.serve(r.Context(), conn, streams)
	case wsstream.IsWebSocketRequest(r):
		options, err := portforward.NewV4Options(r)
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		portforward.ServePortForward(w, r, f, pod.Name, string(pod.UID), options, idleTimeout, creationTimeout, portforward.SupportedProtocols)
	default:
		if _, err := httpstream.Handshake(r, w, portforward.SupportedProtocols); err != nil {
			return nil // the error has been sent
		}
		streams := make(chan httpstream.Stream, 1)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, f.accept(r.Context(), streams))
		if conn == nil {
			return nil // the error has been sent
		}
		f.serve(r.Context(), conn, streams)
	}
	return nil
}

// forwarder forwards the connections of one client to ports of one pod.
type forwarder struct {
	server *Server
	pod    *corev1.Pod
}

// PortForward implements portforward.PortForwarder, for the old WebSocket protocol.
func (f *forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	return f.forward(ctx, port, stream)
}

// forward connects a client's stream to a port of the pod until both directions have ended or the
// node ends the session.
func (f *forwarder) forward(ctx context.Context, port int32, stream io.ReadWriteCloser) error {
	session, err := f.server.open(ctx, f.pod, &nodev1.Open{Target: &nodev1.Open_PortForward{
		PortForward: &nodev1.PortForward{Pod: podsession.Ref(f.pod, ""), Port: port},
	}})
	if err != nil {
		return err
	}
	defer session.Close()
	go func() { _ = session.Input(nodev1.Channel_CHANNEL_STDIN, stream) }()
	return session.Output(stream, nil)
}

// accept validates the streams that the client opens.
func (f *forwarder) accept(ctx context.Context, streams chan<- httpstream.Stream) httpstream.NewStreamHandler {
	return func(stream httpstream.Stream, _ <-chan struct{}) error {
		header := stream.Headers()
		text := header.Get(portforward.PortHeader)
		if text == "" {
			return fmt.Errorf("%q header is required", portforward.PortHeader)
		}
		if port, err := strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
			return fmt.Errorf("unable to parse %q as a port", text)
		}
		switch kind := header.Get(portforward.StreamType); kind {
		case portforward.StreamTypeError, portforward.StreamTypeData:
		default:
			return fmt.Errorf("invalid stream type %q", kind)
		}
		select {
		case streams <- stream:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pair is the two streams of one forwarded connection.
type pair struct {
	id          string
	data, error httpstream.Stream
	since       time.Time
}

// serve collects pairs of streams and forwards each, until the connection ends.
func (f *forwarder) serve(ctx context.Context, conn httpstream.Connection, streams <-chan httpstream.Stream) {
	defer conn.Close()
	conn.SetIdleTimeout(idleTimeout)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pairs := map[string]*pair{} // incomplete pairs
	finished := make(chan *pair)
	running := 0
	defer func() { // forwards end with ctx
		cancel()
		for ; running > 0; running-- {
			<-finished
		}
	}()
	tick := time.NewTicker(creationTimeout)
	defer tick.Stop()
	for {
		select {
		case stream := <-streams:
			p := add(pairs, stream)
			if p == nil {
				continue
			}
			if running >= maxForwards {
				fmt.Fprintf(p.error, "too many connections: at most %d are forwarded concurrently", maxForwards)
				p.reset(conn)
				continue
			}
			running++
			go func() {
				f.run(ctx, p)
				finished <- p
			}()
		case p := <-finished:
			running--
			conn.RemoveStreams(p.data, p.error)
		case now := <-tick.C:
			for id, p := range pairs {
				if now.Sub(p.since) > creationTimeout {
					delete(pairs, id)
					p.reset(conn)
				}
			}
		case <-conn.CloseChan():
			return
		case <-ctx.Done():
			return
		}
	}
}

// add returns the pair that the stream completes, or nil after keeping the stream as its first
// half. A second stream of the same type is reset.
func add(pairs map[string]*pair, stream httpstream.Stream) *pair {
	id := requestID(stream)
	p := pairs[id]
	if p == nil {
		if len(pairs) >= maxForwards {
			_ = stream.Reset()
			return nil
		}
		p = &pair{id: id, since: time.Now()}
		pairs[id] = p
	}
	half := &p.data
	if stream.Headers().Get(portforward.StreamType) == portforward.StreamTypeError {
		half = &p.error
	}
	if *half != nil {
		_ = stream.Reset()
		return nil
	}
	*half = stream
	if p.data == nil || p.error == nil {
		return nil
	}
	delete(pairs, id)
	return p
}

// requestID returns the id that the two streams of a pair share. Old clients send none, and open
// the error stream just before the data stream.
func requestID(stream httpstream.Stream) string {
	if id := stream.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	n := stream.Identifier()
	if stream.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
		n -= 2
	}
	return strconv.FormatUint(uint64(n), 10)
}

// reset resets both streams.
func (p *pair) reset(conn httpstream.Connection) {
	for _, s := range []httpstream.Stream{p.data, p.error} {
		if s != nil {
			_ = s.Reset()
			conn.RemoveStreams(s)
		}
	}
}

// run forwards one pair.
func (f *forwarder) run(ctx context.Context, p *pair) {
	port, _ := strconv.ParseInt(p.data.Headers().Get(portforward.PortHeader), 10, 32) // validated by accept
	err := f.forward(ctx, int32(port), p.data)
	if err != nil && ctx.Err() == nil {
		f.server.cfg.Log.DebugContext(ctx, "port-forward failed", "namespace", f.pod.Namespace, "pod", f.pod.Name, "port", port, "error", err)
		fmt.Fprintf(p.error, "error forwarding port %d to pod %s, uid %s: %v", port, f.pod.Name, f.pod.UID, err)
	}
	_ = p.error.Close()
	_ = p.data.Close()
	if err != nil {
		_ = p.data.Reset()
	}
}

var _ portforward.PortForwarder = (*forwarder)(nil)
