package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/front/rest/route"
	"keelson.dev/services/apiserver/internal/front/rest/table"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
)

// exchange is a request and its response. It is the ResponseWriter for everything below the
// front, so that the status and the size are known for logs and metrics.
type exchange struct {
	http.ResponseWriter
	h    *Handler
	r    *http.Request
	ctx  context.Context
	path route.Path
	kind *resource.Kind
	verb string

	format  negotiate.Format
	include table.Include // for tables
	query   route.Query

	code        int
	size        int64
	wroteHeader bool
	hijacked    bool
	long        bool // a watch or a stream
	broken      bool
}

// WriteHeader records the status.
func (x *exchange) WriteHeader(code int) {
	if !x.wroteHeader && code >= 200 || code == http.StatusSwitchingProtocols {
		x.code, x.wroteHeader = code, true
	}
	x.ResponseWriter.WriteHeader(code)
}

// Write records the size.
func (x *exchange) Write(p []byte) (int, error) {
	if !x.wroteHeader {
		x.code, x.wroteHeader = http.StatusOK, true
	}
	n, err := x.ResponseWriter.Write(p)
	x.size += int64(n)
	return n, err
}

// Unwrap is used by http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// Flush implements http.Flusher.
func (x *exchange) Flush() {
	if !x.wroteHeader {
		x.code, x.wroteHeader = http.StatusOK, true
	}
	if f, ok := x.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Hijack implements http.Hijacker, for connections that become streams.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(x.ResponseWriter).Hijack()
	if err == nil {
		x.hijacked, x.wroteHeader = true, true
		if x.code == 0 {
			x.code = http.StatusSwitchingProtocols
		}
	}
	return conn, rw, err
}

// target returns the target that the path names.
func (x *exchange) target() pipeline.Target {
	return pipeline.Target{
		Resource:    schema.GroupVersionResource{Group: x.path.Group, Version: x.path.Version, Resource: x.path.Resource},
		Subresource: x.path.Subresource,
		Namespace:   x.path.Namespace,
		Name:        x.path.Name,
	}
}

// pretty reports whether JSON is indented: if the client asks for it, or is a browser or a
// command-line tool.
func (x *exchange) pretty() bool {
	if x.format.Pretty {
		return true
	}
	if x.query.Pretty != nil {
		return *x.query.Pretty
	}
	agent := x.r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

// readBody reads a body of bounded size within a bounded time.
func (x *exchange) readBody() ([]byte, error) {
	r := x.r
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, errEncoding(e)
	}
	if r.ContentLength > maxBody {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
	}
	if n := r.ContentLength; n < 0 || n > preauthorize {
		if n < 0 {
			n = maxBody
		}
		if !x.h.bounds.bodies.Enter(n) {
			return nil, errBusy("large requests")
		}
		defer x.h.bounds.bodies.Leave(n)
	}
	timer := time.AfterFunc(x.h.cfg.BodyTimeout, func() {
		_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(time.Unix(1, 0))
	})
	data, err := readAll(r.Body, r.ContentLength)
	if !timer.Stop() && err != nil {
		return nil, apierrors.NewTimeoutError("the body of the request did not arrive in time", 0)
	}
	if err != nil {
		if errors.Is(err, errTooLarge) {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
		}
		return nil, apierrors.NewBadRequest("reading the body of the request: " + err.Error())
	}
	return data, nil
}

var errTooLarge = errors.New("body too large")

// firstRead is how many bytes are allocated at most before any of the body has arrived.
const firstRead = 16 << 10

// readAll reads a body with the given Content-Length (-1 if there is none). Memory use grows with
// what arrives.
func readAll(body io.Reader, announced int64) ([]byte, error) {
	if announced < 0 {
		data, err := io.ReadAll(io.LimitReader(body, maxBody+1))
		if err == nil && len(data) > maxBody {
			err = errTooLarge
		}
		return data, err
	}
	total := int(announced)
	data := make([]byte, min(total, firstRead))
	have := 0
	for {
		n, err := io.ReadFull(body, data[have:])
		have += n
		if err != nil || have == total {
			return data[:have], err
		}
		grown := make([]byte, min(total, 4*len(data)))
		copy(grown, data)
		data = grown
	}
}

// timeout bounds the request's context, unless the request is a watch or a stream.
func (x *exchange) timeout() (context.CancelFunc, error) {
	limit := x.h.cfg.RequestTimeout
	if asked := x.query.Timeout; asked != "" {
		d, err := time.ParseDuration(asked)
		if err != nil {
			return nil, apierrors.NewBadRequest("invalid timeout specified in the request URL - " + err.Error())
		}
		if d > 0 && d < limit {
			limit = d
		}
	}
	var cancel context.CancelFunc
	x.ctx, cancel = context.WithTimeout(x.ctx, limit)
	return cancel, nil
}
