package grpc

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"google.golang.org/grpc/mem"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/pipeline"
)

const (
	defaultPage = 500
	maxPage     = 5000
	// pageBytes ends a page early, so that it remains far below the maximum message size.
	pageBytes = 4 << 20
	// minWatch is the minimum time after which the server ends a watch; the maximum is twice as
	// long. It is Kubernetes' value.
	minWatch = 30 * time.Minute
)

// List implements ResourceService.
func (s *Service) List(r *resourcev1.ListRequest, stream resourcev1.ResourceService_ListServer) error {
	ctx := stream.Context()
	describe(ctx, "list", r.GetRef())
	v, err := viewOf(r.GetView())
	if err != nil {
		return wire(ctx, err)
	}
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
		raws := make([][]byte, 0, min(len(rest), page))
		for n < len(rest) && n < page && size < pageBytes {
			raw, err := v.of(rest[n].Raw)
			if err != nil {
				return wire(ctx, err)
			}
			raws = append(raws, raw)
			size += len(raw)
			n++
		}
		items := rest[:n]
		cont, remaining := "", (*int64)(nil)
		if rest = rest[n:]; len(rest) == 0 {
			cont, remaining = list.Continue, list.Remaining
		}
		if err := stream.SendMsg(s.page(items, raws, v, version, cont, remaining)); err != nil {
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
	v, err := viewOf(r.GetView())
	if err != nil {
		return wire(ctx, err)
	}
	w, err := s.api.Watch(ctx, target(r.GetRef()), o)
	if err != nil {
		return wire(ctx, err)
	}
	defer w.Close()
	limited, stop := context.WithTimeout(ctx, s.lifetime())
	defer stop()
	for {
		events, err := w.Next(limited)
		if pipeline.IsWatchOver(err) || err != nil && limited.Err() != nil && ctx.Err() == nil {
			return nil // a normal end: the client resumes after the last event
		}
		if err != nil {
			return wire(ctx, err)
		}
		for _, ev := range events {
			frame, err := s.frame(ev, v)
			if err != nil {
				return wire(ctx, err)
			}
			if err := stream.SendMsg(encoded{mem.SliceBuffer(frame)}); err != nil {
				return err
			}
		}
	}
}

// lifetime returns the time after which a watch ends, to be resumed.
func (s *Service) lifetime() time.Duration {
	least := s.MinWatch
	if least == 0 {
		least = minWatch
	}
	return least + rand.N(least)
}
