package grpcweb_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
	podv1 "keelson.dev/proto/keelson/pod/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/front/grpcweb"
	"keelson.dev/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const page = "https://console.example.com"

// backend is what the calls reach.
type backend struct {
	resourcev1.UnimplementedResourceServiceServer
	podv1.UnimplementedPodServiceServer
	seen     chan metadata.MD // of each Get
	next     chan struct{}    // lets Watch send another event
	finished chan struct{}    // one for each Watch that has ended
}

func (b *backend) Get(ctx context.Context, r *resourcev1.GetRequest) (*resourcev1.GetResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	b.seen <- md
	if p, ok := peer.FromContext(ctx); !ok || p.Addr.String() == "" {
		return nil, status.Error(codes.Internal, "no peer")
	} else if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
		return nil, status.Error(codes.Internal, "the client's certificate counts")
	}
	switch r.GetRef().GetName() {
	case "missing":
		return nil, apistatus.ToGRPC(&apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "mißing").ErrStatus)
	case "slow":
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	case "panic":
		panic("a bug")
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs("served-by", "test"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("took-bin", "\x00\xff"))
	return &resourcev1.GetResponse{}, nil
}

func (b *backend) Watch(_ *resourcev1.WatchRequest, stream resourcev1.ResourceService_WatchServer) error {
	defer func() { b.finished <- struct{}{} }()
	for n := 1; ; n++ {
		select {
		case _, ok := <-b.next:
			if !ok {
				return nil
			}
			if err := stream.Send(&resourcev1.WatchResponse{ResourceVersion: fmt.Sprint(n)}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// front is a served handler. Its calls are authenticated by the tokens "user" and, as of a client
// without a credential, "stranger".
type front struct {
	*backend
	url    string
	client *http.Client
}

func serve(t *testing.T, http2 bool) *front {
	t.Helper()
	f := &front{backend: &backend{seen: make(chan metadata.MD, 100), next: make(chan struct{}, 1), finished: make(chan struct{}, 100)}}
	server := rpc.NewServer(rpc.ServerConfig{Authenticate: func(ctx context.Context, _ string) (context.Context, rpc.Caller, error) {
		switch token := metadata.ValueFromIncomingContext(ctx, "authorization"); {
		case slices.Equal(token, []string{"Bearer user"}):
			return ctx, rpc.Caller{Name: "user", Class: rpc.User}, nil
		case slices.Equal(token, []string{"Bearer stranger"}):
			return ctx, rpc.Caller{Class: rpc.Stranger}, nil
		}
		return ctx, rpc.Caller{}, apistatus.ToGRPC(&apierrors.NewUnauthorized("Unauthorized").ErrStatus)
	}})
	resourcev1.RegisterResourceServiceServer(server, f.backend)
	podv1.RegisterPodServiceServer(server, f.backend)
	web := grpcweb.New(server, []string{"http://localhost:5173", page})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !web.Handles(r) {
			http.NotFound(w, r)
			return
		}
		web.ServeHTTP(w, r)
	}))
	s.EnableHTTP2 = http2
	s.StartTLS()
	t.Cleanup(func() { s.Close(); server.Stop() })
	f.url, f.client = s.URL, s.Client()
	return f
}

const (
	getMethod   = "/keelson.resource.v1.ResourceService/Get"
	watchMethod = "/keelson.resource.v1.ResourceService/Watch"
)

// frame returns the frame of a message.
func frame(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(data))), data...)
}

