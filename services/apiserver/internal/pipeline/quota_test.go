package pipeline_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	k8sresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/internal/quota"
)

func amounts(pairs ...string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		list[corev1.ResourceName(pairs[i])] = k8sresource.MustParse(pairs[i+1])
	}
	return list
}

// quota creates a quota whose status the controller has set, with nothing used.
func (f *fixture) quota(name string, spec corev1.ResourceQuotaSpec) {
	f.Helper()
	q := f.mustCreate(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: spec}).(*corev1.ResourceQuota)
	q.Status.Hard = spec.Hard
	q.Status.Used = corev1.ResourceList{}
	for name := range spec.Hard {
		q.Status.Used[name] = k8sresource.MustParse("0")
	}
	f.mustStatus(q)
	f.seen(q.Name)
}

// seen waits until the cache contains the quota.
func (f *fixture) seen(name string) { f.Helper(); f.used(name, "") }

// used returns the quota's status.used of a resource.
func (f *fixture) used(quota, name string) string {
	f.Helper()
	out, err := f.Get(f.ctx, f.target(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: quota}}), pipeline.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	q := out.Item.Object().(*corev1.ResourceQuota).Status.Used[corev1.ResourceName(name)]
	return q.String()
}

// 64 concurrent creators through two apiservers never exceed the quota.
func TestCreatorsStayWithinQuota(t *testing.T) {
	const creators, each, hard = 64, 4, 100
	var other *pipeline.Pipeline
	f := newFixture(t, withSecond(&other))
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("count/configmaps", fmt.Sprint(hard))})
	var created, refused atomic.Int32
	var wg sync.WaitGroup
	for i := range creators {
		wg.Go(func() {
			p := f.Pipeline
			if i%2 == 0 {
				p = other
			}
			for j := range each {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("m-%d-%d", i, j)}}
				target := f.target(m)
				target.Name = ""
				switch _, err := p.Create(f.ctx, target, f.body(m), pipeline.WriteOptions{}); {
				case err == nil:
					created.Add(1)
				case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=100, limited: count/configmaps=100"):
					refused.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if created.Load() != hard || refused.Load() != creators*each-hard {
		t.Errorf("%d were created and %d refused, with a limit of %d", created.Load(), refused.Load(), hard)
	}
	if got := f.used("q", "count/configmaps"); got != fmt.Sprint(hard) {
		t.Errorf("used: %s", got)
	}
}

func TestQuotaOfPods(t *testing.T) {
	f := newFixture(t)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("pods", "2", "requests.cpu", "1", "limits.memory", "1Gi")})
	sized := func(name, cpu, memory string) *corev1.Pod {
		p := pod(name)
		if cpu != "" {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("cpu", cpu), Limits: amounts("memory", memory)}
		}
		return p
	}
	refused := func(p *corev1.Pod, text string) {
		t.Helper()
		if _, err := f.create(p); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	refused(sized("a", "", ""), "failed quota: q: must specify limits.memory for: ")
	refused(sized("a", "1500m", "1Mi"), "exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=0, limited: requests.cpu=1")
	f.mustCreate(sized("a", "600m", "1Mi"))
	if _, err := f.create(sized("a", "100m", "1Mi")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a second pod with the same name: %v", err)
	}
	refused(sized("b", "600m", "1Mi"), "used: requests.cpu=600m")
	f.mustCreate(sized("dry", "100m", "1Mi"), pipeline.WriteOptions{DryRun: true})
	if got := f.used("q", "requests.cpu"); got != "600m" {
		t.Errorf("used: %s", got)
	}
	f.mustCreate(sized("b", "400m", "1Mi"))
	refused(sized("c", "0", "1Mi"), "requested: pods=1, used: pods=2, limited: pods=2")
	if got := f.used("q", "limits.memory"); got != "2Mi" {
		t.Errorf("used: %s", got)
	}
}

