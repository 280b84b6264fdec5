package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// pressureManifest is two neighbours and five pods that misbehave once a file /go/now exists.
const pressureManifest = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
    - {name: c, image: "keelson.dev/demo/nginx:1", readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}, resources: {limits: {cpu: 200m, memory: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec: {containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"], resources: {requests: {memory: 10Mi}}}]}
` + misbehaves + `
metadata: {name: hog}
spec:
  volumes: [{name: go, emptyDir: {medium: Memory}}]
  containers:
    - name: c
      image: "keelson.dev/demo/busybox:1"
      volumeMounts: [{name: go, mountPath: /go}]
      command: [sh, -c, "until [ -e /go/now ]; do sleep 0.1; done; while :; do head -c 20000000 /dev/zero; sleep 0.1; done | tail -c 2000000000"]
` + misbehaves + `
metadata: {name: filler}
spec:
  volumes: [{name: go, emptyDir: {medium: Memory}}, {name: data, emptyDir: {}}]
  containers:
    - name: c
      image: "keelson.dev/demo/busybox:1"
      volumeMounts: [{name: go, mountPath: /go}, {name: data, mountPath: /data}]
      command: [sh, -c, "until [ -e /go/now ]; do sleep 0.1; done; while head -c 2000000 /dev/zero >> /data/file; do sleep 0.05; done; sleep 3600"]
` + misbehaves + `
metadata: {name: spammer}
spec:
  volumes: [{name: go, emptyDir: {medium: Memory}}]
  containers:
    - name: c
      image: "keelson.dev/demo/busybox:1"
      volumeMounts: [{name: go, mountPath: /go}]
      resources: {limits: {ephemeral-storage: 10Mi}}
      command: [sh, -c, "until [ -e /go/now ]; do sleep 0.1; done; while :; do head -c 100000 /dev/zero | tr '\\0' x | fold -w 1000; echo; sleep 0.05; done"]
` + misbehaves + `
metadata: {name: hoarder}
spec:
  volumes: [{name: go, emptyDir: {medium: Memory}}, {name: data, emptyDir: {sizeLimit: 5Mi}}]
  containers:
    - name: c
      image: "keelson.dev/demo/busybox:1"
      volumeMounts: [{name: go, mountPath: /go}, {name: data, mountPath: /data}]
      command: [sh, -c, "until [ -e /go/now ]; do sleep 0.1; done; head -c 8000000 /dev/zero > /data/file; sleep 3600"]
` + misbehaves + `
metadata: {name: bomb}
spec:
  volumes: [{name: go, emptyDir: {medium: Memory}}]
  containers:
    - name: c
      image: "keelson.dev/demo/busybox:1"
      volumeMounts: [{name: go, mountPath: /go}]
      command: [sh, -c, "until [ -e /go/now ]; do sleep 0.1; done; while :; do sleep 3600 & done"]
`

// misbehaves begins another pod.
const misbehaves = `---
apiVersion: v1
kind: Pod`

// latecomer is bound to the node while it is under pressure.
const latecomer = misbehaves + `
metadata: {name: late}
spec:
  nodeName: node-0
  containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"]}]
`

// TestPressure runs a memory hog, a fork bomb, a disk filler, a log spammer and a pod that
// exceeds the limit of its volume on one small node: the neighbours keep serving, the right
// pods are evicted, and keel why says so. The node's disk is a file system of 256 MiB, and
// its pods' memory is limited to 1 GiB.
func TestPressure(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk") // removed after the cluster
	c := cluster.New(t)
	c.Keel(t, "up", "--nodes", "0")
	disk := filepath.Join(c.Home, "nodes", "node-0", "agent")
	if err := errors.Join(os.MkdirAll(disk, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, disk}} { // keel delete unmounts it
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
	}
	c.Keel(t, "up", "--nodes", "1",
		"--node-flag", "capacity=memory=1Gi",
		"--node-flag", "eviction-hard=allocatableMemory.available<300Mi,nodefs.available<40%",
		"--node-flag", "disk-reserve=0", // the machine's disk, which holds the images, is not the test's
		"--node-flag", "eviction-pressure-transition-period=15s",
		"--node-flag", "pod-max-pids=64")
	if err := c.LoadImages(t.Context(), "busybox", "nginx"); err != nil {
		t.Fatal(err)
	}
	c.Shows(t, time.Minute, "default", "get", "serviceaccount", "default")
	c.Apply(t, pressureManifest)
	c.Kubectl(t, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
	before := instances(t, c)
	var ip string
	wait.For(t, time.Minute, "the Service has an address", func(ctx context.Context) (err error) {
		if ip, err = c.Run(ctx, "kubectl", "get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"); err == nil && ip == "" {
			err = errors.New("none")
		}
		return err
	})
	stop := serve(t, "http://"+ip+"/")

	bad := []string{"hog", "filler", "spammer", "hoarder", "bomb"}
	for _, name := range bad {
		c.Kubectl(t, "exec", name, "--", "touch", "/go/now")
	}
	began := time.Now()
	c.Shows(t, time.Minute, "node.kubernetes.io/memory-pressure", "get", "node", "node-0", "-o", "jsonpath={.spec.taints[*].key}")
	c.Apply(t, latecomer)
	t.Logf("the node has the taint %s after the start", time.Since(began).Round(100*time.Millisecond))
	for _, want := range []struct{ pod, codes, evidence string }{
		{"late", "PodRefusedByNode", "event: Evicted: Pod was rejected: The node had condition: [MemoryPressure"},
		{"hog", "PodEvicted", "event: Evicted: The node was low on resource: memory. Threshold quantity: 300Mi, available: "},
		{"filler", "PodEvicted", "event: Evicted: The node was low on resource: ephemeral-storage. Threshold quantity: "},
		{"spammer", "LocalStorageLimitExceeded", "event: Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "},
		{"hoarder", "LocalStorageLimitExceeded", `event: Evicted: Usage of EmptyDir volume "data" exceeds the limit "5Mi". `},
		{"bomb", "ContainerOutOfProcesses", "log: c: sh: can't fork: Resource temporarily unavailable"},
	} {
		explained(t, c, "default", "pod/"+want.pod, want.codes, want.evidence)
		t.Logf("%s is explained %s after the start", want.pod, time.Since(began).Round(100*time.Millisecond))
	}
	for _, name := range bad[:4] {
		c.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/"+name, "--timeout=60s")
	}
	requests := stop()
	t.Logf("%d requests to the neighbour, none failed", requests)
	after := instances(t, c)
	for _, name := range []string{"web", "modest"} {
		if after[name] != before[name] {
			t.Errorf("%s: %s became %s", name, before[name], after[name])
		}
	}
	for _, name := range bad[:4] {
		if !strings.HasPrefix(after[name], "Failed Evicted ") {
			t.Errorf("%s: %s", name, after[name])
		}
	}
	if !strings.HasPrefix(after["bomb"], "Running ") {
		t.Errorf("bomb: %s", after["bomb"])
	}
	c.Shows(t, time.Minute, "Attempting to reclaim memory", "get", "events", "--field-selector", "reason=EvictionThresholdMet,involvedObject.name=node-0", "-o", "jsonpath={.items[*].message}")
	c.Shows(t, time.Minute, "False False False", "get", "node", "node-0", "-o",
		`jsonpath={.status.conditions[?(@.type=="MemoryPressure")].status} {.status.conditions[?(@.type=="DiskPressure")].status} {.status.conditions[?(@.type=="PIDPressure")].status}`)
}

// serve requests url until stop is called, which returns the number of requests. A request
// that fails fails the test.
func serve(t *testing.T, url string) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	n := 0
	all.Go(func() {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for ctx.Err() == nil {
			resp, err := client.Get(url)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					err = errors.New(resp.Status)
				}
			}
			if err != nil {
				t.Errorf("request %d to the neighbour: %v", n, err)
			}
			n++
			wait.Pause(ctx, 20*time.Millisecond)
		}
	})
	t.Cleanup(cancel)
	return func() int {
		cancel()
		all.Wait()
		return n
	}
}

// instances returns the state of each pod of the namespace default by name: its phase and
// reason, and which container runs for how long.
func instances(t *testing.T, c *cluster.Cluster) map[string]string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Phase, Reason     string
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(c.Kubectl(t, "get", "pods", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range list.Items {
		out[p.Metadata.Name] = fmt.Sprintf("%s %s %v", p.Status.Phase, p.Status.Reason, p.Status.ContainerStatuses)
	}
	return out
}
