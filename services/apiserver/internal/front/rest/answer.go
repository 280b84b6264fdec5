package rest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/pipeline"
)

// gzipFrom is the size in bytes from which a response is compressed, as in Kubernetes.
const gzipFrom = 128 << 10

// outcome sends the result of a read or write of one object.
func (x *exchange) outcome(code int, out *pipeline.Outcome) {
	if len(out.Warnings) > 0 {
		x.warn(out.Warnings)
	}
	switch {
	case out.Status != nil:
		s := *out.Status
		if s.Code == 0 {
			s.Code = int32(code)
		}
		x.answerStatus(int(s.Code), &s)
	case out.Other != nil:
		x.writeObject(code, subject{gvk: x.otherGVK(out), obj: out.Other})
	case out.Item != nil:
		x.writeObject(code, subjectOf(out.Item))
	default:
		x.fail(apierrors.NewInternalError(errors.New("the response is empty")))
	}
}

// otherGVK returns the kind of a response that is not of the row's kind.
func (x *exchange) otherGVK(out *pipeline.Outcome) schema.GroupVersionKind {
	if gvk := out.Other.GetObjectKind().GroupVersionKind(); gvk.Kind != "" {
		return gvk
	}
	if x.path.Subresource != "" {
		if gvk := x.kind.Subresources[x.path.Subresource].GVK; gvk.Kind != "" {
			return gvk
		}
	}
	return x.kind.GVK
}

func (x *exchange) writeObject(code int, s subject) {
	buf := getBuffer()
	defer putBuffer(buf)
	var err error
	if *buf, err = s.append(*buf, x.format, x.include, true); err != nil {
		x.fail(apierrors.NewInternalError(err))
		return
	}
	x.write(code, x.format.Encoding, buf)
}

// write sends a complete response. JSON is indented if necessary, and terminated.
func (x *exchange) write(code int, encoding negotiate.Encoding, buf *[]byte) {
	if encoding == negotiate.JSON {
		if x.pretty() {
			var out bytes.Buffer
			if json.Indent(&out, *buf, "", "  ") == nil {
				*buf = append((*buf)[:0], out.Bytes()...)
			}
		} else {
			*buf = append(*buf, '\n')
		}
	}
	header := x.Header()
	header["Content-Type"] = contentTypes[encoding]
	if len(*buf) >= gzipFrom && x.compress() {
		zip := x.startGzip(code)
		_, _ = zip.Write(*buf)
		endGzip(zip)
		return
	}
	header.Set("Content-Length", strconv.Itoa(len(*buf)))
	x.WriteHeader(code)
	_, _ = x.Write(*buf)
}

// contentTypes are header values that all responses share.
var contentTypes = [...][]string{
	negotiate.JSON:     {negotiate.MediaJSON},
	negotiate.YAML:     {negotiate.MediaYAML},
	negotiate.Protobuf: {negotiate.MediaProtobuf},
}

// writeStatus sends an error. If the client accepts no form of it, it is indented JSON.
func (x *exchange) writeStatus(s *metav1.Status) {
	format, ok := negotiate.Accept(x.r.Header.Get("Accept"), negotiate.Object)
	x.format = format
	if !ok {
		s.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		writeIndented(x, int(s.Code), s)
		return
	}
	x.answerStatus(int(s.Code), s)
}

// answerStatus sends a Status in the negotiated encoding.
func (x *exchange) answerStatus(code int, s *metav1.Status) {
	buf := getBuffer()
	defer putBuffer(buf)
	var err error
	if *buf, err = appendStatus(*buf, x.format.Encoding, s); err != nil {
		x.WriteHeader(http.StatusInternalServerError)
		return
	}
	x.write(code, x.format.Encoding, buf)
}

var statusGVK = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

// appendStatus appends the encoding of a Status.
func appendStatus(dst []byte, encoding negotiate.Encoding, s *metav1.Status) ([]byte, error) {
	if encoding == negotiate.Protobuf {
		message, err := s.Marshal()
		if err != nil {
			return dst, err
		}
		return appendEnveloped(dst, statusGVK, message), nil
	}
	typed := *s
	typed.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	if encoding == negotiate.YAML {
		text, err := appendText(nil, &typed)
		if err != nil {
			return dst, err
		}
		return appendYAML(dst, text)
	}
	return appendText(dst, &typed)
}

// compress reports whether a large response is compressed: if the client accepts it and is not on
// this machine, where compression costs both sides much more than it saves.
func (x *exchange) compress() bool {
	return negotiate.Gzip(x.r.Header.Get("Accept-Encoding")) && !local(x.r)
}

// local reports whether a request comes from this machine.
func local(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	remote := net.ParseIP(host)
	if remote == nil {
		return false
	}
	if remote.IsLoopback() {
		return true
	}
	own, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && own.IP.Equal(remote)
}

var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	return w
}}

func (x *exchange) startGzip(code int) *gzip.Writer {
	header := x.Header()
	header.Set("Content-Encoding", "gzip")
	header.Add("Vary", "Accept-Encoding")
	header.Del("Content-Length")
	x.WriteHeader(code)
	w := gzips.Get().(*gzip.Writer)
	w.Reset(struct{ io.Writer }{x})
	return w
}

func endGzip(w *gzip.Writer) {
	_ = w.Close()
	w.Reset(io.Discard)
	gzips.Put(w)
}
