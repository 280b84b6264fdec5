package kubeletapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"keelson.dev/services/node/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// meter returns a measurement, or an error.
type meter struct {
	report *usage.Report
	err    error
	want   usage.Want
}

func (m *meter) Read(_ context.Context, want usage.Want) (*usage.Report, error) {
	m.want = want
	return m.report, m.err
}

func report() *usage.Report {
	t0 := time.Unix(1_700_000_000, 0)
	cpu := usage.CPU{Used: 90 * time.Second, NanoCores: 250_000_000, Window: 15 * time.Second, Periods: 10, ThrottledPeriods: 2, Throttled: time.Second}
	memory := usage.Memory{Usage: 300, WorkingSet: 200, RSS: 100, Cache: 50, Limit: 1000, Available: 800, PageFaults: 7, MajorPageFaults: 1}
	fs := usage.FS{Capacity: 1000, Available: 600, Used: 400, Inodes: 100, InodesFree: 60, InodesUsed: 40}
	network := usage.Network{Default: "eth0", Interfaces: []usage.Interface{{Name: "other"}, {Name: "eth0", RxBytes: 11, TxBytes: 22}}}
	return &usage.Report{
		Time: t0, Disk: true,
		Node: usage.Node{Time: t0, Start: t0.Add(-time.Hour), CPU: cpu, Memory: memory, Network: network, FS: fs, ImageFS: fs, PIDs: 90, MaxPIDs: 1000},
		Pods: []usage.Pod{{
			UID: "u1", Namespace: "ns", Name: "web", Start: t0.Add(-time.Minute), CPU: cpu, Memory: memory, Network: network, PIDs: 3, Ephemeral: fs,
			Containers: []usage.Container{{Name: "c", ID: "id1", Image: "image:1", Start: t0.Add(-time.Minute), CPU: cpu, Memory: memory, Rootfs: fs, Logs: fs}},
			Volumes:    []usage.Volume{{Name: "data", Claim: "claim", FS: fs}, {Name: "tmp", Ephemeral: true, FS: fs}},
		}, {
			UID: "u2", Namespace: "ns", Name: "web2", Start: t0, CPU: usage.CPU{Used: time.Second},
			Volumes: []usage.Volume{{Name: "same", Claim: "claim", FS: fs}},
		}},
	}
}

// rig is a server with what it reads.
type rig struct {
	*Server
	meter   *meter
	healthy error
	folders []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	registry := prometheus.NewRegistry()
	up := prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_up", Help: "Is up."})
	registry.MustRegister(up)
	r := &rig{meter: &meter{report: report()}}
	r.Server = New(Config{
		Node: "n1", Meter: r.meter, Metrics: registry, LogDir: t.TempDir(),
		Pods: func() []*corev1.Pod {
			return []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns"}}}
		},
		Healthy:       func(context.Context) error { return r.healthy },
		LogFolders:    func() []string { return r.folders },
		Configuration: map[string]any{"kind": "KubeletConfiguration"},
	})
	return r
}

func (r *rig) get(method, target string) (int, string) {
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader("body")))
	return w.Code, w.Body.String()
}

