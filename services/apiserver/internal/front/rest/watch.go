package rest

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/front/rest/table"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// minWatch is the minimum time after which a watch without timeoutSeconds ends; the maximum is
// twice as long. It is Kubernetes' value.
const minWatch = 30 * time.Minute

// stall is how long a watcher may leave bytes unread before it is disconnected. It can resume
// after what it has read.
const stall = 30 * time.Second

func (x *exchange) watch() {
	q := &x.query
	if !x.checkListOptions() {
		return
	}
	if !x.h.bounds.long.Enter(1) {
		x.fail(errBusy("watches"))
		return
	}
	defer x.h.bounds.long.Leave(1)
	target := x.target() // with a name, in the deprecated /watch/ form
	initial := q.SendInitialEvents != nil && *q.SendInitialEvents
	match := q.ResourceVersionMatch
	if !initial {
		match = "" // it only affects the initial state
	}
	if q.SendInitialEvents == nil && q.AllowWatchBookmarks && (q.ResourceVersion == "" || q.ResourceVersion == "0") {
		initial = true // as always; Kubernetes now also marks its end
	}
	duration := minWatch + rand.N(minWatch)
	if q.TimeoutSeconds != nil && *q.TimeoutSeconds > 0 {
		duration = time.Duration(min(*q.TimeoutSeconds, 1<<31)) * time.Second
	}
	ctx, cancel := untilDrain(x.ctx)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, duration)
	defer stop()
	// A watch that starts while the server stops is accepted, and ends at once.
	w, err := x.h.api.Watch(x.ctx, target, pipeline.WatchOptions{
		LabelSelector:        q.LabelSelector,
		FieldSelector:        q.FieldSelector,
		ResourceVersion:      q.ResourceVersion,
		ResourceVersionMatch: match,
		SendInitialEvents:    initial,
		NoInitialEvents:      q.SendInitialEvents != nil && !*q.SendInitialEvents,
		AllowBookmarks:       q.AllowWatchBookmarks,
	})
	if err != nil {
		x.fail(err)
		return
	}
	defer w.Close()
	defer x.h.metrics.running(x)()

	var socket *watchSocket
	if wsstream.IsWebSocketRequest(x.r) {
		if socket, err = x.openSocket(cancel); err != nil {
			return
		}
		defer socket.end()
	} else {
		header := x.Header()
		if x.format.Encoding == negotiate.Protobuf {
			header.Set("Content-Type", negotiate.MediaProtobuf+";stream=watch")
		} else {
			header["Content-Type"] = contentTypes[x.format.Encoding]
		}
		x.WriteHeader(http.StatusOK)
		x.Flush()
	}

	s := eventStream{socket: socket, x: x, format: x.format, include: x.include, columns: true, bookmarks: q.AllowWatchBookmarks, buf: getBuffer()}
	defer putBuffer(s.buf)
	s.guard = x.guardWrites()
	defer s.guard.Stop()
	s.name()
	for {
		events, err := w.Next(ctx)
		if err != nil {
			// If this apiserver cannot continue the watch, it ends normally, so that clients
			// resume it.
			if ctx.Err() == nil && !apierrors.IsServiceUnavailable(err) && !pipeline.IsWatchOver(err) {
				s.error(err)
			}
			return
		}
		if !s.send(events) {
			return
		}
	}
}

// eventStream writes the events of one watch.
type eventStream struct {
	x       *exchange
	format  negotiate.Format
	include table.Include
	columns bool // the next table includes its columns
	// bookmarks is true if the client wants bookmarks, including the one after the initial state.
	bookmarks bool
	buf       *[]byte
	guard     *time.Timer
	socket    *watchSocket // nil if the events are sent as a stream
	names     [4]string    // keys of the format in Frames, by type of event
}

var typeNames = [...]string{
	watchcache.Added:    "ADDED",
	watchcache.Modified: "MODIFIED",
	watchcache.Deleted:  "DELETED",
	watchcache.Bookmark: "BOOKMARK",
}

// name sets the keys under which encodings are shared.
func (s *eventStream) name() {
	for t := watchcache.Added; t <= watchcache.Deleted; t++ {
		s.names[t] = "rest/" + string([]byte{
			'0' + byte(s.format.Encoding), '0' + byte(s.format.Transform), '0' + byte(s.include), truth(s.format.Beta), '0' + byte(t),
		})
	}
}

