package rest

import (
	"net/http"

	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// checkListOptions checks the options of a list or watch that the pipeline's options cannot
// represent: whether sendInitialEvents was given at all. The pipeline checks the others.
func (x *exchange) checkListOptions() bool {
	q := &x.query
	if q.SendInitialEvents == nil && (x.verb != "watch" || q.ResourceVersionMatch == "") {
		return true
	}
	return x.checkOptions("ListOptions", validation.ValidateListOptions(&internalversion.ListOptions{
		Watch:                x.verb == "watch",
		SendInitialEvents:    q.SendInitialEvents,
		ResourceVersion:      q.ResourceVersion,
		ResourceVersionMatch: metav1.ResourceVersionMatch(q.ResourceVersionMatch),
		Continue:             q.Continue,
	}, true))
}

func (x *exchange) list() {
	if !x.checkListOptions() {
		return
	}
	list, err := x.h.api.List(x.ctx, x.target(), x.listOptions())
	if err != nil {
		x.fail(err)
		return
	}
	x.writeList(list)
}
