package front_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// usages is the source of one object.
type usages struct{ *metricsv1beta1.PodMetrics }

func (u usages) Get(_ context.Context, namespace, name string) (resource.Object, error) {
	if namespace != u.Namespace || name != u.Name {
		return nil, apierrors.NewNotFound(metricsv1beta1.Resource("podmetrics"), namespace+"/"+name)
	}
	return u.PodMetrics, nil
}

func (u usages) List(context.Context, string, labels.Selector) ([]resource.Object, error) {
	return []resource.Object{u.PodMetrics}, nil
}

// TestComputed reads a computed kind in every form.
func TestComputed(t *testing.T) {
	w := newWorld(t)
	want := &metricsv1beta1.PodMetrics{
		ObjectMeta: metav1.ObjectMeta{Namespace: "mine", Name: "p"}, Timestamp: metav1.Unix(1_700_000_000, 0), Window: metav1.Duration{Duration: 15e9},
		Containers: []metricsv1beta1.ContainerMetrics{
			{Name: "a", Usage: corev1.ResourceList{corev1.ResourceCPU: kresource.MustParse("100m"), corev1.ResourceMemory: kresource.MustParse("12Mi")}},
			{Name: "b", Usage: corev1.ResourceList{corev1.ResourceCPU: kresource.MustParse("1500u"), corev1.ResourceMemory: kresource.MustParse("1Mi")}},
		},
	}
	w.table.ByResource(metricsv1beta1.SchemeGroupVersion.WithResource("pods")).Source = usages{want}
	get := func(path, accept string) string {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, "/apis/metrics.k8s.io/v1beta1/namespaces/mine/"+path, nil)
		r.Header.Set("Authorization", "Bearer everything")
		r.Header.Set("Accept", accept)
		answer := httptest.NewRecorder()
		w.rest.ServeHTTP(answer, r)
		body, err := io.ReadAll(answer.Result().Body)
		if err != nil || answer.Code != http.StatusOK {
			t.Fatalf("%s as %s: %d %s, %v", path, accept, answer.Code, body, err)
		}
		return string(body)
	}
	var list metricsv1beta1.PodMetricsList
	text := get("pods", "application/json")
	if err := json.Unmarshal([]byte(text), &list); err != nil || list.ResourceVersion != "" || len(list.Items) != 1 || list.Items[0].Containers[1].Usage.Cpu().String() != "1500u" {
		t.Errorf("list: %s, %v", text, err)
	}
	if text := get("pods/p", "application/json"); !strings.Contains(text, `"kind":"PodMetrics"`) || !strings.Contains(text, `"window":"15s"`) {
		t.Errorf("object: %s", text)
	}
	var table metav1.Table
	text = get("pods", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if err := json.Unmarshal([]byte(text), &table); err != nil || len(table.ColumnDefinitions) != 4 || table.ColumnDefinitions[3].Name != "Window" {
		t.Fatalf("table: %s, %v", text, err)
	}
	if cells := table.Rows[0].Cells; cells[0] != "p" || cells[1] != "101500u" || cells[2] != "13Mi" || cells[3] != "15s" {
		t.Errorf("cells: %v", cells)
	}
	if raw := get("pods/p", "application/vnd.kubernetes.protobuf"); !strings.HasPrefix(raw, "k8s\x00") || !strings.Contains(raw, "metrics.k8s.io/v1beta1") {
		t.Errorf("protobuf: %q", raw)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer everything")
	ref := &resourcev1.Ref{Group: "metrics.k8s.io", Version: "v1beta1", Resource: "pods", Namespace: "mine", Name: "p"}
	resp, err := w.grpc.Get(ctx, &resourcev1.GetRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	var got metricsv1beta1.PodMetrics
	if err := got.Unmarshal(resp.GetObject().GetValue()); err != nil || got.Name != "p" || len(got.Containers) != 2 || !strings.HasSuffix(resp.GetObject().GetTypeUrl(), "/k8s.io.metrics.pkg.apis.metrics.v1beta1.PodMetrics") {
		t.Errorf("over gRPC: %s %+v, %v", resp.GetObject().GetTypeUrl(), got, err)
	}
	ref.Name = ""
	stream, err := w.grpc.List(ctx, &resourcev1.ListRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	items := 0
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		items += len(page.GetItems())
	}
	if items != 1 {
		t.Errorf("%d items over gRPC", items)
	}
}
