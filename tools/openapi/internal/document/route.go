package document

import (
	"net/http"
	"slices"

	"k8s.io/kube-openapi/pkg/common"
)

// route is one operation.
type route struct {
	method, path, id string
	description      string
	tags             []string
	parameters       []common.Parameter
	consumes         []string
	produces         []string
	metadata         map[string]any
	body             any
	answer           any
	codes            []int
}

var _ common.Route = (*route)(nil)

func (r *route) Method() string                 { return r.method }
func (r *route) Path() string                   { return r.path }
func (r *route) OperationName() string          { return r.id }
func (r *route) Parameters() []common.Parameter { return r.parameters }
func (r *route) Description() string            { return r.description }
func (r *route) Consumes() []string             { return r.consumes }
func (r *route) Produces() []string             { return r.produces }
func (r *route) Metadata() map[string]any       { return r.metadata }
func (r *route) RequestPayloadSample() any      { return r.body }
func (r *route) ResponsePayloadSample() any     { return r.answer }

func (r *route) StatusCodeResponses() []common.StatusCodeResponse {
	var out []common.StatusCodeResponse
	for _, code := range r.codes {
		out = append(out, response{code, r.answer})
	}
	return out
}

type response struct {
	code  int
	model any
}

func (r response) Code() int       { return r.code }
func (r response) Message() string { return http.StatusText(r.code) }
func (r response) Model() any      { return r.model }

// parameter is one parameter of an operation.
type parameter struct {
	name, description, dataType string
	kind                        common.ParameterKind
	required                    bool
}

var _ common.Parameter = parameter{}

func (p parameter) Name() string               { return p.name }
func (p parameter) Description() string        { return p.description }
func (p parameter) Required() bool             { return p.required }
func (p parameter) Kind() common.ParameterKind { return p.kind }
func (p parameter) DataType() string           { return p.dataType }
func (p parameter) AllowMultiple() bool        { return false }

// container contains the routes of a group and version.
type container struct{ routes []common.Route }

var _ common.RouteContainer = (*container)(nil)

func (c *container) RootPath() string                   { return "" }
func (c *container) PathParameters() []common.Parameter { return nil }
func (c *container) Routes() []common.Route             { return c.routes }

// without returns parameters except those with the given names.
func without(parameters []common.Parameter, names ...string) []common.Parameter {
	return slices.DeleteFunc(slices.Clone(parameters), func(p common.Parameter) bool {
		return slices.Contains(names, p.Name())
	})
}