func TestSummary(t *testing.T) {
	r := newRig(t)
	code, body := r.get(http.MethodGet, "/stats/summary")
	var s stats.Summary
	if err := json.Unmarshal([]byte(body), &s); err != nil || code != http.StatusOK {
		t.Fatal(code, body, err)
	}
	if !r.meter.want.Disk || s.Node.NodeName != "n1" || *s.Node.CPU.UsageNanoCores != 250_000_000 || *s.Node.Memory.AvailableBytes != 800 ||
		*s.Node.Fs.InodesUsed != 40 || *s.Node.Runtime.ImageFs.UsedBytes != 400 || *s.Node.Rlimit.MaxPID != 1000 || *s.Node.Network.RxBytes != 11 || len(s.Node.Network.Interfaces) != 2 {
		t.Errorf("node: %s", body)
	}
	p := s.Pods[0]
	if p.PodRef.UID != "u1" || *p.EphemeralStorage.UsedBytes != 400 || *p.ProcessStats.ProcessCount != 3 || p.VolumeStats[0].PVCRef.Name != "claim" || p.VolumeStats[1].PVCRef != nil ||
		*p.Containers[0].Rootfs.UsedBytes != 400 || *p.Containers[0].Logs.UsedBytes != 400 {
		t.Errorf("pod: %+v", p)
	}
	if second := s.Pods[1]; second.CPU.UsageNanoCores != nil || second.Memory.AvailableBytes != nil || second.Network != nil || second.Containers == nil {
		t.Errorf("a pod of which little is known: %+v", second)
	}
	_, body = r.get(http.MethodGet, "/stats/summary?only_cpu_and_memory=true")
	var brief stats.Summary
	if err := json.Unmarshal([]byte(body), &brief); err != nil {
		t.Fatal(err)
	}
	if r.meter.want.Disk || brief.Node.Fs != nil || brief.Pods[0].VolumeStats != nil || brief.Pods[0].CPU == nil {
		t.Errorf("only CPU and memory: %s", body)
	}
	r.meter.err = errors.New("no runtime")
	if code, body := r.get(http.MethodGet, "/stats/summary"); code != http.StatusInternalServerError || !strings.Contains(body, "no runtime") {
		t.Errorf("%d %s", code, body)
	}
}

func TestMetrics(t *testing.T) {
	r := newRig(t)
	for path, want := range map[string][]string{
		"/metrics": {
			"keelson_up 0",
			`kubelet_volume_stats_used_bytes{namespace="ns",persistentvolumeclaim="claim"} 400`,
			"kubelet_running_pods 2",
		},
		"/metrics/resource": {
			"node_cpu_usage_seconds_total 90 1700000000000",
			"node_memory_working_set_bytes 200 1700000000000",
			`pod_cpu_usage_seconds_total{namespace="ns",pod="web"} 90 1700000000000`,
			`container_memory_working_set_bytes{container="c",namespace="ns",pod="web"} 200 1700000000000`,
			`container_start_time_seconds{container="c",namespace="ns",pod="web"} 1.69999994e+09`,
			"resource_scrape_error 0",
		},
		"/metrics/cadvisor": {
			`container_cpu_usage_seconds_total{container="",cpu="total",id="/",image="",name="",namespace="",pod=""} 90 1700000000000`,
			`container_memory_working_set_bytes{container="c",id="/podu1/id1",image="image:1",name="id1",namespace="ns",pod="web"} 200 1700000000000`,
			`container_network_receive_bytes_total{container="",id="/podu1",image="",interface="eth0",name="",namespace="ns",pod="web"} 11 1700000000000`,
			`container_cpu_cfs_throttled_periods_total{container="c",id="/podu1/id1",image="image:1",name="id1",namespace="ns",pod="web"} 2 1700000000000`,
			`container_memory_failures_total{container="c",failure_type="pgmajfault",id="/podu1/id1",image="image:1",name="id1",namespace="ns",pod="web",scope="hierarchy"} 1 1700000000000`,
			"machine_memory_bytes 1000",
		},
		"/metrics/probes": {},
	} {
		code, body := r.get(http.MethodGet, path)
		if code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		}
		for _, line := range want {
			if !strings.Contains(body, line+"\n") {
				t.Errorf("%s has no line %q:\n%s", path, line, body)
			}
		}
	}
	r.meter.err = errors.New("no runtime")
	if _, body := r.get(http.MethodGet, "/metrics"); !strings.Contains(body, "keelson_up 0") {
		t.Errorf("metrics of the process without a measurement: %s", body)
	}
	if _, body := r.get(http.MethodGet, "/metrics/resource"); !strings.Contains(body, "resource_scrape_error 1") {
		t.Errorf("resource metrics without a measurement: %s", body)
	}
}

