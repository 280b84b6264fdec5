// Package grpcweb serves the gRPC services to browsers, by gRPC-Web on the HTTPS port: unary calls
// and calls with one message and a stream of answers. Browsers cannot stream messages.
//
// A call passes through these states; each failure ends it with a gRPC status in the last frame:
//
//   - origin: an Origin that is not listed is refused with 403 before anything else is read. A
//     preflight request ends here.
//   - call: [rpc.Server.Call] authenticates the caller by its bearer token, and reads the message
//     within the limits of gRPC: nothing of the body is read before.
//   - answer: headers with the first message, a frame for each message, and a frame with the
//     trailers, which no failure of the call omits. A connection that breaks has none.
//
// The protocol is that of https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md, binary and
// as text (base64).
//
// The package must never honour what a browser adds by itself, such as cookies or client
// certificates: only what the page sends counts.
package grpcweb

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/internal/inflight"
	"keelson.dev/services/internal/rpc"
)

const (
	binaryType = "application/grpc-web"
	textType   = "application/grpc-web-text"
	// maxCalls bounds the calls in progress.
	maxCalls = 4096
	// bodyTimeout bounds how long the body of a request may take, and stall how long a client may
	// take to read an answer.
	bodyTimeout = 30 * time.Second
	stall       = time.Minute
	// preflightSeconds is how long a browser may remember the answer to a preflight request.
	preflightSeconds = "600"
)

// requestHeaders are the headers that pages may send, except those that impersonate.
var requestHeaders = []string{
	"authorization", "content-type", "grpc-timeout", "keelson-fence", "traceparent", "tracestate", "x-grpc-web", "x-user-agent",
}

// Handler serves the methods of a server.
type Handler struct {
	server  *rpc.Server
	origins []string
	calls   *inflight.Gauge
}

// New returns a handler for pages of the given origins.
func New(server *rpc.Server, origins []string) *Handler {
	return &Handler{server: server, origins: origins, calls: inflight.NewGauge(maxCalls)}
}

// CheckOrigin returns an error unless s is an origin as browsers send it: scheme://host[:port],
// without the scheme's default port.
func CheckOrigin(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("origin %q: %w", s, err)
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Hostname() == "" || strings.Contains(u.Host, "*"):
		return fmt.Errorf("origin %q: want https://HOST[:PORT], without patterns", s)
	case s != u.Scheme+"://"+u.Host || s != strings.ToLower(s):
		return fmt.Errorf("origin %q: want only scheme, host and port, in lower case", s)
	case u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80":
		return fmt.Errorf("origin %q: browsers leave out the default port", s)
	}
	return nil
}

// Handles reports whether a request is a call by gRPC-Web, or the preflight request of one.
func (h *Handler) Handles(r *http.Request) bool {
	switch r.Method {
	case http.MethodOptions:
		return r.Header.Get("Access-Control-Request-Method") != "" && h.server.Has(r.URL.Path)
	case http.MethodPost:
		return strings.HasPrefix(r.Header.Get("Content-Type"), binaryType)
	}
	return false
}

// ServeHTTP serves a request that Handles reports.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Add("Vary", "Origin")
	client := from(r)
	conn := connlimit.Of(client.LocalAddr)
	if origins := r.Header["Origin"]; len(origins) > 0 { // programs other than browsers send none
		if len(origins) != 1 || !slices.Contains(h.origins, origins[0]) {
			if conn != nil {
				conn.Refused()
			}
			http.Error(w, "pages of this origin may not use this apiserver (--web-origins)", http.StatusForbidden)
			return
		}
		header.Set("Access-Control-Allow-Origin", origins[0])
		header.Set("Access-Control-Expose-Headers", "grpc-status, grpc-message, grpc-status-details-bin")
	}
	if r.Method == http.MethodOptions { // without credentials, as any preflight request
		if conn != nil && !conn.Known() && !conn.Allow() {
			conn.Refused()
			http.Error(w, "too many requests on this connection", http.StatusTooManyRequests)
			return
		}
		header.Set("Access-Control-Allow-Methods", http.MethodPost)
		header.Set("Access-Control-Allow-Headers", strings.Join(requestHeaders, ", "))
		header.Set("Access-Control-Max-Age", preflightSeconds)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	text := false
	switch base, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(base) {
	case binaryType, binaryType + "+proto":
	case textType, textType + "+proto":
		text = true
	default:
		http.Error(w, "want application/grpc-web+proto or application/grpc-web-text+proto", http.StatusUnsupportedMediaType)
		return
	}
	c := newCall(w, r, text)
	c.finish(h.call(peer.NewContext(r.Context(), client), c))
}