// post sends a call. change may amend the request.
func (f *front) post(t *testing.T, method string, body io.Reader, change ...func(*http.Request)) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+method, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc-web+proto")
	r.Header.Set("Authorization", "Bearer user")
	r.Header.Set("Origin", page)
	for _, c := range change {
		c(r)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func set(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// reply is what a call returned.
type reply struct {
	messages [][]byte
	trailers textproto.MIMEHeader
}

func (r *reply) status(t *testing.T) *status.Status {
	t.Helper()
	data, err := base64.RawStdEncoding.DecodeString(r.trailers.Get("grpc-status-details-bin"))
	st := &spb.Status{}
	if err != nil || proto.Unmarshal(data, st) != nil {
		t.Fatalf("malformed details in %v", r.trailers)
	}
	return status.FromProto(st)
}

// nextFrame reads a frame.
func nextFrame(r io.Reader) (flag byte, data []byte, err error) {
	var head [5]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	data = make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(r, data)
	return head[0], data, err
}

// read reads an answer to its end.
func read(t *testing.T, resp *http.Response) *reply {
	t.Helper()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s", resp.Status, text)
	}
	var body io.Reader = resp.Body
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc-web-text") {
		body = decodeText(t, resp.Body)
	}
	out := &reply{}
	for {
		flag, data, err := nextFrame(body)
		if errors.Is(err, io.EOF) && out.trailers != nil {
			return out
		}
		switch {
		case err != nil || out.trailers != nil:
			t.Fatalf("frame after %d: %v", len(out.messages), err)
		case flag == 0:
			out.messages = append(out.messages, data)
		case flag == 0x80:
			h, err := textproto.NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(data), strings.NewReader("\r\n")))).ReadMIMEHeader()
			if err != nil {
				t.Fatalf("trailers %q: %v", data, err)
			}
			out.trailers = h
		default:
			t.Fatalf("frame with flag %d", flag)
		}
	}
}

// decodeText decodes base64 with padding in between.
func decodeText(t *testing.T, r io.Reader) io.Reader {
	t.Helper()
	text, err := io.ReadAll(r)
	if err != nil || len(text)%4 != 0 {
		t.Fatalf("%d characters: %v", len(text), err)
	}
	var out []byte
	for quad := range slices.Chunk(text, 4) {
		data, err := base64.StdEncoding.DecodeString(string(quad))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, data...)
	}
	return bytes.NewReader(out)
}

func get(name string) *resourcev1.GetRequest {
	return &resourcev1.GetRequest{Ref: &resourcev1.Ref{Version: "v1", Resource: "pods", Name: name}}
}

func TestUnary(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		f := serve(t, http2)
		for _, kind := range []string{"application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc-web-text+proto; charset=utf-8"} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", kind, http2), func(t *testing.T) {
				body := frame(t, get("a"))
				if strings.Contains(kind, "text") {
					body = []byte(base64.StdEncoding.EncodeToString(body))
				}
				resp := f.post(t, getMethod, bytes.NewReader(body), set("Content-Type", kind), set("Cookie", "session=1"),
					set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), set("X-User-Agent", "page/1"))
				r := read(t, resp)
				if len(r.messages) != 1 || r.trailers.Get("grpc-status") != "0" || r.trailers.Get("took-bin") != base64.RawStdEncoding.EncodeToString([]byte("\x00\xff")) {
					t.Errorf("got %d messages, %v", len(r.messages), r.trailers)
				}
				if h := resp.Header; h.Get("Access-Control-Allow-Origin") != page || h.Get("Access-Control-Allow-Credentials") != "" || h.Get("Vary") != "Origin" || h.Get("Served-By") != "test" {
					t.Errorf("header %v", h)
				}
				md := <-f.seen
				if len(md.Get("cookie"))+len(md.Get("origin")) != 0 || len(md.Get("traceparent")) != 1 || !slices.Equal(md.Get("user-agent"), []string{"page/1"}) {
					t.Errorf("metadata %v", md)
				}
			})
		}
	}
}

