package grpc

import (
	"strconv"

	"google.golang.org/protobuf/types/known/anypb"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/watchcache"
)

const (
	defaultPage = 500
	maxPage     = 5000
	// pageBytes ends a page before its size, so that it stays far below the
	// largest message.
	pageBytes = 4 << 20
)

// List implements ResourceService.
func (s *Service) List(r *resourcev1.ListRequest, stream resourcev1.ResourceService_ListServer) error {
	ctx := stream.Context()
	list, err := s.api.List(ctx, target(r.GetRef()), pipeline.ListOptions{
		LabelSelector: r.GetLabelSelector(), FieldSelector: r.GetFieldSelector(),
		ResourceVersion: r.GetResourceVersion(), ResourceVersionMatch: r.GetResourceVersionMatch(),
		Limit: r.GetLimit(), Continue: r.GetContinue(),
	})
	if err != nil {
		return wire(ctx, err)
	}
	page := int(r.GetPageSize())
	if page <= 0 {
		page = defaultPage
	}
	page = min(page, maxPage)
	version := strconv.FormatInt(int64(list.Revision), 10)
	for rest := list.Items; ; {
		n, size := 0, 0
		for n < len(rest) && n < page && size < pageBytes {
			size += len(rest[n].Raw)
			n++
		}
		out := &resourcev1.ListResponse{ResourceVersion: version, Items: make([]*anypb.Any, n)}
		for i, item := range rest[:n] {
			out.Items[i] = s.itemAny(item)
		}
		rest = rest[n:]
		if len(rest) == 0 {
			out.Continue = list.Continue
			if list.Remaining != nil {
				out.RemainingItemCount = *list.Remaining
			}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
		if len(rest) == 0 {
			return nil
		}
	}
}

// Watch implements ResourceService.
func (s *Service) Watch(r *resourcev1.WatchRequest, stream resourcev1.ResourceService_WatchServer) error {
	ctx := stream.Context()
	o := pipeline.WatchOptions{
		LabelSelector: r.GetLabelSelector(), FieldSelector: r.GetFieldSelector(),
		ResourceVersion:   r.GetResourceVersion(),
		SendInitialEvents: r.GetSendInitialEvents(), AllowBookmarks: r.GetAllowBookmarks(),
	}
	w, err := s.api.Watch(ctx, target(r.GetRef()), o)
	if err != nil {
		return wire(ctx, err)
	}
	defer w.Close()
	for {
		events, err := w.Next(ctx)
		if err != nil {
			return wire(ctx, err)
		}
		for _, ev := range events {
			if err := stream.Send(s.event(ev)); err != nil {
				return err
			}
		}
	}
}

// eventTypes are the types of events by their numbers on the wire.
var eventTypes = [...]resourcev1.WatchResponse_Type{
	watchcache.Added:    resourcev1.WatchResponse_TYPE_ADDED,
	watchcache.Modified: resourcev1.WatchResponse_TYPE_MODIFIED,
	watchcache.Deleted:  resourcev1.WatchResponse_TYPE_DELETED,
	watchcache.Bookmark: resourcev1.WatchResponse_TYPE_BOOKMARK,
}

func (s *Service) event(ev *watchcache.Event) *resourcev1.WatchResponse {
	out := &resourcev1.WatchResponse{
		Type:             eventTypes[ev.Type],
		ResourceVersion:  strconv.FormatInt(int64(ev.Revision), 10),
		InitialEventsEnd: ev.InitialEnd,
	}
	if ev.Item != nil {
		out.Object = s.itemAny(ev.Item)
		out.Traceparent = ev.Item.Traceparent
	}
	return out
}
