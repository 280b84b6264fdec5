package endpointslice

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "svc", Labels: map[string]string{"team": "a"}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, ClusterIP: "10.96.0.9", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

func pod(i int, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprintf("u%d", i))},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.244.%d.%d", i/250, i%250),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}, {IP: fmt.Sprintf("fd00::%d", i+1)}}
	for _, f := range change {
		f(p)
	}
	return p
}

func notReady(p *corev1.Pod)    { p.Status.Conditions = nil }
func terminating(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }

func nodes(name string) *corev1.Node {
	if name != "n1" {
		return nil
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "z1"}}}
}

func TestEndpointConditions(t *testing.T) {
	publish := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
	tests := []struct {
		name                        string
		svc                         *corev1.Service
		pod                         *corev1.Pod
		ready, serving, terminating bool
		absent                      bool
	}{
		{name: "ready", svc: service(), pod: pod(1), ready: true, serving: true},
		{name: "not ready", svc: service(), pod: pod(1, notReady)},
		{name: "not ready but published", svc: service(publish), pod: pod(1, notReady), ready: true},
		{name: "ending", svc: service(), pod: pod(1, terminating), serving: true, terminating: true},
		{name: "ending but published", svc: service(publish), pod: pod(1, terminating), ready: true, serving: true, terminating: true},
		{name: "finished", svc: service(publish), pod: pod(1, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), absent: true},
		{name: "without an address", svc: service(publish), pod: pod(1, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }), absent: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan := Plan(tt.svc, []*corev1.Pod{tt.pod}, nil, nodes)
			if len(plan.Create) != 1 {
				t.Fatalf("plan %+v", plan)
			}
			if tt.absent {
				if n := len(plan.Create[0].Endpoints); n != 0 {
					t.Errorf("%d endpoints", n)
				}
				return
			}
			c := plan.Create[0].Endpoints[0].Conditions
			if *c.Ready != tt.ready || *c.Serving != tt.serving || *c.Terminating != tt.terminating {
				t.Errorf("ready %v, serving %v, terminating %v", *c.Ready, *c.Serving, *c.Terminating)
			}
		})
	}
}

func TestSliceContents(t *testing.T) {
	headless := service(func(s *corev1.Service) {
		s.Spec.ClusterIP = corev1.ClusterIPNone
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		s.Spec.Ports[0].TargetPort = intstr.FromString("web")
		near := corev1.ServiceTrafficDistributionPreferClose
		s.Spec.TrafficDistribution = &near
	})
	named := func(port int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: port}}
			p.Spec.Hostname, p.Spec.Subdomain = p.Name, "web"
		}
	}
	plan := Plan(headless, []*corev1.Pod{pod(1, named(8080)), pod(2, named(9090)), pod(3)}, nil, nodes)
	// Of each family: two ports, and one pod that has neither.
	if len(plan.Create) != 6 {
		t.Fatalf("%d slices", len(plan.Create))
	}
	s := plan.Create[0]
	if s.AddressType != discoveryv1.AddressTypeIPv4 || s.Labels[discoveryv1.LabelServiceName] != "web" || s.Labels[discoveryv1.LabelManagedBy] != managedBy ||
		s.Labels["team"] != "a" || s.GenerateName != "web-" {
		t.Errorf("slice %+v", s)
	}
	if _, ok := s.Labels[corev1.IsHeadlessService]; !ok {
		t.Error("not marked as headless")
	}
	e := s.Endpoints[0]
	if *s.Ports[0].Port != 8080 || *s.Ports[0].Name != "http" || *e.Hostname != "p1" || *e.Zone != "z1" || *e.NodeName != "n1" ||
		e.TargetRef.Name != "p1" || e.Hints == nil || e.Hints.ForZones[0].Name != "z1" {
		t.Errorf("endpoint %+v of %+v", e, s.Ports)
	}
	if v6 := plan.Create[3]; v6.AddressType != discoveryv1.AddressTypeIPv6 || v6.Endpoints[0].Addresses[0] != "fd00::2" {
		t.Errorf("slice of IPv6: %+v", v6)
	}
}

// apply carries a plan out on a set of slices.
func apply(have map[string]*discoveryv1.EndpointSlice, p Actions, serial *int) {
	for _, s := range p.Create {
		*serial++
		s.Name = fmt.Sprintf("web-%04d", *serial)
		have[s.Name] = s
	}
	for _, s := range p.Update {
		have[s.Name] = s
	}
	for _, s := range p.Delete {
		delete(have, s.Name)
	}
}

func list(have map[string]*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range have {
		out = append(out, s)
	}
	return out
}

// Whatever happens, the slices hold each endpoint once, in slices of at most 100,
// and a second look finds nothing to do.
func TestSlicesHoldEachEndpointOnce(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	svc := service()
	have := map[string]*discoveryv1.EndpointSlice{}
	live := map[int]*corev1.Pod{}
	serial, written := 0, 0
	for step := range 120 {
		for range rng.IntN(60) {
			i := rng.IntN(400)
			switch rng.IntN(4) {
			case 0:
				delete(live, i)
			case 1:
				live[i] = pod(i, notReady)
			default:
				live[i] = pod(i)
			}
		}
		if step == 100 {
			clear(live)
		}
		var pods []*corev1.Pod
		for _, p := range live {
			pods = append(pods, p)
		}
		plan := Plan(svc, pods, list(have), nodes)
		written += len(plan.Create) + len(plan.Update)
		apply(have, plan, &serial)
		seen := map[string]bool{}
		for _, s := range have {
			if len(s.Endpoints) > maxEndpoints {
				t.Fatalf("%d endpoints in a slice", len(s.Endpoints))
			}
			for _, e := range s.Endpoints {
				if seen[e.Addresses[0]] {
					t.Fatalf("%s twice", e.Addresses[0])
				}
				seen[e.Addresses[0]] = true
			}
		}
		if len(seen) != len(live) || len(have) == 0 {
			t.Fatalf("%d endpoints of %d pods in %d slices", len(seen), len(live), len(have))
		}
		if again := Plan(svc, pods, list(have), nodes); len(again.Create)+len(again.Update)+len(again.Delete) > 0 {
			t.Fatalf("step %d: nothing changed, but %+v", step, again)
		}
	}
}

func TestOneNewPodIsOneWrite(t *testing.T) {
	svc := service()
	have := map[string]*discoveryv1.EndpointSlice{}
	serial := 0
	var pods []*corev1.Pod
	for i := range 250 {
		pods = append(pods, pod(i))
	}
	apply(have, Plan(svc, pods, nil, nodes), &serial)
	if len(have) != 3 {
		t.Fatalf("%d slices for 250", len(have))
	}
	plan := Plan(svc, append(pods, pod(300)), list(have), nodes)
	if len(plan.Create) != 0 || len(plan.Update) != 1 || len(plan.Delete) != 0 {
		t.Errorf("plan: %d created, %d updated, %d deleted", len(plan.Create), len(plan.Update), len(plan.Delete))
	}
	plan = Plan(service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }), pods, list(have), nodes)
	if len(plan.Delete) != 3 || len(plan.Create) != 0 {
		t.Errorf("of an external name: %+v", plan)
	}
}