func TestErrors(t *testing.T) {
	f := serve(t, true)
	r := read(t, f.post(t, getMethod, bytes.NewReader(frame(t, get("missing")))))
	if r.trailers.Get("grpc-status") != "5" || r.trailers.Get("grpc-message") != `pods "mi%C3%9Fing" not found` || len(r.messages) != 0 {
		t.Errorf("%v", r.trailers)
	}
	<-f.seen
	if s := apistatus.FromGRPC(r.status(t)); !apierrors.IsNotFound(s) {
		t.Errorf("Status %v", s)
	}
	whole := frame(t, get("a"))
	large := binary.BigEndian.AppendUint32([]byte{0}, rpc.MaxMessage+1)
	for name, tc := range map[string]struct {
		method string
		body   []byte
		change func(*http.Request)
		want   codes.Code
		served bool
	}{
		"panic":                {getMethod, frame(t, get("panic")), set("X-Grpc-Web", "1"), codes.Internal, true},
		"deadline":             {getMethod, frame(t, get("slow")), set("Grpc-Timeout", "50m"), codes.DeadlineExceeded, true},
		"malformed deadline":   {getMethod, whole, set("Grpc-Timeout", "5x"), codes.Internal, false},
		"no token":             {getMethod, whole, func(r *http.Request) { r.Header.Del("Authorization") }, codes.Unauthenticated, false},
		"wrong token":          {getMethod, whole, set("Authorization", "Bearer wrong"), codes.Unauthenticated, false},
		"no message":           {getMethod, nil, set("X-Grpc-Web", "1"), codes.Internal, false},
		"cut off":              {getMethod, whole[:len(whole)-1], set("X-Grpc-Web", "1"), codes.Internal, false},
		"two messages":         {getMethod, append(slices.Clone(whole), whole...), set("X-Grpc-Web", "1"), codes.Internal, false},
		"not base64":           {getMethod, []byte("!!!!!!!!"), set("Content-Type", "application/grpc-web-text"), codes.InvalidArgument, false},
		"too large":            {getMethod, large, set("X-Grpc-Web", "1"), codes.ResourceExhausted, false},
		"too large (stranger)": {getMethod, append(binary.BigEndian.AppendUint32([]byte{0}, 17<<10), make([]byte, 17<<10)...), set("Authorization", "Bearer stranger"), codes.ResourceExhausted, false},
		"unknown method":       {"/keelson.resource.v1.ResourceService/None", whole, set("X-Grpc-Web", "1"), codes.Unimplemented, false},
		"unknown, no token":    {"/keelson.resource.v1.ResourceService/None", whole, set("Authorization", "Bearer wrong"), codes.Unauthenticated, false},
		"malformed method":     {"/", whole, set("X-Grpc-Web", "1"), codes.Unimplemented, false},
		"client streaming":     {"/keelson.pod.v1.PodService/Exec", whole, set("X-Grpc-Web", "1"), codes.Unimplemented, false},
		"unknown encoding":     {getMethod, append([]byte{1}, whole[1:]...), set("Grpc-Encoding", "br"), codes.Unimplemented, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := read(t, f.post(t, tc.method, bytes.NewReader(tc.body), tc.change))
			if got := r.trailers.Get("grpc-status"); got != fmt.Sprint(int(tc.want)) || len(r.messages) != 0 {
				t.Errorf("status %s (%s), want %d", got, r.trailers.Get("grpc-message"), tc.want)
			}
			if served := len(f.seen) > 0; served != tc.served {
				t.Errorf("served: %t", served)
			} else if served {
				<-f.seen
			}
		})
	}
}

// TestRefusedBeforeTheBodyIsRead checks that a client without a valid credential, and a page of another
// origin, are refused while their body has not arrived.
func TestRefusedBeforeTheBodyIsRead(t *testing.T) {
	f := serve(t, true)
	for _, change := range []func(*http.Request){set("Authorization", "Bearer wrong"), set("Origin", "https://evil.example.com")} {
		body, writer := io.Pipe() // nothing is ever written
		resp := f.post(t, getMethod, body, change)
		if resp.StatusCode == http.StatusOK {
			if r := read(t, resp); r.trailers.Get("grpc-status") != "16" {
				t.Errorf("got %v", r.trailers)
			}
		}
		_ = writer.Close()
	}
}

