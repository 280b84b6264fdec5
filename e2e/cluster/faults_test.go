package cluster_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	kills    = flag.Int("kills", 6, "how many processes TestKills kills")
	killSeed = flag.Uint64("seed", 1, "seed of TestKills")
)

// TestKills: kill -9 of random services and of containerd, one after the other.
// Each time the cluster converges; no acknowledged write is lost; containers that
// ran go on as they were.
func TestKills(t *testing.T) {
	ns := namespace(t)
	apply(t, strings.Replace(strings.Replace(webManifest, "replicas: 1", "replicas: 3", 1), "metadata: {name: web,", "metadata: {name: web, namespace: "+ns+",", 1))
	kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s")
	before := containers(t, ns)
	random := rand.New(rand.NewPCG(*killSeed, 0))
	t.Logf("seed %d, %d kills", *killSeed, *kills)
	written := 0
	for i := range *kills {
		list, err := status()
		if err != nil {
			t.Fatal(err)
		}
		victim := list[random.IntN(len(list))]
		// Writes go on while it dies; only the acknowledged ones count.
		stop, acknowledged := make(chan struct{}), make(chan []string)
		go writer(ns, i, stop, acknowledged)
		if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
			t.Fatalf("kill -9 of %s: %v", victim.Name, err)
		}
		killed[victim.Name]++
		began := time.Now()
		eventually(t, time.Minute, "kill "+strconv.Itoa(i)+" ("+victim.Name+"): healthy again", func() error {
			list, err := status()
			if err != nil {
				return err
			}
			for _, s := range list {
				if !s.Healthy {
					return fmt.Errorf("%s: %s", s.Name, s.Reason)
				}
				if s.Name == victim.Name && s.PID == victim.PID {
					return fmt.Errorf("%s still has pid %d", s.Name, s.PID)
				}
			}
			return nil
		})
		close(stop)
		names := <-acknowledged
		converge(t, ns, i)
		t.Logf("kill %d: %s, whole after %s, %d writes acknowledged meanwhile", i, victim.Name, time.Since(began).Round(10*time.Millisecond), len(names))
		found := kubectl(t, "-n", ns, "get", "configmaps", "-o", "name")
		for _, n := range names {
			if !strings.Contains(found, "configmap/"+n+"\n") {
				t.Errorf("kill %d (%s): the acknowledged %s is lost", i, victim.Name, n)
			}
		}
		written += len(names)
	}
	if written == 0 {
		t.Error("no write was acknowledged at all")
	}
	if after := containers(t, ns); after != before {
		t.Errorf("containers changed.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// writer creates ConfigMaps until it is told to stop, and says which were
// acknowledged.
func writer(ns string, round int, stop <-chan struct{}, acknowledged chan<- []string) {
	var names []string
	defer func() { acknowledged <- names }()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprintf("w-%d-%d", round, n)
		if _, err := try("kubectl", "-n", ns, "create", "configmap", name, "--request-timeout=5s"); err == nil {
			names = append(names, name)
		}
	}
}

// converge: a new pod is scheduled and runs, and is gone again.
func converge(t *testing.T, ns string, round int) {
	t.Helper()
	name := fmt.Sprintf("probe-%d", round)
	eventually(t, time.Minute, "a new pod", func() error {
		_, err := try("kubectl", "-n", ns, "run", name, "--image=keelson.dev/demo/busybox:1", "--restart=Never", "--command", "--", "true")
		if err != nil && strings.Contains(err.Error(), "AlreadyExists") {
			return nil // of a try whose answer was lost
		}
		return err
	})
	eventually(t, 60*time.Second, name+" has run", func() error {
		out, err := try("kubectl", "-n", ns, "get", "pod", name, "-o", "jsonpath={.status.phase}")
		if err == nil && out != "Succeeded" {
			err = fmt.Errorf("phase %q", out)
		}
		return err
	})
	kubectl(t, "-n", ns, "delete", "pod", name, "--wait=false")
}

// containers lists the ids and start times of the namespace's web containers.
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
	if err := json.Unmarshal([]byte(kubectl(t, "-n", ns, "get", "pods", "-l", "app=web", "-o", "json")), &list); err != nil {
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

// TestContainerdPaused: while containerd does not answer, its node is NotReady
// and says why; a pod that waits for it shows the wait in its trace.
func TestContainerdPaused(t *testing.T) {
	ns := namespace(t)
	list, err := status()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	for _, s := range list {
		if s.Name == "containerd-node-2" {
			pid = s.PID
		}
	}
	if pid == 0 {
		t.Fatal("no containerd-node-2")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	t.Cleanup(resume)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: waits, namespace: %s}
spec:
  nodeName: node-2
  restartPolicy: Never
  containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: ["true"]}]
`, ns))
	// The node may take a while until it asks containerd.
	pause := time.NewTimer(8 * time.Second)
	<-pause.C
	resume()
	eventually(t, time.Minute, "the pod runs once containerd goes on", func() error {
		out, err := try("kubectl", "-n", ns, "get", "pod", "waits", "-o", "jsonpath={.status.phase}")
		if err == nil && out != "Succeeded" {
			err = fmt.Errorf("phase %q", out)
		}
		return err
	})
	eventually(t, time.Minute, "a span of 5 s or more", func() error {
		out, err := try("keel", "trace", "pod/waits", "-n", ns, "-o", "json", "--home", shared.home)
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
	eventually(t, time.Minute, "node-2 is Ready again", func() error {
		out, err := try("kubectl", "get", "node", "node-2", "--no-headers")
		if err == nil && !strings.Contains(out, " Ready ") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}
