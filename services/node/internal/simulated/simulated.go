// Package simulated runs many nodes in one process, for scale tests. Their Node objects and
// Leases are real; their pods are reported as running but do not run.
//
// Every object shows that it is simulated: nodes have the label keelson.dev/simulated=true,
// and container IDs begin with "simulated://". It must never touch a pod of a node that is
// not its own.
package simulated

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/registration"
)

// Label marks simulated nodes.
const Label = "keelson.dev/simulated"

// DurationAnnotation on a pod is how long the pod runs before it succeeds. It is ignored
// for pods with restart policy Always.
const DurationAnnotation = "keelson.dev/simulated-duration"

// Config configures a simulation.
type Config struct {
	Client *client.Client
	// Nodes is the number of nodes. They are called Prefix-0, Prefix-1 and so on.
	Nodes  int
	Prefix string
	// Labels and Taints are added to each node.
	Labels map[string]string
	Taints []corev1.Taint
	// Zones are the zones of the nodes, in turn. If it is empty, Labels may name one.
	Zones []string
	// Capacity is each node's capacity. Missing resources have defaults.
	Capacity corev1.ResourceList
	// Heartbeat is the interval at which each Lease is renewed.
	Heartbeat time.Duration
}

// Simulation is the simulated nodes of a process.
type Simulation struct {
	cfg   Config
	own   map[string]int
	pods  *client.Cache[*corev1.Pod]
	queue *queue
	ready chan struct{}
}

// batch is the number of writes per call, and inFlight the number of concurrent calls.
const (
	batch    = 250
	inFlight = 4
)

// New returns a simulation. It does nothing until Run is called.
func New(cfg Config) *Simulation {
	s := &Simulation{cfg: cfg, own: make(map[string]int, cfg.Nodes), queue: newQueue(), ready: make(chan struct{})}
	for i := range cfg.Nodes {
		s.own[s.name(i)] = i
	}
	s.pods = client.NewCache(cfg.Client, client.CacheOptions[*corev1.Pod]{
		FieldSelector: "spec.nodeName!=",
		Transform:     slim,
	})
	s.pods.Subscribe(s.onPod)
	return s
}

func (s *Simulation) name(i int) string { return fmt.Sprintf("%s-%d", s.cfg.Prefix, i) }

// Ready is closed when all nodes are registered and their pods are known.
func (s *Simulation) Ready() <-chan struct{} { return s.ready }

// slim drops everything that a simulated pod does not need, which is most of it.
func slim(p *corev1.Pod) *corev1.Pod {
	p.ManagedFields = nil
	spec := corev1.PodSpec{
		NodeName: p.Spec.NodeName, RestartPolicy: p.Spec.RestartPolicy, HostNetwork: p.Spec.HostNetwork,
		ReadinessGates: p.Spec.ReadinessGates,
	}
	for i := range p.Spec.Containers {
		spec.Containers = append(spec.Containers, corev1.Container{Name: p.Spec.Containers[i].Name, Image: p.Spec.Containers[i].Image})
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		spec.InitContainers = append(spec.InitContainers, corev1.Container{Name: c.Name, Image: c.Image, RestartPolicy: c.RestartPolicy})
	}
	p.Spec = spec
	if done(p) {
		p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.Conditions = nil, nil, nil
	}
	return p
}

// onPod queues pods of our nodes that need a write.
func (s *Simulation) onPod(ev client.Event[*corev1.Pod]) {
	p := ev.Object
	if _, ours := s.own[p.Spec.NodeName]; !ours {
		return
	}
	key := client.KeyOf(p)
	if ev.Type == client.Deleted {
		s.queue.drop(key)
		return
	}
	if at, due := due(p); due {
		s.queue.add(key, at, ev.Traceparent)
	}
}

// Run runs the simulation until ctx ends.
func (s *Simulation) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.register(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	slog.InfoContext(ctx, "simulated nodes registered", "nodes", s.cfg.Nodes)
	var wg sync.WaitGroup
	start := func(f func(context.Context) error) {
		wg.Go(func() {
			defer cancel()
			_ = f(ctx) // each runs until ctx ends and retries on its own
		})
	}
	start(s.pods.Run)
	start(s.heartbeats)
	start(s.revive)
	for range inFlight {
		start(s.work)
	}
	wg.Go(func() {
		select {
		case <-s.pods.Synced():
			close(s.ready)
		case <-ctx.Done():
		}
	})
	wg.Wait()
	return nil
}

