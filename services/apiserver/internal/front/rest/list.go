package rest

import (
	"compress/gzip"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
)

// flushAt is how many bytes of a list are buffered before they are sent.
const flushAt = 256 << 10

// listWriter sends a list in pieces, so that memory use does not grow with the list.
type listWriter struct {
	x     *exchange
	buf   *[]byte
	zip   *gzip.Writer
	whole bool // buffer everything, to be converted at the end
	begun bool
	err   error
}

// flush sends the buffer if it is large enough, or the last.
func (w *listWriter) flush(last bool) {
	if w.err != nil || !last && (w.whole || len(*w.buf) < flushAt) {
		return
	}
	if !w.begun {
		w.begun = true
		w.x.Header()["Content-Type"] = contentTypes[w.x.format.Encoding]
		if !(last && len(*w.buf) < gzipFrom) && w.x.compress() {
			w.zip = w.x.startGzip(http.StatusOK)
		} else {
			w.x.WriteHeader(http.StatusOK)
		}
	}
	if w.zip != nil {
		_, w.err = w.zip.Write(*w.buf)
	} else {
		_, w.err = w.x.Write(*w.buf)
	}
	*w.buf = (*w.buf)[:0]
}

func (w *listWriter) end() {
	w.flush(true)
	if w.zip != nil {
		endGzip(w.zip)
	}
}

func (x *exchange) writeList(list *pipeline.List) {
	meta := &metav1.ListMeta{
		Continue:           list.Continue,
		RemainingItemCount: list.Remaining,
	}
	if !list.Kind.Computed {
		meta.ResourceVersion = strconv.FormatInt(int64(list.Revision), 10)
	}
	w := &listWriter{x: x, buf: getBuffer()}
	defer putBuffer(w.buf)
	var err error
	if x.format.Encoding == negotiate.Protobuf {
		err = x.protobufList(w, meta, list)
	} else {
		w.whole = x.format.Encoding == negotiate.YAML || x.pretty()
		err = x.textList(w, meta, list, func(s *subject, dst []byte) ([]byte, error) {
			switch x.format.Transform {
			case negotiate.Table:
				return s.appendRow(dst, x.include, x.format.Beta)
			case negotiate.PartialMetadata:
				return s.appendPartial(dst, x.format.Beta)
			}
			return s.appendJSON(dst, false)
		})
	}
	switch {
	case err != nil:
		x.fail(apierrors.NewInternalError(err))
	case w.whole:
		if x.format.Encoding == negotiate.YAML {
			text := *w.buf
			if *w.buf, err = appendYAML(nil, text); err != nil {
				x.fail(apierrors.NewInternalError(err))
				return
			}
		}
		x.write(http.StatusOK, x.format.Encoding, w.buf)
	default:
		w.end()
	}
}

// protobufList writes the items' messages one after another, unmodified.
func (x *exchange) protobufList(w *listWriter, meta *metav1.ListMeta, list *pipeline.List) error {
	gvk := list.Kind.GVK
	gvk.Kind += "List"
	part := func(raw []byte) ([]byte, error) { return raw, nil }
	if x.format.Transform == negotiate.PartialMetadata {
		gvk = metaGVK("PartialObjectMetadataList", x.format.Beta)
		part = metadataField
	}
	head, err := meta.Marshal()
	if err != nil {
		return err
	}
	size := 1 + protowire.SizeBytes(len(head))
	for _, item := range list.Items {
		raw, err := part(item.Raw)
		if err != nil {
			return err
		}
		size += 1 + protowire.SizeBytes(len(raw))
	}
	buf := codec.AppendEnvelopeHead(*w.buf, gvk, size)
	if total := len(buf) + size + len(codec.EnvelopeTail); total < gzipFrom || !x.compress() {
		x.Header().Set("Content-Length", strconv.Itoa(total))
	}
	buf = append(buf, 1<<3|2)
	buf = protowire.AppendBytes(buf, head)
	for _, item := range list.Items {
		raw, err := part(item.Raw)
		if err != nil {
			return err
		}
		buf = append(buf, 2<<3|2)
		buf = protowire.AppendBytes(buf, raw)
		if len(buf) >= flushAt {
			*w.buf = buf
			if w.flush(false); w.err != nil {
				return nil // the client has disconnected
			}
			buf = *w.buf
		}
	}
	*w.buf = append(buf, codec.EnvelopeTail...)
	return nil
}

// textList writes a list as JSON.
func (x *exchange) textList(w *listWriter, meta *metav1.ListMeta, list *pipeline.List, item func(*subject, []byte) ([]byte, error)) error {
	buf := *w.buf
	var err error
	switch x.format.Transform {
	case negotiate.Table:
		buf, err = appendTableHead(buf, meta, list.Kind, x.format.Beta, true)
	default:
		gvk := list.Kind.GVK
		gvk.Kind += "List"
		if x.format.Transform == negotiate.PartialMetadata {
			gvk = metaGVK("PartialObjectMetadataList", x.format.Beta)
		}
		buf = append(appendTypeMeta(buf, gvk), `,"metadata":`...)
		if buf, err = appendText(buf, meta); err == nil {
			buf = append(buf, `,"items":[`...)
		}
	}
	if err != nil {
		return err
	}
	var marked resource.Object
	if pick := list.Kind.PickDefault; pick != nil && x.format.Transform == negotiate.Table {
		marked = pick(func(yield func(resource.Object) bool) {
			for _, it := range list.Items {
				if !yield(it.Object()) {
					return
				}
			}
		})
	}
	for i, it := range list.Items {
		if i > 0 {
			buf = append(buf, ',')
		}
		s := subjectOf(it)
		s.marked = marked != nil && s.object().GetName() == marked.GetName()
		if buf, err = item(&s, buf); err != nil {
			return err
		}
		if len(buf) >= flushAt && !w.whole {
			*w.buf = buf
			if w.flush(false); w.err != nil {
				return nil // the client has disconnected
			}
			buf = *w.buf
		}
	}
	buf = append(buf, "]}"...)
	if !w.whole {
		buf = append(buf, '\n')
	}
	*w.buf = buf
	return nil
}
