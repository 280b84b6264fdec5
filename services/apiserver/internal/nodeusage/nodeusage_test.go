package nodeusage

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is nodes and pods, and what the nodes answer.
type world struct {
	mu     sync.Mutex
	now    time.Time
	objs   map[string][]resource.Object
	usage  map[string]*nodev1.Usage
	asked  []string
	block  chan struct{}
	active int
	most   int
}

func (w *world) Get(_, res, namespace, name string) (resource.Object, bool) {
	for _, o := range w.objs[res] {
		if o.GetNamespace() == namespace && o.GetName() == name {
			return o, true
		}
	}
	return nil, false
}

func (w *world) Each(_, res, namespace string, f func(resource.Object) bool) {
	for _, o := range w.objs[res] {
		if namespace == "" || o.GetNamespace() == namespace {
			f(o)
		}
	}
}

func (w *world) ask(ctx context.Context, node string, _ time.Duration) (*nodev1.Usage, error) {
	w.mu.Lock()
	w.asked = append(w.asked, node)
	w.active++
	w.most = max(w.most, w.active)
	u := w.usage[node]
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.active--
	}()
	if w.block != nil {
		<-w.block
	}
	if u == nil {
		return nil, errors.New("node is not connected")
	}
	return u, nil
}

// taken returns who was asked since the last call.
func (w *world) taken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.asked
	w.asked = nil
	slices.Sort(out)
	return out
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func measured(cpu, memory uint64, window time.Duration) *nodev1.Measurement {
	return &nodev1.Measurement{TimeUnixNano: 1_700_000_000e9, WindowNano: int64(window), CpuNanoCores: cpu, MemoryBytes: memory}
}

func pod(namespace, name, uid, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func used(uid string, containers ...*nodev1.ContainerUsage) *nodev1.PodUsage {
	return &nodev1.PodUsage{Uid: uid, Containers: containers}
}

func newWorld() (*world, *Cache) {
	w := &world{now: time.Unix(1_700_000_001, 0)}
	done := pod("a", "done", "u5", "n3")
	done.Status.Phase = corev1.PodSucceeded
	w.objs = map[string][]resource.Object{
		"nodes": {
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "x"}}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}},
		},
		"pods": {pod("a", "one", "u1", "n1"), pod("a", "two", "u2", "n2"), pod("b", "fresh", "u3", "n1"), pod("b", "stranger", "u4", "n2"), done, pod("b", "pending", "u6", "")},
	}
	w.usage = map[string]*nodev1.Usage{
		"n1": {Node: measured(250_000_000, 1<<30, 15*time.Second), Pods: []*nodev1.PodUsage{
			used("u1", &nodev1.ContainerUsage{Name: "c", Usage: measured(1_500_000, 12<<20, 15123456789)}, &nodev1.ContainerUsage{Name: "d", Usage: measured(0, 4096, 15*time.Second)}),
			used("u3", &nodev1.ContainerUsage{Name: "c", Usage: measured(0, 1, 0)}),
			used("u2", &nodev1.ContainerUsage{Name: "c", Usage: measured(7, 7, time.Minute)}), // that pod is on another node
			used("u4-older", &nodev1.ContainerUsage{Name: "c", Usage: measured(7, 7, time.Minute)}),
		}},
		"n3": {Node: measured(0, 1, 0)},
	}
	return w, New(Config{Ask: w.ask, State: w, Now: w.clock})
}

func names(t *testing.T, objs []resource.Object, err error) []string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, o := range objs {
		out = append(out, o.GetNamespace()+"/"+o.GetName())
	}
	slices.Sort(out)
	return out
}

func TestNodes(t *testing.T) {
	w, c := newWorld()
	list, err := Nodes{c}.List(t.Context(), "", labels.Everything())
	if got := names(t, list, err); !slices.Equal(got, []string{"/n1"}) {
		t.Errorf("%v: n2 does not answer and the rate of n3 is not known", got)
	}
	m := list[0].(*metricsv1beta1.NodeMetrics)
	if cpu, memory := m.Usage[corev1.ResourceCPU], m.Usage[corev1.ResourceMemory]; cpu.String() != "250m" || memory.String() != "1Gi" || m.Window.Duration != 15*time.Second || m.Labels["zone"] != "x" {
		t.Errorf("%+v", m)
	}
	w.taken()
	list, err = Nodes{c}.List(t.Context(), "", labels.SelectorFromSet(labels.Set{"zone": "x"}))
	if got := names(t, list, err); len(got) != 1 || len(w.taken()) != 0 {
		t.Errorf("selected %v", got)
	}
	if _, err := (Nodes{c}).Get(t.Context(), "", "n2"); !apierrors.IsNotFound(err) || err.Error() != `nodemetrics.metrics.k8s.io "n2" not found` {
		t.Errorf("a node that does not answer: %v", err)
	}
	if _, err := (Nodes{c}).Get(t.Context(), "", "none"); !apierrors.IsNotFound(err) {
		t.Errorf("a node that does not exist: %v", err)
	}
}

