package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// answer is what `keel why -o json` prints, as far as the test looks at it.
type answer struct {
	Code     string
	Healthy  bool
	Evidence []struct{ Source, Text string }
	Next     []string
	Because  *answer
}

// whyManifest is three workloads, each with a fault of its own, and one without.
const whyManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: noimage}
spec:
  selector: {matchLabels: {app: noimage}}
  template:
    metadata: {labels: {app: noimage}}
    spec: {containers: [{name: c, image: "keelson.dev/demo/missing:1", imagePullPolicy: Never}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: crash}
spec:
  selector: {matchLabels: {app: crash}}
  template:
    metadata: {labels: {app: crash}}
    spec: {containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sh, -c, "echo no database at db:5432; exit 3"]}]}
---
apiVersion: v1
kind: Service
metadata: {name: crash}
spec: {selector: {app: crash}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec: {containers: [{name: c, image: "keelson.dev/demo/busybox:1", resources: {requests: {cpu: "1000"}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: fine}
spec: {containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"]}]}
`

// TestWhy explains real faults by their codes, with what shows them.
func TestWhy(t *testing.T) {
	ns := namespace(t)
	shared.Apply(t, whyManifest, "-n", ns)
	for _, c := range []struct{ object, codes, evidence string }{
		{"deployment/noimage", "PodsNotAvailable ImageUnavailable", "status: container c is waiting: ErrImageNeverPull"},
		{"deployment/crash", "PodsNotAvailable ContainerExits", "log: c: no database at db:5432"},
		{"service/crash", "NoReadyEndpoints ContainerExits", "log: c: no database at db:5432"},
		{"pod/huge", "PodUnschedulable", "Insufficient cpu"},
		{"pod/fine", "Healthy", ""},
	} {
		explained(t, shared, ns, c.object, c.codes, c.evidence)
	}
	if out := shared.Keel(t, "why", "-n", ns, "pod/fine"); !strings.Contains(out, "pod/fine: it runs and is ready  [Healthy]") {
		t.Errorf("keel why pod/fine prints %q", out)
	}
	if _, err := shared.Run(t.Context(), "keel", "why", "--home", shared.Home, "-n", ns, "pod/absent"); err == nil || !strings.Contains(err.Error(), "pod/absent not found") {
		t.Errorf("keel why of a pod that does not exist: %v", err)
	}
}

// explained waits until keel why of an object answers with these codes, the object's own first,
// and with evidence that contains a text.
func explained(t *testing.T, cl *cluster.Cluster, ns, object, codes, evidence string) {
	t.Helper()
	wait.For(t, time.Minute, "the explanation of "+object, func(ctx context.Context) error {
		// The exit code says whether the object is healthy, so that only the output is looked at.
		out, _ := cl.Command(ctx, "keel", "why", "--home", cl.Home, "-n", ns, object, "-o", "json").Output()
		var a answer
		if err := json.Unmarshal(out, &a); err != nil {
			return fmt.Errorf("%w in %q", err, out)
		}
		var gotCodes, gotEvidence []string
		for at := &a; at != nil; at = at.Because {
			gotCodes = append(gotCodes, at.Code)
			for _, e := range at.Evidence {
				gotEvidence = append(gotEvidence, e.Source+": "+e.Text)
			}
		}
		if got := strings.Join(gotCodes, " "); got != codes {
			return fmt.Errorf("codes %s, want %s: %s", got, codes, out)
		}
		if got := strings.Join(gotEvidence, "\n"); !strings.Contains(got, evidence) {
			return fmt.Errorf("no %q in the evidence:\n%s", evidence, got)
		}
		return nil
	})
}
