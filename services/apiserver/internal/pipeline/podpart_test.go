package pipeline_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/pipeline"
)

// part patches a subresource of a pod.
func (f *fixture) part(name, subresource, manager, text string) (*corev1.Pod, error) {
	f.Helper()
	out, err := f.Patch(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: name, Subresource: subresource},
		types.StrategicMergePatchType, pipeline.Body{Data: []byte(text), Type: pipeline.JSON}, pipeline.WriteOptions{FieldManager: manager})
	if err != nil {
		return nil, err
	}
	return out.Item.Object().(*corev1.Pod), nil
}

// owned returns what a manager owns through a subresource.
func owned(p *corev1.Pod, manager, subresource string) string {
	for _, e := range p.ManagedFields {
		if e.Manager == manager && e.Subresource == subresource {
			return e.FieldsV1.GetRawString()
		}
	}
	return ""
}

func TestEphemeralContainers(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(pod("a"))
	p, err := f.part("a", "ephemeralcontainers", "debug", `{"metadata":{"labels":{"a":"b"}},"spec":{"nodeName":"n","ephemeralContainers":[{"name":"e","image":"i","targetContainerName":"c"}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.EphemeralContainers) != 1 || p.Spec.NodeName != "" || len(p.Labels) != 0 || p.Generation != 2 {
		t.Errorf("containers %v, node %q, labels %v, generation %d", p.Spec.EphemeralContainers, p.Spec.NodeName, p.Labels, p.Generation)
	}
	fields := owned(p, "debug", "ephemeralcontainers")
	if !strings.Contains(fields, `"f:ephemeralContainers":`) || strings.Contains(fields, "f:labels") || strings.Contains(fields, "f:nodeName") {
		t.Errorf("the manager owns %s", fields)
	}
	if p, err = f.part("a", "ephemeralcontainers", "debug", `{"spec":{"ephemeralContainers":[{"name":"f","image":"i"}]}}`); err != nil || len(p.Spec.EphemeralContainers) != 2 {
		t.Errorf("a second container: %v", err)
	}
	_, err = f.part("a", "ephemeralcontainers", "debug", `{"spec":{"ephemeralContainers":[{"name":"e","image":"other"}]}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, `existing ephemeral containers "e" may not be changed`)
	_, err = f.part("a", "", "debug", `{"spec":{"ephemeralContainers":[{"name":"g","image":"i"}]}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "pod updates may not change fields other than")
	_, err = f.part("none", "ephemeralcontainers", "debug", `{"spec":{"ephemeralContainers":[{"name":"g","image":"i"}]}}`)
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `pods "none" not found`)
}

func TestResize(t *testing.T) {
	f := newFixture(t)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("requests.cpu", "2")})
	a := pod("a")
	a.Spec.Containers[0].Resources.Requests = amounts("cpu", "1")
	f.mustCreate(a)
	p, err := f.part("a", "resize", "scaler", `{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"other","resources":{"requests":{"cpu":"1500m"}}}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	c := &p.Spec.Containers[0]
	if c.Resources.Requests.Cpu().String() != "1500m" || c.Image != "i" || len(p.Labels) != 0 || p.Generation != 2 {
		t.Errorf("requests %v, image %q, labels %v, generation %d", c.Resources.Requests, c.Image, p.Labels, p.Generation)
	}
	fields := owned(p, "scaler", "resize")
	if !strings.Contains(fields, `"f:requests":{"f:cpu":{}}`) || strings.Contains(fields, "f:labels") || strings.Contains(fields, "f:image") {
		t.Errorf("the manager owns %s", fields)
	}
	if used := f.used("q", "requests.cpu"); used != "1500m" {
		t.Errorf("the quota counts %s", used)
	}
	_, err = f.part("a", "resize", "scaler", `{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"3"}}}]}}`)
	wantStatus(t, err, 403, metav1.StatusReasonForbidden, "exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=1500m, limited: requests.cpu=2")
	_, err = f.part("a", "resize", "scaler", `{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1500m","memory":"1Gi"},"requests":{"memory":"1Gi"}}}]}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "Pod QOS Class may not change as a result of resizing")
}
