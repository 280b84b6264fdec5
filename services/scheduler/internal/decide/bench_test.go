package decide

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

func newEnv() *plugin.Env {
	return &plugin.Env{Cluster: state.New(), DefaultSelector: func(*state.Pod) labels.Selector { return labels.Everything() }}
}

func testNode(i, zones int) *corev1.Node {
	name := fmt.Sprintf("node-%05d", i)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%zones),
		}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			"cpu": resource.MustParse("4"), "memory": resource.MustParse("32Gi"), "pods": resource.MustParse("110"),
		}},
	}
}

func testPod(i int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("pod-%05d", i), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "pause", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("500Mi")},
		}}}},
	}
}

var web = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}

func term(key string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: web}
}

// The workloads of Kubernetes' own benchmark of its scheduler.
var workloads = []struct {
	name        string
	nodes, pods int
	change      func(i int, p *corev1.Pod)
}{
	{"Basic", 1000, 5000, func(int, *corev1.Pod) {}},
	{"Basic", 5000, 10000, func(int, *corev1.Pod) {}},
	{"EachPodDifferent", 5000, 2000, func(i int, p *corev1.Pod) { p.Labels["pod"] = fmt.Sprint(i) }},
	{"NodeAffinity", 5000, 10000, func(_ int, p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{"zone-0", "zone-1"}}}}},
		}}}
	}},
	{"PodAffinity", 5000, 5000, func(_ int, p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term(corev1.LabelTopologyZone)}}}
	}},
	{"PodAntiAffinity", 5000, 2000, func(_ int, p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term(corev1.LabelHostname)}}}
	}},
	{"PreferredPodAffinity", 5000, 5000, func(_ int, p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 1, PodAffinityTerm: term(corev1.LabelHostname)}}}}
	}},
	{"PreferredPodAntiAffinity", 5000, 5000, func(_ int, p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 1, PodAffinityTerm: term(corev1.LabelHostname)}}}}
	}},
	{"TopologySpreading", 5000, 5000, func(_ int, p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 5, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: web}}
	}},
	{"PreferredTopologySpreading", 5000, 5000, func(_ int, p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 5, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: web}}
	}},
	{"Daemons", 15000, 30000, func(i int, p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{fmt.Sprintf("node-%05d", i%15000)}}}}},
		}}}
	}},
	{"Unschedulable", 5000, 10000, func(i int, p *corev1.Pod) {
		if i%2 == 0 {
			p.Spec.Containers[0].Resources.Requests["cpu"] = resource.MustParse("9")
		}
	}},
}

// BenchmarkDecide measures decisions, including the update of the state after each.
func BenchmarkDecide(b *testing.B) {
	for _, w := range workloads {
		b.Run(fmt.Sprintf("%s/%dNodes_%dPods", w.name, w.nodes, w.pods), func(b *testing.B) {
			objects := make([]*corev1.Pod, w.pods)
			for i := range objects {
				objects[i] = testPod(i)
				w.change(i, objects[i])
			}
			b.ReportAllocs()
			bound := 0
			for b.Loop() {
				env := newEnv()
				for i := range w.nodes {
					env.SetNode(testNode(i, 3))
				}
				e := New(env)
				for _, o := range objects {
					p := state.NewPod(o)
					if v := e.Decide(p); v.Node != nil {
						env.SetPod(p.On(v.Node.Name))
						bound++
					}
				}
			}
			b.ReportMetric(float64(w.pods)*float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
			b.ReportMetric(float64(bound)/float64(b.N), "bound")
		})
	}
}
