package pipeline_test

import (
	"context"
	"testing"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// allowAll is an Authorizer that allows everything.
type allowAll struct{}

func (allowAll) Authorize(context.Context, *request.Attributes) (bool, string, error) {
	return true, "", nil
}

// TestTracesAreForAuthenticatedUsers checks that an unauthenticated user cannot choose the trace
// of a write, neither in a batch nor with an annotation.
func TestTracesAreForAuthenticatedUsers(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	f := newFixture(t, func(c *pipeline.Config) { c.Authorizer = allowAll{} })
	for name, test := range map[string]struct {
		user request.User
		want string
	}{
		"user":      {request.User{Name: "ann", Groups: []string{authn.AuthenticatedGroup}}, trace},
		"anonymous": {request.User{Name: authn.Anonymous, Groups: []string{authn.UnauthenticatedGroup}}, ""},
	} {
		annotated := configMap(name + "-annotated")
		annotated.Annotations = map[string]string{"tracing.k8s.io/traceparent": trace}
		for _, w := range []pipeline.Write{
			{Verb: "create", Target: f.target(annotated), Body: f.body(annotated)},
			{Verb: "create", Target: f.target(annotated), Body: f.body(configMap(name + "-batch")), Traceparent: trace},
		} {
			w.Target.Name = ""
			r := f.Commit(request.WithUser(f.ctx, test.user), []pipeline.Write{w})[0]
			if r.Err != nil {
				t.Fatalf("%s: %v", name, r.Err)
			}
			if got := r.Outcome.Item.Traceparent; got != test.want {
				t.Errorf("%s: %s is stored with the trace context %q, want %q", name, r.Outcome.Item.Object().GetName(), got, test.want)
			}
		}
	}
}
