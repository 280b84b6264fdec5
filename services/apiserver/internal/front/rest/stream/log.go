package stream

import (
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/front/podsession"
)

// logOptions parses and validates the query of a log request, with Kubernetes' messages.
func logOptions(pod string, q url.Values) (*nodev1.Logs, error) {
	logs := &nodev1.Logs{
		Follow:     flag(q, "follow"),
		Previous:   flag(q, "previous"),
		Timestamps: flag(q, "timestamps"),
		Stream:     q.Get("stream"),
	}
	for _, number := range []struct {
		name string
		to   **int64
	}{{"tailLines", &logs.TailLines}, {"limitBytes", &logs.LimitBytes}, {"sinceSeconds", &logs.SinceSeconds}} {
		if !q.Has(number.name) {
			continue
		}
		n, err := strconv.ParseInt(q.Get(number.name), 10, 64)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		*number.to = &n
	}
	if since := q.Get("sinceTime"); since != "" {
		at, err := time.Parse(time.RFC3339, since)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		nano := at.UnixNano()
		logs.SinceTimeUnixNano = &nano
	}
	return logs, podsession.Logs(pod, logs)
}

// flag parses a boolean parameter as Kubernetes does.
func flag(q url.Values, name string) bool {
	return q.Has(name) && q.Get(name) != "0" && !strings.EqualFold(q.Get(name), "false")
}

func (s *Server) log(w http.ResponseWriter, r *http.Request, pod *corev1.Pod) error {
	logs, err := logOptions(pod.Name, r.URL.Query())
	if err != nil {
		return err
	}
	if logs.Pod, err = podsession.Container(pod, r.URL.Query().Get("container")); err != nil {
		return err
	}
	if pod.Spec.NodeName == "" { // not scheduled yet: there is no log
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	session, err := s.open(r.Context(), pod, &nodev1.Open{Target: &nodev1.Open_Logs{Logs: logs}})
	if err != nil {
		return err
	}
	defer session.Close()
	if wsstream.IsWebSocketRequest(r) {
		reader, writer := io.Pipe()
		go func() { _ = writer.CloseWithError(session.Output(writer, nil)) }()
		err := wsstream.NewReader(reader, true, wsstream.NewDefaultReaderProtocols()).Copy(w, r)
		_ = reader.CloseWithError(io.ErrClosedPipe)
		if err != nil {
			s.cfg.Log.DebugContext(r.Context(), "log stream ended", "namespace", pod.Namespace, "pod", pod.Name, "error", err)
		}
		return nil
	}
	out := &logWriter{w: w, follow: logs.Follow}
	if err := session.Output(out, nil); err != nil && !out.begun {
		return err
	} else if err != nil {
		s.cfg.Log.DebugContext(r.Context(), "log stream ended", "namespace", pod.Namespace, "pod", pod.Name, "error", err)
		return nil
	}
	out.begin()
	return nil
}

// logWriter sends the header with the first bytes, so that an earlier failure of the node can
// still be returned as a Status.
type logWriter struct {
	w      http.ResponseWriter
	follow bool
	begun  bool
}

func (l *logWriter) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "text/plain")
		l.w.WriteHeader(http.StatusOK)
	}
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.begin()
	n, err := l.w.Write(p)
	if l.follow && err == nil {
		err = http.NewResponseController(l.w).Flush()
	}
	return n, err
}
