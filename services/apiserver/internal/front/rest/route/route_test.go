package route

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for path, want := range map[string]Path{
		"/":                              {},
		"":                               {},
		"/healthz":                       {},
		"/apix":                          {},
		"/api":                           {Form: APIVersions},
		"/api/":                          {Form: APIVersions},
		"/apis":                          {Form: APIGroups},
		"/apis/apps":                     {Form: APIGroup, Group: "apps"},
		"/apis/apps/":                    {Form: APIGroup, Group: "apps"},
		"/api/v1":                        {Form: APIResources, Version: "v1"},
		"/api/v1/":                       {Form: APIResources, Version: "v1"},
		"/apis/apps/v1":                  {Form: APIResources, Group: "apps", Version: "v1"},
		"/api/v1/pods":                   {Form: Resource, Version: "v1", Resource: "pods"},
		"/api/v1/nodes/n1":               {Form: Resource, Version: "v1", Resource: "nodes", Name: "n1"},
		"/api/v1/nodes/n1/status":        {Form: Resource, Version: "v1", Resource: "nodes", Name: "n1", Subresource: "status"},
		"/api/v1/nodes/n1/proxy/a/b":     {Form: Resource, Version: "v1", Resource: "nodes", Name: "n1", Subresource: "proxy", Rest: "a/b"},
		"/api/v1/namespaces":             {Form: Resource, Version: "v1", Resource: "namespaces"},
		"/api/v1/namespaces/a":           {Form: Resource, Version: "v1", Resource: "namespaces", Name: "a"},
		"/api/v1/namespaces/a/":          {Form: Resource, Version: "v1", Resource: "namespaces", Name: "a"},
		"/api/v1/namespaces/a/status":    {Form: Resource, Version: "v1", Resource: "namespaces", Name: "a", Subresource: "status"},
		"/api/v1/namespaces/a/finalize":  {Form: Resource, Version: "v1", Resource: "namespaces", Name: "a", Subresource: "finalize"},
		"/api/v1/namespaces/a/pods":      {Form: Resource, Version: "v1", Namespace: "a", Resource: "pods"},
		"/api/v1/namespaces/a/pods/p":    {Form: Resource, Version: "v1", Namespace: "a", Resource: "pods", Name: "p"},
		"/api/v1//namespaces/a/pods/p":   {},
		"/api/v1/namespaces//pods":       {},
		"//api/v1/pods":                  {},
		"/api/v1/pods//":                 {Form: Resource, Version: "v1", Resource: "pods"},
		"/api/v1/nodes/n1/proxy//a//b":   {Form: Resource, Version: "v1", Resource: "nodes", Name: "n1", Subresource: "proxy", Rest: "/a//b"},
		"/api/v1/namespaces/a/pods/p/ex": {Form: Resource, Version: "v1", Namespace: "a", Resource: "pods", Name: "p", Subresource: "ex"},
		"/apis/apps/v1/namespaces/a/deployments/d/scale": {Form: Resource, Group: "apps", Version: "v1", Namespace: "a", Resource: "deployments", Name: "d", Subresource: "scale"},
		"/api/v1/watch/pods":                             {Form: Resource, Version: "v1", Resource: "pods", Watch: true},
		"/api/v1/watch/namespaces/a":                     {Form: Resource, Version: "v1", Resource: "namespaces", Name: "a", Watch: true},
		"/api/v1/watch/namespaces/a/pods/p":              {Form: Resource, Version: "v1", Namespace: "a", Resource: "pods", Name: "p", Watch: true},
		"/api/v1/watch":                                  {Form: NonResource},
	} {
		if got := Parse(path); got != want {
			t.Errorf("%q: got %+v, want %+v", path, got, want)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Parse("/apis/apps/v1/namespaces/a/deployments/d/scale") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { ParseQuery("limit=500&resourceVersion=0&watch=1") }); n > 1 {
		t.Errorf("query: %v allocations", n)
	}
}

func ptr[T any](v T) *T { return &v }

func TestParseQuery(t *testing.T) {
	for raw, want := range map[string]Query{
		"":                             {},
		"unknown=1&x":                  {},
		"labelSelector=a%3Db%2Cc":      {LabelSelector: "a=b,c"},
		"fieldSelector=a+b":            {FieldSelector: "a b"},
		"limit=500&continue=abc":       {Limit: 500, Continue: "abc"},
		"limit=1&limit=2":              {Limit: 1},
		"watch":                        {Watch: true},
		"watch=0":                      {},
		"watch=False":                  {},
		"watch=yes":                    {Watch: true},
		"watch=1;limit=5":              {},
		"labelSelector=%zz&limit=7":    {Limit: 7},
		"sendInitialEvents=false":      {SendInitialEvents: ptr(false)},
		"timeoutSeconds=5&timeout=10s": {TimeoutSeconds: ptr(int64(5)), Timeout: "10s"},
		"dryRun=All&dryRun=x":          {DryRun: []string{"All", "x"}},
		"force=true&fieldManager=m":    {Force: ptr(true), FieldManager: "m"},
		"fieldValidation=Strict":       {FieldValidation: "Strict"},
		"gracePeriodSeconds=0&propagationPolicy=Orphan&orphanDependents=0": {
			GracePeriodSeconds: ptr(int64(0)), PropagationPolicy: ptr("Orphan"), OrphanDependents: ptr(false),
		},
		"pretty&includeObject=None": {IncludeObject: "None"},
		"pretty=1":                  {Pretty: ptr(true)},
		"pretty=yes&pretty=1":       {Pretty: ptr(false)},
		"resourceVersion=5&resourceVersionMatch=Exact&allowWatchBookmarks=true": {
			ResourceVersion: "5", ResourceVersionMatch: "Exact", AllowWatchBookmarks: true,
		},
	} {
		if got := ParseQuery(raw); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", raw, got, want)
		}
	}
	for raw, bad := range map[string]func(Query) error{
		"limit=":             func(q Query) error { return q.BadLimit },
		"limit=a":            func(q Query) error { return q.BadLimit },
		"timeoutSeconds=1.5": func(q Query) error { return q.BadTimeoutSeconds },
		"gracePeriodSeconds=99999999999999999999": func(q Query) error { return q.BadGracePeriodSeconds },
	} {
		if bad(ParseQuery(raw)) == nil {
			t.Errorf("%q: no error", raw)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/api/v1/namespaces/a/pods/p/exec", "watch=1&limit=5")
	f.Add("/apis/apps/v1/watch/namespaces/x", "labelSelector=a%3Db")
	f.Fuzz(func(t *testing.T, path, query string) {
		p := Parse(path)
		for _, part := range []string{p.Group, p.Version, p.Namespace, p.Resource, p.Name, p.Subresource} {
			if strings.Contains(part, "/") {
				t.Errorf("%q: part %q", path, part)
			}
		}
		if p.Form == Resource && p.Resource == "" {
			t.Errorf("%q: %+v", path, p)
		}
		q := ParseQuery(query)
		// The standard library agrees on the queries that it accepts as well.
		values, err := url.ParseQuery(query)
		if err == nil && !strings.Contains(query, ";") && values.Get("labelSelector") != q.LabelSelector {
			t.Errorf("%q: %q, want %q", query, q.LabelSelector, values.Get("labelSelector"))
		}
	})
}