func TestDocuments(t *testing.T) {
	r := newRig(t)
	code, body := r.get(http.MethodGet, "/pods")
	var list corev1.PodList
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != http.StatusOK || list.Kind != "PodList" || list.Items[0].Name != "web" {
		t.Errorf("%d %s %v", code, body, err)
	}
	code, body = r.get(http.MethodGet, "/runningpods/")
	var running corev1.PodList
	if err := json.Unmarshal([]byte(body), &running); err != nil || code != http.StatusOK || len(running.Items) != 2 {
		t.Fatalf("%d %s %v", code, body, err)
	}
	if p := running.Items[0]; p.UID != "u1" || p.Namespace != "ns" || p.Name != "web" || len(p.Spec.Containers) != 1 || p.Spec.Containers[0].Image != "image:1" {
		t.Errorf("running pod: %+v", p)
	}
	if code, body := r.get(http.MethodGet, "/configz"); code != http.StatusOK || body != `{"kubeletconfig":{"kind":"KubeletConfiguration"}}` {
		t.Errorf("%d %s", code, body)
	}
	if code, body := r.get(http.MethodGet, "/healthz"); code != http.StatusOK || body != "ok" {
		t.Errorf("%d %s", code, body)
	}
	r.healthy = errors.New("containerd is down")
	if code, body := r.get(http.MethodGet, "/healthz"); code != http.StatusInternalServerError || !strings.Contains(body, "containerd is down") {
		t.Errorf("%d %s", code, body)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	for _, target := range []string{"/run/ns/web/c", "/exec/ns/web/c", "/checkpoint/ns/web/c", "/pods"} {
		if code, _ := r.get(http.MethodPost, target); code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", target, code)
		}
	}
	for _, target := range []string{"/", "/exec/ns/web/c", "/containerLogs/ns/web/c", "/debug/pprof/", "/stats/container", "/metrics/other"} {
		if code, _ := r.get(http.MethodGet, target); code != http.StatusNotFound {
			t.Errorf("GET %s: %d", target, code)
		}
	}
	for range maxRequests {
		r.slots <- struct{}{}
	}
	if code, _ := r.get(http.MethodGet, "/healthz"); code != http.StatusTooManyRequests {
		t.Errorf("too many requests: %d", code)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	dir := r.cfg.LogDir
	r.folders = []string{"ns_web_u1"}
	for _, folder := range []string{"ns_web_u1/c", "ns_other_u9/c"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, folder, "0.log"), []byte("line of "+folder+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"absolute": secret, "other": "../ns_other_u9/c/0.log"} {
		if err := os.Symlink(target, filepath.Join(dir, "ns_web_u1", name)); err != nil {
			t.Fatal(err)
		}
	}
	for target, want := range map[string]string{
		"/logs/":                       `<a href="pods/">`,
		"/logs/pods/":                  `<a href="ns_web_u1/">`,
		"/logs/pods/ns_web_u1/":        `<a href="c/">`,
		"/logs/pods/ns_web_u1/c/":      `<a href="0.log">`,
		"/logs/pods/ns_web_u1/c/0.log": "line of ns_web_u1/c\n",
	} {
		if code, body := r.get(http.MethodGet, target); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
	if _, body := r.get(http.MethodGet, "/logs/pods/"); strings.Contains(body, "other") {
		t.Errorf("lists another node's logs: %s", body)
	}
	for _, target := range []string{
		"/logs/syslog", "/logs/pods/ns_other_u9/", "/logs/pods/ns_other_u9/c/0.log", "/logs/pods/ns_web_u1/absolute", "/logs/pods/ns_web_u1/other",
		"/logs/pods/ns_web_u1/%2e%2e/ns_other_u9/c/0.log", "/logs/pods/ns_web_u1/c/none",
	} {
		if code, body := r.get(http.MethodGet, target); code == http.StatusOK || strings.Contains(body, "secret") || strings.Contains(body, "line of") {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
}

func TestConnections(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.Dial(ctx) }}
	defer transport.CloseIdleConnections()
	for range 3 {
		resp, err := (&http.Client{Transport: transport}).Get("http://node/healthz")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(body) != "ok" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := r.Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("dialed a server that has stopped: %v", err)
	}
}