// An update of a service is charged for what it adds, and not for what it removes.
func TestQuotaOfUpdates(t *testing.T) {
	f := newFixture(t)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("services", "5", "services.nodeports", "1", "services.loadbalancers", "0")})
	s := f.mustCreate(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "a", Port: 80}}},
	}).(*corev1.Service)
	update := func() error {
		out, err := f.Update(f.ctx, f.target(s), f.body(s), pipeline.WriteOptions{})
		if err == nil {
			s = out.Item.Object().DeepCopyObject().(*corev1.Service)
		}
		return err
	}
	s.Spec.Type = corev1.ServiceTypeNodePort
	s.Spec.Ports[0].NodePort = 30001
	if err := update(); err != nil {
		t.Fatal(err)
	}
	if a, b := f.used("q", "services"), f.used("q", "services.nodeports"); a != "1" || b != "1" {
		t.Errorf("used: %s services, %s node ports", a, b)
	}
	s.Labels = map[string]string{"a": "b"}
	if err := update(); err != nil {
		t.Errorf("an update that adds no usage: %v", err)
	}
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	if err := update(); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "services.loadbalancers=1") {
		t.Errorf("a load balancer: %v", err)
	}
}

// A quota whose usage is unknown refuses creates; one whose scopes do not match ignores them.
func TestQuotaWithoutUsage(t *testing.T) {
	f := newFixture(t)
	q := f.mustCreate(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}}).(*corev1.ResourceQuota)
	q.Status.Hard = amounts("secrets", "5")
	f.mustStatus(q)
	f.seen("q")
	f.quota("terminating", corev1.ResourceQuotaSpec{Hard: amounts("pods", "0"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}})
	_, err := f.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "status unknown for quota: q, resources: secrets") {
		t.Errorf("got %v", err)
	}
	f.mustCreate(pod("p"))
}

// Each write of a batch is charged separately.
func TestQuotaOfBatch(t *testing.T) {
	f := newFixture(t)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("configmaps", "2")})
	var writes []pipeline.Write
	for i := range 4 {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("m", i)}}
		target := f.target(m)
		target.Name = ""
		writes = append(writes, pipeline.Write{Verb: "create", Target: target, Body: f.body(m)})
	}
	done := 0
	for _, r := range f.Commit(f.ctx, writes) {
		if r.Err == nil {
			done++
		} else if !apierrors.IsForbidden(r.Err) {
			t.Error(r.Err)
		}
	}
	if done != 2 || f.used("q", "configmaps") != "2" {
		t.Errorf("%d writes succeeded, used: %s", done, f.used("q", "configmaps"))
	}
}

// slowStore is a store in which each charge of a quota advances the clock by the next of delays.
type slowStore struct {
	store.Store
	f      *fixture
	delays []time.Duration
	// batches are the numbers of ConfigMaps per Commit.
	batches []int
}

func (s *slowStore) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	verdicts, err := s.Store.Commit(ctx, writes)
	maps := 0
	for _, w := range writes {
		switch {
		case strings.Contains(w.Key, "/configmaps/"):
			maps++
		case strings.Contains(w.Key, "/resourcequotas/") && len(s.delays) > 0:
			s.f.now = s.f.now.Add(s.delays[0])
			s.delays = s.delays[1:]
		}
	}
	if maps > 0 {
		s.batches = append(s.batches, maps)
	}
	return verdicts, err
}

func withSlowStore(t *testing.T) (*fixture, *slowStore) {
	slow := &slowStore{}
	f := newFixture(t, func(c *pipeline.Config) {
		slow.Store = c.Lasting.Store
		c.Lasting.Store = slow
	})
	slow.f = f
	return f, slow
}

// A large batch is written in parts, so that its charges are not lost with each accounting period
// that ends meanwhile.
func TestBatchIsWrittenInParts(t *testing.T) {
	f, slow := withSlowStore(t)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("configmaps", "20")})
	var writes []pipeline.Write
	for i := range 8 {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("m", i)}}
		target := f.target(m)
		target.Name = ""
		writes = append(writes, pipeline.Write{Verb: "create", Target: target, Body: f.body(m)})
		slow.delays = append(slow.delays, 30*time.Millisecond)
	}
	for _, r := range f.Commit(f.ctx, writes) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	if got := fmt.Sprint(slow.batches); got != "[5 3]" {
		t.Errorf("writes per commit: %s, want [5 3]", got)
	}
	if got := f.used("q", "configmaps"); got != "8" {
		t.Errorf("used: %s, want 8", got)
	}
}

