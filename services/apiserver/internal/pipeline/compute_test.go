package pipeline_test

import (
	"context"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// usages is the source of a fixed set of objects.
type usages []*metricsv1beta1.PodMetrics

func (u usages) Get(_ context.Context, namespace, name string) (resource.Object, error) {
	for _, m := range u {
		if m.Namespace == namespace && m.Name == name {
			return m, nil
		}
	}
	return nil, apierrors.NewNotFound(metricsv1beta1.Resource("podmetrics"), namespace+"/"+name)
}

func (u usages) List(_ context.Context, namespace string, selector labels.Selector) ([]resource.Object, error) {
	var out []resource.Object
	for _, m := range u {
		if (namespace == "" || m.Namespace == namespace) && selector.Matches(labels.Set(m.Labels)) {
			out = append(out, m)
		}
	}
	return out, nil
}

func TestComputed(t *testing.T) {
	gvr := metricsv1beta1.SchemeGroupVersion.WithResource("pods")
	of := func(namespace, name string) *metricsv1beta1.PodMetrics {
		return &metricsv1beta1.PodMetrics{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}}}
	}
	f := newFixture(t, func(c *pipeline.Config) {
		c.Table.ByResource(gvr).Source = usages{of("ns", "b"), of("other", "a"), of("ns", "a")}
	})
	in := func(namespace, name string) pipeline.Target {
		return pipeline.Target{Resource: gvr, Namespace: namespace, Name: name}
	}
	for _, c := range []struct {
		namespace string
		o         pipeline.ListOptions
		want      string
	}{
		{"", pipeline.ListOptions{}, "[ns/a ns/b other/a]"},
		{"ns", pipeline.ListOptions{Limit: 1}, "[ns/a ns/b]"},
		{"", pipeline.ListOptions{LabelSelector: "app=a"}, "[ns/a other/a]"},
		{"", pipeline.ListOptions{FieldSelector: "metadata.name=a,metadata.namespace=ns"}, "[ns/a]"},
		{"", pipeline.ListOptions{FieldSelector: "metadata.namespace=other"}, "[other/a]"},
		{"", pipeline.ListOptions{FieldSelector: "metadata.name!=a"}, "[ns/b]"},
	} {
		list, err := f.List(f.ctx, in(c.namespace, ""), c.o)
		if err != nil {
			t.Fatal(err)
		}
		names := []string{}
		for _, item := range list.Items {
			names = append(names, item.Object().GetNamespace()+"/"+item.Object().GetName())
			if len(item.Raw) == 0 {
				t.Errorf("%s has no encoding", item.Key)
			}
		}
		if got := fmt.Sprint(names); got != c.want {
			t.Errorf("%q %+v: %s, want %s", c.namespace, c.o, got, c.want)
		}
	}
	if out, err := f.Get(f.ctx, in("ns", "a"), pipeline.GetOptions{}); err != nil || out.Item.Object().GetName() != "a" {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := f.Get(f.ctx, in("ns", "none"), pipeline.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an object that does not exist: %v", err)
	}
	if _, err := f.List(f.ctx, in("ns", ""), pipeline.ListOptions{LabelSelector: "a in b"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a selector that does not parse: %v", err)
	}
	if _, err := f.create(of("ns", "c")); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("create: %v", err)
	}
	if _, err := f.Watch(f.ctx, in("ns", ""), pipeline.WatchOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("watch: %v", err)
	}
	if _, err := f.Delete(f.ctx, in("ns", "a"), pipeline.DeleteOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("delete: %v", err)
	}
	nobody := request.WithUser(f.ctx, request.User{Name: "nobody"})
	if _, err := f.List(nobody, in("ns", ""), pipeline.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("without a right: %v", err)
	}
	nodes := pipeline.Target{Resource: metricsv1beta1.SchemeGroupVersion.WithResource("nodes")}
	if _, err := f.List(f.ctx, nodes, pipeline.ListOptions{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("without a source: %v", err)
	}
}
