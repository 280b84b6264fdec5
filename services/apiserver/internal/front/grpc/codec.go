package grpc

import (
	"fmt"
	"strconv"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/apistatus"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Codec is the standard protobuf codec, except that it sends messages that are already encoded as
// they are, without a copy.
type Codec struct{ encoding.CodecV2 }

// NewCodec returns the codec of a server.
func NewCodec() Codec { return Codec{encoding.GetCodecV2(grpcproto.Name)} }

// encoded is an encoded message. Its bytes are shared and must not be modified.
type encoded mem.BufferSlice

// Marshal implements encoding.CodecV2.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(encoded); ok {
		return mem.BufferSlice(e), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if _, ok := v.(*resourcev1.CommitRequest); ok {
		if err := countWrites(data.Materialize()); err != nil {
			return err
		}
	}
	return c.CodecV2.Unmarshal(data, v)
}

// commitWrites is the field number of CommitRequest.writes.
const commitWrites protowire.Number = 1

// countWrites refuses a commit with too many writes before they are decoded, because an empty
// write takes two bytes. It leaves malformed messages to the decoder.
func countWrites(b []byte) error {
	n := 0
	for len(b) > 0 {
		num, typ, size := protowire.ConsumeField(b)
		if size < 0 {
			return nil
		}
		if num == commitWrites && typ == protowire.BytesType {
			n++
		}
		b = b[size:]
	}
	if n > maxWrites {
		return tooManyWrites(n)
	}
	return nil
}

// tooManyWrites returns a RequestEntityTooLarge error (413).
func tooManyWrites(n int) error {
	return apistatus.ToGRPC(&apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a commit contains %d writes; at most %d are allowed", n, maxWrites)).ErrStatus)
}

// Fields of the messages that are encoded here without their generated code, and of
// google.protobuf.Any.
const (
	anyURL   protowire.Number = 1
	anyValue protowire.Number = 2

	listItems     protowire.Number = 1
	listVersion   protowire.Number = 2
	listContinue  protowire.Number = 3
	listRemaining protowire.Number = 4

	watchType       protowire.Number = 1
	watchObject     protowire.Number = 2
	watchVersion    protowire.Number = 3
	watchTrace      protowire.Number = 4
	watchInitialEnd protowire.Number = 5
)

func stringSize(s string) int { return 1 + protowire.SizeBytes(len(s)) }

func appendString(b []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

// appendAnyHead appends field n, an Any, up to the bytes of its value.
func appendAnyHead(b []byte, n protowire.Number, url string, value int) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(stringSize(url)+1+protowire.SizeBytes(value)))
	b = appendString(b, anyURL, url)
	b = protowire.AppendTag(b, anyValue, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(value))
}

// page returns a ListResponse of items in a view, raws, which are the items' own bytes if they are
// whole.
func (s *Service) page(items []*watchcache.Item, raws [][]byte, v view, version, cont string, remaining *int64) encoded {
	const head = 16 // more than the tags and lengths of an item's Any
	size := 64 + len(cont)
	for _, item := range items {
		size += head + len(v.url(s.types.url(item.Kind)))
	}
	heads := make([]byte, 0, size)
	out := make(encoded, 0, 2*len(items)+1)
	for i, item := range items {
		start := len(heads)
		heads = appendAnyHead(heads, listItems, v.url(s.types.url(item.Kind)), len(raws[i]))
		out = append(out, mem.SliceBuffer(heads[start:len(heads):len(heads)]), mem.SliceBuffer(raws[i]))
	}
	start := len(heads)
	heads = appendString(heads, listVersion, version)
	if cont != "" {
		heads = appendString(heads, listContinue, cont)
	}
	if remaining != nil && *remaining != 0 {
		heads = protowire.AppendVarint(protowire.AppendTag(heads, listRemaining, protowire.VarintType), uint64(*remaining))
	}
	return append(out, mem.SliceBuffer(heads[start:]))
}

// eventTypes maps types of events to their values in the API.
var eventTypes = [...]resourcev1.WatchResponse_Type{
	watchcache.Added:    resourcev1.WatchResponse_TYPE_ADDED,
	watchcache.Modified: resourcev1.WatchResponse_TYPE_MODIFIED,
	watchcache.Deleted:  resourcev1.WatchResponse_TYPE_DELETED,
	watchcache.Bookmark: resourcev1.WatchResponse_TYPE_BOOKMARK,
}

// frame returns the WatchResponse of an event in a view. All watchers of the view share its bytes.
func (s *Service) frame(ev *watchcache.Event, v view) ([]byte, error) {
	if ev.Frames == nil {
		return s.appendEvent(ev, v)
	}
	return ev.Frames.Get(frameFormats[v], func() ([]byte, error) { return s.appendEvent(ev, v) })
}

func (s *Service) appendEvent(ev *watchcache.Event, v view) (b []byte, err error) {
	version := strconv.FormatInt(int64(ev.Revision), 10)
	var raw []byte
	var url string
	if ev.Item != nil {
		if raw, err = v.of(ev.Item.Raw); err != nil {
			return nil, err
		}
		url = v.url(s.types.url(ev.Item.Kind))
		b = make([]byte, 0, len(raw)+len(url)+len(ev.Item.Traceparent)+64)
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, watchType, protowire.VarintType), uint64(eventTypes[ev.Type]))
	if ev.Item != nil {
		b = appendAnyHead(b, watchObject, url, len(raw))
		b = append(b, raw...)
	}
	b = appendString(b, watchVersion, version)
	if ev.Item != nil && ev.Item.Traceparent != "" {
		b = appendString(b, watchTrace, ev.Item.Traceparent)
	}
	if ev.InitialEnd {
		b = protowire.AppendVarint(protowire.AppendTag(b, watchInitialEnd, protowire.VarintType), 1)
	}
	return b, nil
}