func TestOrigins(t *testing.T) {
	f := serve(t, true)
	for origin, want := range map[string]int{
		page: 200, "http://localhost:5173": 200, "": 200, // programs that are no browsers
		"https://evil.example.com": 403, "http://console.example.com": 403, "https://console.example.com:8443": 403, "null": 403,
		"https://sub.console.example.com": 403, "https://console.example.com.evil.org": 403,
	} {
		change := set("Origin", origin)
		if origin == "" {
			change = func(r *http.Request) { r.Header.Del("Origin") }
		}
		resp := f.post(t, getMethod, bytes.NewReader(frame(t, get("a"))), change)
		if resp.StatusCode != want || want == 403 && resp.Header.Get("Access-Control-Allow-Origin") != "" || want == 403 && len(f.seen) > 0 {
			t.Errorf("origin %q: %s, %v, %d calls; want %d", origin, resp.Status, resp.Header, len(f.seen), want)
		}
		if want == 200 {
			if r := read(t, resp); r.trailers.Get("grpc-status") != "0" {
				t.Errorf("origin %q: %v", origin, r.trailers)
			}
			<-f.seen
		}
	}
	two := func(r *http.Request) { r.Header["Origin"] = []string{page, "https://evil.example.com"} }
	if resp := f.post(t, getMethod, bytes.NewReader(frame(t, get("a"))), two); resp.StatusCode != 403 {
		t.Errorf("two origins: %s", resp.Status)
	}
	for origin, want := range map[string]int{page: 204, "https://evil.example.com": 403} {
		preflight := func(r *http.Request) {
			r.Method = http.MethodOptions
			r.Header = http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"authorization,content-type"}}
		}
		resp := f.post(t, getMethod, nil, preflight)
		allowed := resp.Header.Get("Access-Control-Allow-Headers")
		if resp.StatusCode != want || (resp.Header.Get("Access-Control-Allow-Origin") == origin) != (want == 204) || strings.Contains(allowed, "authorization") != (want == 204) {
			t.Errorf("preflight of %q: %s, %v", origin, resp.Status, resp.Header)
		}
		if resp := f.post(t, "/api/v1/namespaces", nil, preflight); resp.StatusCode != 404 {
			t.Errorf("preflight of %q for Kubernetes' API: %s", origin, resp.Status)
		}
	}
	if resp := f.post(t, getMethod, nil, set("Content-Type", "application/grpc-web+json")); resp.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("JSON: %s", resp.Status)
	}
	if resp := f.post(t, getMethod, nil, set("Content-Type", "text/plain")); resp.StatusCode != 404 {
		t.Errorf("a request that needs no preflight: %s", resp.Status)
	}
}

func TestServerStreaming(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		f := serve(t, http2)
		f.next <- struct{}{}
		resp := f.post(t, watchMethod, bytes.NewReader(frame(t, &resourcev1.WatchRequest{})))
		for n := 1; n <= 3; n++ { // each event arrives before the next one is made
			if n > 1 {
				f.next <- struct{}{}
			}
			flag, data, err := nextFrame(resp.Body)
			var ev resourcev1.WatchResponse
			if err != nil || flag != 0 || proto.Unmarshal(data, &ev) != nil || ev.GetResourceVersion() != fmt.Sprint(n) {
				t.Fatalf("event %d: flag %d, %v, %v", n, flag, &ev, err)
			}
		}
		_ = resp.Body.Close() // the page leaves
		receive(t, f.finished)
		f.next <- struct{}{}
		close(f.next)
		resp = f.post(t, watchMethod, strings.NewReader(base64.StdEncoding.EncodeToString(frame(t, &resourcev1.WatchRequest{}))), set("Content-Type", "application/grpc-web-text"))
		if r := read(t, resp); len(r.messages) != 1 || r.trailers.Get("grpc-status") != "0" {
			t.Errorf("got %d messages, %v", len(r.messages), r.trailers)
		}
		receive(t, f.finished)
	}
}

func receive(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatal("the call has not ended")
	}
}

func TestCheckOrigin(t *testing.T) {
	for origin, ok := range map[string]bool{
		"https://console.example.com": true, "http://localhost:5173": true, "https://[::1]:8443": true,
		"*": false, "https://*.example.com": false, "https://console.example.com/": false, "https://console.example.com:443": false,
		"http://a:80": false, "https://Console.example.com": false, "console.example.com": false, "file://x": false, "null": false, "": false,
		"https://user@a": false, "https://a?b": false, "https://": false, "https://:80": false,
	} {
		if err := grpcweb.CheckOrigin(origin); (err == nil) != ok {
			t.Errorf("%q: %v", origin, err)
		}
	}
}