// register creates the missing Nodes.
func (s *Simulation) register(ctx context.Context) error {
	for from := 0; from < s.cfg.Nodes; from += batch {
		var writes []client.Write
		for i := from; i < min(from+batch, s.cfg.Nodes); i++ {
			writes = append(writes, client.CreateWrite(s.node(i)))
		}
		err := retry(ctx, func() error {
			results, err := s.cfg.Client.CommitQuietly(ctx, writes...)
			for _, r := range results {
				if r.Err != nil && !apierrors.IsAlreadyExists(r.Err) {
					return r.Err
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("register simulated nodes: %w", err)
		}
	}
	return nil
}

// retry repeats f with a growing delay until it succeeds or ctx ends. It returns errors
// that retrying cannot fix.
func retry(ctx context.Context, f func() error) error {
	delay := 100 * time.Millisecond
	for {
		err := f()
		if err == nil || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
			return err
		}
		slog.WarnContext(ctx, "simulated nodes were not registered, will retry", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, 5*time.Second)
	}
}

func (s *Simulation) node(i int) *corev1.Node {
	name := s.name(i)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		Label:                   "true",
		corev1.LabelHostname:    name,
		corev1.LabelOSStable:    "linux",
		corev1.LabelArchStable:  runtime.GOARCH,
		"beta.kubernetes.io/os": "linux",
	}}}
	for k, v := range s.cfg.Labels {
		n.Labels[k] = v
	}
	if zones := s.cfg.Zones; len(zones) > 0 {
		n.Labels[corev1.LabelTopologyZone] = zones[i%len(zones)]
	}
	n.Spec.Taints = s.cfg.Taints
	n.Status = s.nodeStatus(i, time.Now())
	return n
}

func (s *Simulation) nodeStatus(i int, now time.Time) corev1.NodeStatus {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	for k, v := range s.cfg.Capacity {
		capacity[k] = v
	}
	st := corev1.NodeStatus{
		Capacity: capacity, Allocatable: capacity,
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: hostIP(i)}, {Type: corev1.NodeHostName, Address: s.name(i)}},
		NodeInfo: corev1.NodeSystemInfo{
			MachineID: s.name(i), SystemUUID: s.name(i), BootID: s.name(i), OperatingSystem: "linux", Architecture: runtime.GOARCH,
			OSImage: "none (simulated)", KernelVersion: "none", ContainerRuntimeVersion: "simulated://1", KubeletVersion: registration.KubeletVersion,
		},
	}
	at := metav1.NewTime(now.Truncate(time.Second))
	for _, c := range []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientMemory", Message: "simulated"},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasNoDiskPressure", Message: "simulated"},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientPID", Message: "simulated"},
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "simulated node is posting ready status"},
	} {
		c.LastHeartbeatTime, c.LastTransitionTime = at, at
		st.Conditions = append(st.Conditions, c)
	}
	return st
}

// hostIP returns a made-up node address in the range for benchmarks (RFC 2544).
func hostIP(i int) string { return fmt.Sprintf("198.18.%d.%d", (i/250)%256, i%250+1) }

// podIP returns a made-up pod address in the shared address space of carriers (RFC 6598).
func podIP(n uint32) string {
	n %= 1 << 22
	return fmt.Sprintf("100.%d.%d.%d", 64+n>>16, n>>8&255, n&255)
}

// done reports whether a pod has reached a final phase.
func done(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// lifetime returns how long a pod runs. 0 means forever.
func lifetime(p *corev1.Pod) time.Duration {
	if p.Spec.RestartPolicy == corev1.RestartPolicyAlways {
		return 0
	}
	d, err := time.ParseDuration(strings.TrimSpace(p.Annotations[DurationAnnotation]))
	if err != nil || d <= 0 {
		return 0
	}
	return d
}