func TestPods(t *testing.T) {
	w, c := newWorld()
	list, err := Pods{c}.List(t.Context(), "", labels.Everything())
	if got := names(t, list, err); !slices.Equal(got, []string{"a/one"}) {
		t.Errorf("%v", got)
	}
	if asked := w.taken(); !slices.Equal(asked, []string{"n1", "n2"}) {
		t.Errorf("asked %v", asked)
	}
	m := list[0].(*metricsv1beta1.PodMetrics)
	if cpu := m.Containers[0].Usage[corev1.ResourceCPU]; cpu.String() != "1500u" || len(m.Containers) != 2 || m.Window.Duration != 15123*time.Millisecond || m.Labels["app"] != "one" {
		t.Errorf("%+v", m)
	}
	w2, c := newWorld()
	list, err = Pods{c}.List(t.Context(), "a", labels.SelectorFromSet(labels.Set{"app": "one"}))
	if got := names(t, list, err); len(got) != 1 || !slices.Equal(w2.taken(), []string{"n1"}) {
		t.Errorf("one pod: %v", got)
	}
	if _, err := (Pods{c}).Get(t.Context(), "b", "fresh"); !apierrors.IsNotFound(err) || err.Error() != `podmetrics.metrics.k8s.io "b/fresh" not found` {
		t.Errorf("a pod that has just started: %v", err)
	}
	if _, err := (Pods{c}).Get(t.Context(), "a", "none"); !apierrors.IsNotFound(err) || err.Error() != `pods "a/none" not found` {
		t.Errorf("a pod that does not exist: %v", err)
	}
}

// TestStaticPods checks that a mirror shows the usage of its static pod, and of no other pod.
func TestStaticPods(t *testing.T) {
	w, c := newWorld()
	mirror, impostor := pod("a", "static-n1", "u7", "n1"), pod("b", "false-n1", "u8", "n1")
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
	impostor.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "u1"}
	w.objs["pods"] = []resource.Object{pod("a", "one", "u1", "n1"), mirror, impostor}
	static := used("hash", &nodev1.ContainerUsage{Name: "c", Usage: measured(1, 1, time.Minute)})
	static.Namespace, static.Name = "a", "static-n1"
	one := used("u1", &nodev1.ContainerUsage{Name: "c", Usage: measured(1, 1, time.Minute)})
	one.Namespace, one.Name = "a", "one"
	w.usage["n1"].Pods = []*nodev1.PodUsage{one, static}
	list, err := Pods{c}.List(t.Context(), "", labels.Everything())
	if got := names(t, list, err); !slices.Equal(got, []string{"a/one", "a/static-n1"}) {
		t.Errorf("%v", got)
	}
}

func TestAnswersAreKept(t *testing.T) {
	w, c := newWorld()
	ask := func() []string {
		if _, err := (Nodes{c}).List(t.Context(), "", labels.Everything()); err != nil {
			t.Fatal(err)
		}
		return w.taken()
	}
	for _, step := range []struct {
		pass time.Duration
		want []string
	}{
		{0, []string{"n1", "n2", "n3"}},
		{4 * time.Second, nil},
		{2 * time.Second, []string{"n2"}}, // a failure is tried again sooner
		{4 * time.Second, []string{"n1", "n3"}},
	} {
		w.pass(step.pass)
		if got := ask(); !slices.Equal(got, step.want) {
			t.Errorf("after %s more: asked %v, want %v", step.pass, got, step.want)
		}
	}
	w.objs["nodes"] = w.objs["nodes"][:1]
	w.pass(2 * forget)
	ask()
	w.pass(2 * forget)
	ask()
	if len(c.nodes) != 1 {
		t.Errorf("%d answers are kept", len(c.nodes))
	}
}

func TestQuestionsAreShared(t *testing.T) {
	w, c := newWorld()
	w.block = make(chan struct{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := (Nodes{c}).Get(t.Context(), "", "n1"); err != nil {
				t.Error(err)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Nodes{c}).Get(gone, "", "n3"); !errors.Is(err, context.Canceled) {
		t.Errorf("a request that ended: %v", err)
	}
	w.block <- struct{}{}
	w.block <- struct{}{}
	wg.Wait()
	if got := w.taken(); !slices.Equal(got, []string{"n1", "n3"}) {
		t.Errorf("asked %v", got)
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	w, c := newWorld()
	w.block = make(chan struct{})
	for i := range 3 * parallel {
		w.objs["nodes"] = append(w.objs["nodes"], &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m" + string(rune('0'+i))}})
	}
	done := make(chan error)
	go func() {
		_, err := Nodes{c}.List(t.Context(), "", labels.Everything())
		done <- err
	}()
	for range 3*parallel + 3 {
		w.block <- struct{}{}
	}
	if err := <-done; err != nil || w.most > parallel {
		t.Errorf("%d nodes at a time, %v", w.most, err)
	}
}