// pausedStore runs before ahead of the first write of a key that contains of.
type pausedStore struct {
	store.Store
	of     string
	before func()
}

func (s *pausedStore) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	for _, w := range writes {
		if s.before != nil && strings.Contains(w.Key, s.of) {
			before := s.before
			s.before = nil
			before()
		}
	}
	return s.Store.Commit(ctx, writes)
}

func withPausedStore(t *testing.T, second **pipeline.Pipeline) (*fixture, *pausedStore) {
	paused := &pausedStore{}
	return newFixture(t, withSecond(second), func(c *pipeline.Config) {
		paused.Store = c.Lasting.Store
		c.Lasting.Store = paused
	}), paused
}

// endPeriod ends the accounting period, as a controller does.
func (f *fixture) endPeriod() {
	f.Helper()
	v, err := f.store.Commit(f.ctx, []store.Write{{
		Key: pipeline.FencePrefix + quota.PeriodNamespace + "/" + quota.PeriodLease, Value: []byte("x"), Expect: store.Any,
	}})
	if err != nil || v[0].Err != nil {
		f.Fatal(err, v)
	}
}

// recount counts the ConfigMaps of a quota, as the quota controller does.
func (f *fixture) recount(name string) {
	f.Helper()
	q := f.quotaNow(name)
	f.endPeriod()
	page, err := f.store.List(f.ctx, "/registry/configmaps/ns/", store.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	q.Status.Used = amounts("configmaps", fmt.Sprint(page.Count))
	f.mustStatus(q)
	f.seen(name)
}

// quotaNow returns a copy of a quota.
func (f *fixture) quotaNow(name string) *corev1.ResourceQuota {
	f.Helper()
	return get(f, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}).DeepCopy()
}

// A write that is paused for any time between its charge and its commit never exceeds the quota,
// though a count has taken its charge back meanwhile.
func TestPausedWriteStaysWithinQuota(t *testing.T) {
	var other *pipeline.Pipeline
	f, paused := withPausedStore(t, &other)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("configmaps", "1")})
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "second"}}
	paused.of = "/configmaps/"
	paused.before = func() {
		f.recount("q")
		if got := f.used("q", "configmaps"); got != "0" {
			t.Errorf("used after the count: %s, want 0", got)
		}
		target := f.target(m)
		target.Name = ""
		if _, err := other.Create(f.ctx, target, f.body(m), pipeline.WriteOptions{}); err != nil {
			t.Errorf("the other write: %v", err)
		}
	}
	_, err := f.create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "paused"}})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: q") {
		t.Errorf("the paused write: %v", err)
	}
	page, err := f.store.List(f.ctx, "/registry/configmaps/ns/", store.ListOptions{})
	if err != nil || page.Count != 1 {
		t.Errorf("%d ConfigMaps were stored (%v), want 1", page.Count, err)
	}
	if got := f.used("q", "configmaps"); got != "1" {
		t.Errorf("used: %s, want 1", got)
	}
}

// A write whose charge is taken back while it is paused is charged again.
func TestLostChargeIsRepeated(t *testing.T) {
	var other *pipeline.Pipeline
	f, paused := withPausedStore(t, &other)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("configmaps", "1")})
	paused.of = "/configmaps/"
	paused.before = func() { f.recount("q") }
	f.mustCreate(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}})
	if got := f.used("q", "configmaps"); got != "1" {
		t.Errorf("used: %s, want 1", got)
	}
}

// A write is not refused because of its own lost charge: it waits until that is taken back.
func TestLostChargeFillsNoQuota(t *testing.T) {
	var other *pipeline.Pipeline
	f, paused := withPausedStore(t, &other)
	f.quota("q", corev1.ResourceQuotaSpec{Hard: amounts("configmaps", "1")})
	counted := make(chan struct{})
	paused.of = "/configmaps/"
	paused.before = func() {
		q := f.quotaNow("q")
		f.endPeriod()
		q.Status.Used = amounts("configmaps", "0")
		go func() { defer close(counted); f.mustStatus(q) }()
	}
	f.mustCreate(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}})
	<-counted
}