// call runs a call and returns how it ended.
func (h *Handler) call(ctx context.Context, c *call) error {
	if !h.calls.Enter(1) {
		return status.Error(codes.ResourceExhausted, "too many calls in progress, please try again later")
	}
	defer h.calls.Leave(1)
	if limit := c.r.Header.Get("Grpc-Timeout"); limit != "" {
		d, ok := timeout(limit)
		if !ok {
			return status.Errorf(codes.Internal, "malformed grpc-timeout %q", limit)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	return h.server.Call(metadata.NewIncomingContext(ctx, incoming(c.r.Header)), c)
}

// incoming returns the metadata of a call: the headers that pages may send.
func incoming(h http.Header) metadata.MD {
	md := metadata.MD{}
	for name, values := range h {
		if name = strings.ToLower(name); slices.Contains(requestHeaders, name) || strings.HasPrefix(name, "impersonate-") {
			md[name] = values
		}
	}
	if agent := h.Get("X-User-Agent"); agent != "" {
		md["user-agent"] = []string{agent}
	} else if agent := h.Get("User-Agent"); agent != "" {
		md["user-agent"] = []string{agent}
	}
	return md
}

// from returns the client of a request. Its certificates are left out: a browser adds them by
// itself.
func from(r *http.Request) *peer.Peer {
	p := &peer.Peer{Addr: &net.TCPAddr{}}
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		p.Addr = net.TCPAddrFromAddrPort(a)
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		p.LocalAddr = local
	}
	return p
}

// timeout parses a grpc-timeout: up to eight digits and a unit.
func timeout(s string) (time.Duration, bool) {
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	unit := units[s[len(s)-1]]
	if err != nil || unit == 0 {
		return 0, false
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, true
	}
	return time.Duration(n) * unit, true
}

// Flags of a frame.
const (
	messageFrame  = 0x00
	trailersFrame = 0x80
)

// call is a call over HTTP. It implements rpc.Carrier.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	body    io.Reader
	text    bool

	header, trailer metadata.MD
	sent            bool // the header

	mu    sync.Mutex
	ended *status.Status // by WriteStatus
}

var _ rpc.Carrier = (*call)(nil)

func newCall(w http.ResponseWriter, r *http.Request, text bool) *call {
	c := &call{w: w, r: r, control: http.NewResponseController(w), body: r.Body, text: text, header: metadata.MD{}, trailer: metadata.MD{}}
	if text {
		c.body = base64.NewDecoder(base64.StdEncoding, r.Body)
	}
	_ = c.control.SetReadDeadline(time.Now().Add(bodyTimeout)) // tests' recorders have none
	return c
}

// Method implements grpc.ServerTransportStream.
func (c *call) Method() string { return c.r.URL.Path }

// SetHeader implements grpc.ServerTransportStream.
func (c *call) SetHeader(md metadata.MD) error {
	if c.sent {
		return errors.New("the header was sent before")
	}
	c.header = metadata.Join(c.header, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream.
func (c *call) SendHeader(md metadata.MD) error {
	if err := c.SetHeader(md); err != nil {
		return err
	}
	c.begin()
	return c.control.Flush()
}

// SetTrailer implements grpc.ServerTransportStream.
func (c *call) SetTrailer(md metadata.MD) error {
	c.trailer = metadata.Join(c.trailer, md)
	return nil
}

// ReadMessageHeader implements rpc.Carrier.
func (c *call) ReadMessageHeader(header []byte) error {
	_, err := io.ReadFull(c.body, header)
	if errors.Is(err, io.EOF) { // the body is complete: a stream of answers may take long
		_ = c.control.SetReadDeadline(time.Time{})
	}
	return c.readError(err)
}

// Read implements rpc.Carrier.
func (c *call) Read(n int) (mem.BufferSlice, error) {
	data, err := mem.ReadAll(io.LimitReader(c.body, int64(n)), mem.DefaultBufferPool())
	if err == nil && data.Len() < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		data.Free()
		return nil, c.readError(err)
	}
	return data, nil
}

// readError returns the error of a read: if WriteStatus has ended the call, its status.
func (c *call) readError(err error) error {
	var corrupt base64.CorruptInputError
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case c.ended != nil:
		return c.ended.Err()
	case errors.As(err, &corrupt):
		return status.Error(codes.InvalidArgument, "the body is not base64")
	}
	return err
}

