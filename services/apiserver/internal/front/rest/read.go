package rest

import (
	"net/http"

	"keelson.dev/services/apiserver/internal/pipeline"
)

func (x *exchange) get() {
	out, err := x.h.api.Get(x.ctx, x.target(), pipeline.GetOptions{ResourceVersion: x.query.ResourceVersion})
	if err != nil {
		x.fail(err)
		return
	}
	x.outcome(http.StatusOK, out)
}

func (x *exchange) listOptions() pipeline.ListOptions {
	q := &x.query
	return pipeline.ListOptions{
		LabelSelector:        q.LabelSelector,
		FieldSelector:        q.FieldSelector,
		ResourceVersion:      q.ResourceVersion,
		ResourceVersionMatch: q.ResourceVersionMatch,
		Limit:                q.Limit,
		Continue:             q.Continue,
	}
}

func (x *exchange) list() {
	list, err := x.h.api.List(x.ctx, x.target(), x.listOptions())
	if err != nil {
		x.fail(err)
		return
	}
	x.writeList(list)
}
