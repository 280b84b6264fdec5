// Package tunneltest provides fake nodes for tests of the tunnel and its users.
//
// It must not be linked into a program.
package tunneltest

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/request"
)

// userKey is the metadata key that replaces a client certificate.
const userKey = "test-user"

// Serve runs a TunnelService in memory and returns a client of it. The caller of each RPC is
// the user that As set.
func Serve(t testing.TB, s nodev1.TunnelServiceServer) nodev1.TunnelServiceClient {
	t.Helper()
	return ServeAs(t, s, func(*request.User) {})
}

// ServeAs is like Serve. amend may change the caller's attributes.
func ServeAs(t testing.TB, s nodev1.TunnelServiceServer, amend func(*request.User)) nodev1.TunnelServiceClient {
	t.Helper()
	return nodev1.NewTunnelServiceClient(serve(t, amend, func(server *grpc.Server) { nodev1.RegisterTunnelServiceServer(server, s) }))
}

// ServeRelay runs a RelayService in memory and returns a client of it.
func ServeRelay(t testing.TB, s nodev1.RelayServiceServer) nodev1.RelayServiceClient {
	t.Helper()
	return nodev1.NewRelayServiceClient(serve(t, func(*request.User) {}, func(server *grpc.Server) { nodev1.RegisterRelayServiceServer(server, s) }))
}

func serve(t testing.TB, amend func(*request.User), register func(*grpc.Server)) grpc.ClientConnInterface {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		md, _ := metadata.FromIncomingContext(ss.Context())
		user := request.User{Name: strings.Join(md.Get(userKey), "")}
		if strings.HasPrefix(user.Name, "system:node:") {
			user.Groups = []string{"system:nodes", "system:authenticated"}
		}
		amend(&user)
		return h(srv, withUser{ss, request.WithUser(ss.Context(), user)})
	}))
	register(server)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.Dial() }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-done
	})
	return conn
}

type withUser struct {
	grpc.ServerStream
	ctx context.Context
}

func (s withUser) Context() context.Context { return s.ctx }

// As returns a context whose RPCs are made by user.
func As(ctx context.Context, user string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, userKey, user)
}

// Session is the node's side of a session.
type Session struct {
	nodev1.TunnelService_SessionClient
}

// Say sends text on a channel.
func (s Session) Say(channel nodev1.Channel, text string) error {
	return s.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_Data{
		Data: &nodev1.Data{Channel: channel, Payload: []byte(text)},
	}})
}

// Exit ends the session. st may be nil.
func (s Session) Exit(code int32, st *metav1.Status) error {
	exit := &nodev1.Exit{Code: code}
	if st != nil {
		raw, err := st.Marshal()
		if err != nil {
			return err
		}
		exit.Status = raw
	}
	return s.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_Exit{Exit: exit}})
}

// Node is a connected node.
type Node struct {
	stop context.CancelFunc
	done chan struct{}
}

// Stop disconnects the node and waits until its sessions have ended.
func (n *Node) Stop() {
	n.stop()
	<-n.done
}

// Connect connects a node that handles each session with serve, unless refuse returns a Status,
// with which it refuses the session. refuse may be nil.
func Connect(t testing.TB, c nodev1.TunnelServiceClient, name string, refuse func(*nodev1.Open) *metav1.Status, serve func(*nodev1.Open, Session)) *Node {
	t.Helper()
	ctx, cancel := context.WithCancel(As(context.Background(), "system:node:"+name))
	control, err := c.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hello := &nodev1.ConnectRequest{Message: &nodev1.ConnectRequest_Hello{Hello: &nodev1.Hello{Node: name}}}
	if err := control.Send(hello); err != nil {
		t.Fatal(err)
	}
	if m, err := control.Recv(); err != nil || m.GetWelcome() == nil {
		t.Fatalf("no welcome: %v, %v", m, err)
	}
	n := &Node{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(n.done)
		var sessions sync.WaitGroup
		defer sessions.Wait()
		for {
			m, err := control.Recv()
			if err != nil {
				return
			}
			open := m.GetOpen()
			if refuse != nil {
				if st := refuse(open); st != nil {
					raw, _ := st.Marshal()
					_ = control.Send(&nodev1.ConnectRequest{Message: &nodev1.ConnectRequest_Refused{
						Refused: &nodev1.Refused{SessionId: open.GetSessionId(), Status: raw},
					}})
					continue
				}
			}
			sessions.Go(func() {
				stream, err := c.Session(ctx)
				if err != nil {
					return
				}
				if stream.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_SessionId{SessionId: open.GetSessionId()}}) != nil {
					return
				}
				serve(open, Session{stream})
				_ = stream.CloseSend()
				for { // until the server has ended the session
					if _, err := stream.Recv(); err != nil {
						return
					}
				}
			})
		}
	}()
	t.Cleanup(n.Stop)
	return n
}