// RecvCompress implements rpc.Carrier.
func (c *call) RecvCompress() string { return c.r.Header.Get("Grpc-Encoding") }

// WriteStatus implements rpc.Carrier.
func (c *call) WriteStatus(st *status.Status) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == nil {
		c.ended = st
	}
	return c.control.SetReadDeadline(time.Unix(1, 0))
}

// begin sends the header.
func (c *call) begin() {
	if c.sent {
		return
	}
	c.sent = true
	h := c.w.Header()
	kind := binaryType
	if c.text {
		kind = textType
	}
	h.Set("Content-Type", kind+"+proto")
	h.Set("X-Content-Type-Options", "nosniff")
	for name, values := range c.header {
		for _, v := range values {
			h.Add(name, encoded(name, v))
		}
	}
	c.w.WriteHeader(http.StatusOK)
}

// Send implements rpc.Carrier.
func (c *call) Send(message mem.BufferSlice) error {
	c.begin()
	return c.frame(messageFrame, message)
}

// frame sends a frame.
func (c *call) frame(flag byte, data mem.BufferSlice) error {
	n := data.Len()
	prefix := mem.SliceBuffer([]byte{flag, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	// A deadline in advance would end an idle HTTP/2 stream.
	guard := time.AfterFunc(stall, func() { _ = c.control.SetWriteDeadline(time.Unix(1, 0)) })
	defer guard.Stop()
	err := c.write(append(mem.BufferSlice{prefix}, data...))
	if err == nil {
		err = c.control.Flush()
	}
	if err != nil {
		return status.Errorf(codes.Unavailable, "the answer cannot be sent: %v", err)
	}
	return nil
}

// write writes bytes. As text, they are padded by themselves, so that the client can decode what
// it has received so far.
func (c *call) write(data mem.BufferSlice) (err error) {
	var w io.Writer = c.w
	if c.text {
		e := base64.NewEncoder(base64.StdEncoding, c.w)
		defer func() { err = errors.Join(err, e.Close()) }()
		w = e
	}
	for _, b := range data {
		if _, err := w.Write(b.ReadOnlyData()); err != nil {
			return err
		}
	}
	return nil
}

// finish sends the trailers.
func (c *call) finish(err error) {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	c.mu.Lock()
	if c.ended != nil {
		st = c.ended
	}
	c.mu.Unlock()
	c.begin()
	var text strings.Builder
	line := func(name, value string) { text.WriteString(name + ": " + value + "\r\n") }
	line("grpc-status", strconv.Itoa(int(st.Code())))
	if m := st.Message(); m != "" {
		line("grpc-message", percent(m))
	}
	if len(st.Proto().GetDetails()) > 0 {
		if data, err := proto.Marshal(st.Proto()); err == nil {
			line("grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(data))
		}
	}
	for name, values := range c.trailer {
		for _, v := range values {
			line(strings.ToLower(name), encoded(name, v))
		}
	}
	_ = c.frame(trailersFrame, mem.BufferSlice{mem.SliceBuffer(text.String())}) // fails if the client is gone
}

// encoded returns the value of a header or trailer: in base64 if its name says that it is binary,
// and otherwise in printable ASCII.
func encoded(name, value string) string {
	if strings.HasSuffix(strings.ToLower(name), "-bin") {
		return base64.RawStdEncoding.EncodeToString([]byte(value))
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, value)
}

// percent encodes a message as gRPC does.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
