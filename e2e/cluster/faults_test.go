package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
	"keelson.dev/e2e/internal/writer"
)

var (
	kills    = flag.Int("kills", 6, "how many processes TestKills kills")
	killSeed = flag.Uint64("seed", 1, "seed of TestKills")
)

// TestKills sends SIGKILL to random processes, services and containerd, one after the
// other. Each time the cluster recovers, no acknowledged write is lost, and containers
// that ran keep running.
func TestKills(t *testing.T) {
	ns := namespace(t)
	shared.Apply(t, strings.Replace(webManifest, "replicas: 1", "replicas: 3", 1), "-n", ns)
	shared.Kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s")
	before := containers(t, ns)
	random := rand.New(rand.NewPCG(*killSeed, 0))
	t.Logf("seed %d, %d kills", *killSeed, *kills)
	written := 0
	for i := range *kills {
		list := processes(t)
		victim := list[random.IntN(len(list))]
		// Writes go on while it dies; only the acknowledged ones count.
		ctx, stop := context.WithCancel(t.Context())
		var w writer.Writer
		var writing sync.WaitGroup
		writing.Go(func() {
			w.Run(ctx, fmt.Sprintf("w-%d", i), func(name string) error {
				_, err := shared.Run(context.WithoutCancel(ctx), "kubectl", "-n", ns, "create", "configmap", name, "--request-timeout=5s")
				return err
			})
		})
		shared.Kill(t, victim, syscall.SIGKILL)
		began := time.Now()
		wait.For(t, time.Minute, fmt.Sprintf("kill %d: %s is replaced", i, victim.Name), func(ctx context.Context) error {
			return shared.Replaced(ctx, victim)
		})
		stop()
		writing.Wait()
		names := w.Names()
		converge(t, ns, i)
		t.Logf("kill %d: %s; the cluster had recovered after %s, with %d writes acknowledged meanwhile", i, victim.Name, time.Since(began).Round(10*time.Millisecond), len(names))
		found := shared.Kubectl(t, "-n", ns, "get", "configmaps", "-o", "name")
		for _, n := range names {
			if !strings.Contains(found, "configmap/"+n+"\n") {
				t.Errorf("kill %d (%s): %s was acknowledged and is lost", i, victim.Name, n)
			}
		}
		written += len(names)
	}
	if written == 0 {
		t.Error("no write was acknowledged")
	}
	if after := containers(t, ns); after != before {
		t.Errorf("containers changed.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// converge creates a pod, waits until it has run and deletes it.
func converge(t *testing.T, ns string, round int) {
	t.Helper()
	name := fmt.Sprintf("probe-%d", round)
	wait.For(t, time.Minute, "a pod can be created", func(ctx context.Context) error {
		_, err := shared.Run(ctx, "kubectl", "-n", ns, "run", name, "--image=keelson.dev/demo/busybox:1", "--restart=Never", "--command", "--", "true")
		if err != nil && strings.Contains(err.Error(), "AlreadyExists") {
			return nil // by an attempt whose answer was lost
		}
		return err
	})
	shared.Shows(t, time.Minute, "Succeeded", "-n", ns, "get", "pod", name, "-o", "jsonpath={.status.phase}")
	shared.Kubectl(t, "-n", ns, "delete", "pod", name, "--wait=false")
}

// containers lists the ids and start times of the containers of the namespace's web pods.
func containers(t *testing.T, ns string) string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				ContainerStatuses []struct {
					ContainerID string
					State       struct{ Running struct{ StartedAt string } }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(shared.Kubectl(t, "-n", ns, "get", "pods", "-l", "app=web", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, p := range list.Items {
		for _, c := range p.Status.ContainerStatuses {
			fmt.Fprintf(&out, "%s %s %s\n", p.Metadata.Name, c.ContainerID, c.State.Running.StartedAt)
		}
	}
	return out.String()
}

// TestContainerdPaused: a pod that is created while containerd does not answer runs once
// it does, and its trace shows the wait.
func TestContainerdPaused(t *testing.T) {
	ns := namespace(t)
	resume := shared.Stop(t, shared.Process(t, "containerd-node-2"))
	shared.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: waits, namespace: %s}
spec:
  nodeName: node-2
  restartPolicy: Never
  containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: ["true"]}]
`, ns))
	// Longer than the span looked for below, because the node takes a while until it asks
	// containerd.
	wait.Pause(t.Context(), 8*time.Second)
	resume()
	shared.Shows(t, time.Minute, "Succeeded", "-n", ns, "get", "pod", "waits", "-o", "jsonpath={.status.phase}")
	wait.For(t, time.Minute, "the trace has a span of 5 s or more", func(ctx context.Context) error {
		out, err := shared.Run(ctx, "keel", "trace", "pod/waits", "-n", ns, "-o", "json", "--home", shared.Home)
		if err != nil {
			return err
		}
		var trace struct {
			Spans []struct {
				Service string `json:"service"`
				Name    string `json:"name"`
				Start   int64  `json:"start_unix_nano"`
				End     int64  `json:"end_unix_nano"`
			} `json:"spans"`
		}
		if err := json.Unmarshal([]byte(out), &trace); err != nil {
			return err
		}
		for _, s := range trace.Spans {
			if s.Service == "node" && time.Duration(s.End-s.Start) >= 5*time.Second {
				return nil
			}
		}
		return fmt.Errorf("no span of the node is that long among %d", len(trace.Spans))
	})
	shared.Shows(t, time.Minute, " Ready ", "get", "node", "node-2", "--no-headers")
}
