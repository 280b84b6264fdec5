package pipeline

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/telemetry"
)

func requestUser(ctx context.Context) request.User { return request.UserFrom(ctx) }

// Commit executes independent writes together.
func (p *Pipeline) Commit(ctx context.Context, writes []Write) []Result {
	results := make([]Result, len(writes))
	changes := make([]*change, 0, len(writes))
	places := make([]int, 0, len(writes))
	for i := range writes {
		w := &writes[i]
		wctx := ctx
		if w.Traceparent != "" && mayTrace(request.UserFrom(ctx)) {
			wctx = telemetry.ContextWithTraceparent(ctx, w.Traceparent)
		}
		c, out, err := p.newWrite(wctx, w)
		if c == nil {
			results[i] = Result{Outcome: out, Err: p.statusOf(ctx, w.Target.Resource.GroupResource(), w.Target.Name, err)}
			continue
		}
		changes = append(changes, c)
		places = append(places, i)
	}
	p.run(ctx, changes...)
	for j, c := range changes {
		results[places[j]] = Result{Outcome: c.out, Err: c.err}
	}
	return results
}

func (p *Pipeline) newWrite(ctx context.Context, w *Write) (*change, *Outcome, error) {
	switch w.Verb {
	case "create":
		return p.newCreate(ctx, w.Target, w.Body, w.Options)
	case "update":
		c, err := p.newUpdate(ctx, w.Target, w.Body, w.Options)
		return c, nil, err
	case "patch":
		c, err := p.newPatch(ctx, w.Target, w.PatchType, w.Body, w.Options)
		return c, nil, err
	case "delete":
		c, err := p.newDelete(ctx, w.Target, w.Delete)
		return c, nil, err
	}
	return nil, nil, apierrors.NewBadRequest("a write of a batch must be a create, update, patch, apply or delete")
}

// Patch changes parts of an object.
func (p *Pipeline) Patch(ctx context.Context, t Target, kind types.PatchType, b Body, o WriteOptions) (*Outcome, error) {
	growStack()
	c, err := p.newPatch(ctx, t, kind, b, o)
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), t.Name, err)
	}
	p.run(ctx, c)
	return c.out, c.err
}
