package cluster_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// fencedManifest is a StatefulSet whose pods stop if their node is cut off. Each container
// is one process, whose environment names its pod.
const fencedManifest = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}, annotations: {keelson.dev/fencing: lease}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: keelson.dev/demo/busybox:1
        command: [sleep, "36000"]
        env: [{name: E2E_FENCED, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
`

// identities returns the processes of the pods of fencedManifest on this machine, which all
// nodes share, by the pod's name.
func identities() map[string][]string {
	out := map[string][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if !bytes.HasSuffix(line, []byte("sleep\x0036000\x00")) {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		for v := range strings.SplitSeq(string(environ), "\x00") {
			if name, ok := strings.CutPrefix(v, "E2E_FENCED="); ok {
				out[name] = append(out[name], filepath.Base(dir))
			}
		}
	}
	return out
}

// TestFencedPodsMove cuts nodes off: while the node's containerd does not answer, and while its
// agent is killed. The node's pods are replaced elsewhere, and no identity ever has two
// processes at once.
func TestFencedPodsMove(t *testing.T) {
	ns := namespace(t)
	shared.Apply(t, fencedManifest, "-n", ns)
	// pods returns "name node uid ready" of the pods that are ready.
	pods := func(ctx context.Context) ([][]string, error) {
		out, err := shared.Run(ctx, "kubectl", "-n", ns, "get", "pods", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		var all [][]string
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 4 && f[3] == "True" {
				all = append(all, f)
			}
		}
		return all, err
	}
	ready := func(ctx context.Context) error {
		all, err := pods(ctx)
		if err == nil && len(all) != 3 {
			err = fmt.Errorf("ready: %v", all)
		}
		return err
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := shared.Run(context.Background(), "kubectl", "-n", ns, "get", "pods,events,nodes", "-o", "wide")
			t.Log(out)
		}
	})
	wait.For(t, 2*time.Minute, "three pods are ready", ready)
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for ctx.Err() == nil {
			for name, processes := range identities() {
				if len(processes) > 1 {
					t.Errorf("%s has the processes %v", name, processes)
				}
			}
			wait.Pause(ctx, 50*time.Millisecond)
		}
	})
	defer func() { stop(); watching.Wait() }()
	for _, fault := range []string{"containerd paused", "agent killed"} {
		all, err := pods(t.Context())
		if err != nil || len(all) == 0 {
			t.Fatalf("pods %v, error %v", all, err)
		}
		node := all[0][1]
		var old []string
		for _, p := range all {
			if p[1] == node {
				old = append(old, p[2])
			}
		}
		// The node's promise names a pod from the renewal after its start.
		wait.For(t, time.Minute, "the node's lease names the pods", func(ctx context.Context) error {
			named, err := shared.Run(ctx, "kubectl", "-n", "kube-node-lease", "get", "lease", node, "-o", `jsonpath={.metadata.annotations.keelson\.dev/fenced-pods}`)
			if err == nil && slices.ContainsFunc(old, func(uid string) bool { return !strings.Contains(named, uid) }) {
				err = fmt.Errorf("it names %q, not all of %v", named, old)
			}
			return err
		})
		resume := func() {}
		if fault == "containerd paused" {
			resume = shared.Stop(t, shared.Process(t, "containerd-"+node))
		}
		began := time.Now()
		plug := unplug(t, node)
		if fault == "agent killed" {
			shared.Kill(t, shared.Process(t, node), syscall.SIGKILL)
		}
		wait.For(t, 2*time.Minute, "the pods of "+node+" run elsewhere; fault: "+fault, func(ctx context.Context) error {
			all, err := pods(ctx)
			if err == nil && (len(all) != 3 || slices.ContainsFunc(all, func(p []string) bool { return p[1] == node || slices.Contains(old, p[2]) })) {
				err = fmt.Errorf("ready: %v", all)
			}
			return err
		})
		t.Logf("%d pods of %s run elsewhere after %v; fault: %s", len(old), node, time.Since(began).Round(10*time.Millisecond), fault)
		resume()
		plug()
		shared.Shows(t, time.Minute, " Ready ", "get", "node", node, "--no-headers")
	}
}