func truth(b bool) byte {
	if b {
		return '1'
	}
	return '0'
}

// send writes events and flushes them. If it returns false, the watch ends.
func (s *eventStream) send(events []*watchcache.Event) bool {
	if s.format.List && len(events) > 0 {
		return false // an event is not a list: the watch ends, as in Kubernetes
	}
	buf := *s.buf
	for _, ev := range events {
		var (
			frame []byte
			err   error
		)
		switch {
		case ev.Type == watchcache.Bookmark && !s.bookmarks:
			continue
		case ev.Type == watchcache.Bookmark:
			frame, err = s.frame(ev.Type, s.bookmark(ev))
		case s.columns && s.format.Transform == negotiate.Table || ev.Frames == nil:
			frame, err = s.frame(ev.Type, subjectOf(ev.Item))
		default:
			frame, err = ev.Frames.Get(s.names[ev.Type], func() ([]byte, error) {
				return s.frame(ev.Type, subjectOf(ev.Item))
			})
		}
		if err != nil {
			s.x.h.log.ErrorContext(s.x.ctx, "cannot encode a watch event", "error", err)
			s.error(err)
			return false
		}
		s.columns = false
		if s.socket != nil {
			if !s.socket.send(frame) {
				return false
			}
			continue
		}
		buf = append(buf, frame...)
		if len(buf) >= flushAt {
			*s.buf = buf
			if !s.flush() {
				return false
			}
			buf = *s.buf
		}
	}
	*s.buf = buf
	return s.flush()
}

func (s *eventStream) flush() bool {
	if len(*s.buf) == 0 {
		return true
	}
	s.guard.Reset(stall)
	_, err := s.x.Write(*s.buf)
	*s.buf = (*s.buf)[:0]
	if err == nil {
		s.x.Flush()
	}
	return s.guard.Stop() && err == nil
}

// frame encodes one event.
func (s *eventStream) frame(t watchcache.EventType, sub subject) ([]byte, error) {
	if s.format.Encoding == negotiate.Protobuf {
		object, err := sub.append(nil, s.format, s.include, false)
		return protobufFrame(typeNames[t], object), err
	}
	dst := appendEventHead(nil, typeNames[t])
	dst, err := sub.append(dst, s.format, s.include, s.columns)
	return append(dst, "}\n"...), err
}

func appendEventHead(dst []byte, name string) []byte {
	dst = append(dst, `{"type":"`...)
	dst = append(dst, name...)
	return append(dst, `","object":`...)
}

// protobufFrame encodes a length and a bare WatchEvent: type (1) and object (2), a RawExtension
// that contains the object's envelope (1).
func protobufFrame(name string, object []byte) []byte {
	extension := 1 + protowire.SizeBytes(len(object))
	size := 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeBytes(extension)
	dst := make([]byte, 4, 4+size)
	binary.BigEndian.PutUint32(dst, uint32(size))
	dst = append(dst, 1<<3|2)
	dst = protowire.AppendString(dst, name)
	dst = append(dst, 2<<3|2)
	dst = protowire.AppendVarint(dst, uint64(extension))
	dst = append(dst, 1<<3|2)
	return protowire.AppendBytes(dst, object)
}

// bookmark returns the object of a bookmark: an empty one with a resourceVersion.
func (s *eventStream) bookmark(ev *watchcache.Event) subject {
	kind := s.x.kind
	obj := kind.New()
	obj.SetResourceVersion(strconv.FormatInt(int64(ev.Revision), 10))
	if ev.InitialEnd {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return subject{gvk: kind.GVK, kind: kind, obj: obj}
}

// error ends a watch with an ERROR event.
func (s *eventStream) error(err error) {
	text, encodeErr := appendStatus(nil, s.format.Encoding, status(err))
	if encodeErr != nil {
		return
	}
	var frame []byte
	if s.format.Encoding == negotiate.Protobuf {
		frame = protobufFrame("ERROR", text)
	} else {
		frame = append(append(appendEventHead(nil, "ERROR"), text...), "}\n"...)
	}
	if s.socket != nil {
		s.socket.send(frame)
		return
	}
	*s.buf = append((*s.buf)[:0], frame...)
	s.flush()
}
