package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// plane starts a whole control plane, waits for its nodes, and calls use with a client.
func (b *bench) plane(ctx context.Context, nodes int, use func(c *kubernetes.Clientset, pids []int) error) (err error) {
	b.stop() // the whole machine is for the control plane now
	plane, err := b.sys.cluster(ctx, b, nodes)
	defer func() {
		if plane != nil {
			err = errors.Join(err, plane.stop())
		}
	}()
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", plane.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if !plane.simulated {
		if err := createNodes(ctx, c, nodes); err != nil {
			return err
		}
	}
	err = poll(ctx, time.Minute, func() (bool, error) {
		list, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return false, err
		}
		ready := 0
		for i := range list.Items {
			if schedulable(&list.Items[i]) {
				ready++
			}
		}
		if ready < nodes {
			return false, fmt.Errorf("%d of %d nodes are ready", ready, nodes)
		}
		_, err = c.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return use(c, plane.pids)
}

func schedulable(n *corev1.Node) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
			return len(n.Spec.Taints) == 0
		}
	}
	return false
}

// poll calls f until it returns true. After the timeout it returns f's last error.
func poll(ctx context.Context, timeout time.Duration, f func() (bool, error)) error {
	deadline := time.Now().Add(timeout)
	for {
		done, err := f()
		if done {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not after %v: %w", timeout, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// createNodes creates ready nodes of the size of Keelson's simulated ones.
func createNodes(ctx context.Context, c *kubernetes.Clientset, n int) error {
	size := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	status, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{
		Capacity: size, Allocatable: size,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}},
	}})
	if err != nil {
		return err
	}
	nodes := c.CoreV1().Nodes()
	_, err = rate(ctx, 16, n, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("node-%05d", i)
		_, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		// Admission taints a new node, which its kubelet would end.
		if _, err := nodes.Patch(ctx, name, types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{}); err != nil {
			return err
		}
		_, err = nodes.Patch(ctx, name, types.MergePatchType, status, metav1.PatchOptions{}, "status")
		return err
	})
	return err
}

// scheduleREST measures the time from the first create of a pod to the last binding on
// simulated nodes. All requests of the benchmark use REST.
func scheduleREST(ctx context.Context, b *bench) (perSecond float64, note string, err error) {
	err = b.plane(ctx, b.nodes, func(c *kubernetes.Clientset, pids []int) error {
		perSecond, note, err = b.schedule(ctx, c, pids)
		return err
	})
	return perSecond, note, err
}

func (b *bench) schedule(ctx context.Context, c *kubernetes.Clientset, pids []int) (float64, string, error) {
	const ns = "default"
	var mu sync.Mutex
	created := make(map[string]time.Time, b.pods)
	bound := make(chan struct{})
	var waits []time.Duration
	seen := make(map[string]bool, b.pods)
	note := func(o any) {
		p, ok := o.(*corev1.Pod)
		if !ok || p.Spec.NodeName == "" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if seen[p.Name] {
			return
		}
		seen[p.Name] = true
		waits = append(waits, time.Since(created[p.Name]))
		if len(seen) == b.pods {
			close(bound)
		}
	}
	// An informer, because kube-apiserver ends watches that other clients' load makes slow.
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(c.CoreV1().RESTClient(), "pods", ns, fields.Everything()),
		ObjectType:    &corev1.Pod{},
		Handler:       cache.ResourceEventHandlerFuncs{AddFunc: note, UpdateFunc: func(_, o any) { note(o) }},
	})
	following.Go(func() { informer.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return 0, "", ctx.Err()
	}
	peak := watchMemory(ctx, pids)
	before, began := cpuOf(pids), time.Now()
	_, err := rate(ctx, callers, b.pods, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("s-%05d", i)
		mu.Lock()
		created[name] = time.Now()
		mu.Unlock()
		_, err := c.CoreV1().Pods(ns).Create(ctx, pod(ns, name), metav1.CreateOptions{})
		return err
	})
	all := time.Since(began)
	if err == nil {
		select {
		case <-bound:
		case <-time.After(5 * time.Minute):
			mu.Lock()
			err = fmt.Errorf("%d of %d pods were bound within five minutes", len(seen), b.pods)
			mu.Unlock()
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	took := time.Since(began)
	memory, e := peak()
	if err = errors.Join(err, e); err != nil {
		return 0, "", err
	}
	b.latest.cost, b.latest.memory = (cpuOf(pids)-before)/time.Duration(b.pods), memory
	cancel()
	following.Wait()
	b.quantiles(waits)
	return float64(b.pods) / took.Seconds(), fmt.Sprintf("%d pods, %d simulated nodes; all created after %.1fs; at most %d MB; latencies are those of bindings", b.pods, b.nodes, all.Seconds(), memory>>20), nil
}

// watchMemory samples the memory of processes until the returned function is called, which
// returns the largest sample.
func watchMemory(ctx context.Context, pids []int) (peak func() (int64, error)) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var most int64
	var failure error
	go func() {
		defer close(done)
		for {
			n, err := pssOf(pids)
			most, failure = max(most, n), errors.Join(failure, err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(250 * time.Millisecond):
			}
			if failure != nil {
				return
			}
		}
	}()
	return func() (int64, error) { cancel(); <-done; return most, failure }
}

// measureIdle measures the memory and CPU use of a control plane with three nodes that has
// nothing to do: CPU time over half a minute, after half a minute of rest.
func measureIdle(ctx context.Context, b *bench) (mega float64, note string, err error) {
	const rest = 30 * time.Second
	err = b.plane(ctx, 3, func(_ *kubernetes.Clientset, pids []int) error {
		if err := pause(ctx, rest); err != nil {
			return err
		}
		before := cpuOf(pids)
		if err := pause(ctx, rest); err != nil {
			return err
		}
		b.latest.idle = float64(cpuOf(pids)-before) / float64(rest)
		b.latest.memory, err = pssOf(pids)
		return err
	})
	return float64(b.latest.memory) / (1 << 20), fmt.Sprintf("whole control plane, 3 nodes, %.0f mCPU", b.latest.idle*1000), err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
