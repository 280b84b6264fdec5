package state

import (
	"math"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
)

// Pod is what the scheduler knows of a pod. It is immutable but for Started: a pod that
// changes becomes another Pod.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	Labels          labels.Set
	// Node is where the pod is bound or assumed to be; empty while it is pending.
	Node     string
	Priority int32
	Requests Resources
	// ScoreCPU and ScoreMemory are the requests, including assumed ones for containers
	// that request none.
	ScoreCPU, ScoreMemory int64
	Ports                 []Port
	Terminating           bool
	// Preempted is true if the scheduler is the reason why the pod terminates.
	Preempted bool
	// Started is when the node took the pod over, in nanoseconds since 1970; the greatest
	// value if it has not yet. No filter or score reads it.
	Started int64
	// Claims are the names of its PersistentVolumeClaims.
	Claims []string

	// Terms of affinity to other pods.
	RequiredAffinity, RequiredAntiAffinity   []Term
	PreferredAffinity, PreferredAntiAffinity []Term

	// Object is the whole pod while it is pending, nil afterwards.
	Object *corev1.Pod

	slot   int      // in its node's list
	groups []*Group // of its terms, as of an epoch
	epoch  uint64
}

// Port is a host port that a pod uses.
type Port struct {
	IP       string // "0.0.0.0" is every address
	Protocol corev1.Protocol
	Port     int32
}

// conflicts reports whether two host ports cannot be used on the same node.
func (p Port) conflicts(q Port) bool {
	const all = "0.0.0.0"
	return p.Port == q.Port && p.Protocol == q.Protocol && (p.IP == q.IP || p.IP == all || q.IP == all)
}

// Term is one term of affinity or anti-affinity, ready to be matched.
type Term struct {
	// ID is the same for equivalent terms.
	ID          string
	TopologyKey string
	Weight      int32 // of preferred terms
	Selector    labels.Selector
	Namespaces  sets.Set[string]
	// NamespaceSelector is nil if there is none.
	NamespaceSelector labels.Selector
}

// Matches reports whether the term selects a pod with these labels, in a namespace of
// that name and those labels.
func (t *Term) Matches(namespace string, namespaceLabels, podLabels labels.Set) bool {
	if !t.Namespaces.Has(namespace) && (t.NamespaceSelector == nil || !t.NamespaceSelector.Matches(namespaceLabels)) {
		return false
	}
	return t.Selector.Matches(podLabels)
}

// NewPod returns what the scheduler needs of a pod. The whole object is kept only while
// the pod is pending.
func NewPod(o *corev1.Pod) *Pod {
	p := &Pod{
		Namespace:   o.Namespace,
		Name:        o.Name,
		UID:         o.UID,
		Labels:      o.Labels,
		Node:        o.Spec.NodeName,
		Terminating: o.DeletionTimestamp != nil,
		Started:     math.MaxInt64,
	}
	if o.Status.StartTime != nil {
		p.Started = o.Status.StartTime.UnixNano()
	}
	p.Preempted = p.Terminating && slices.ContainsFunc(o.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
	})
	if o.Spec.Priority != nil {
		p.Priority = *o.Spec.Priority
	}
	p.Requests, p.ScoreCPU, p.ScoreMemory = requests(o)
	p.Ports = ports(o)
	for i := range o.Spec.Volumes {
		switch v := &o.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			p.Claims = append(p.Claims, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			p.Claims = append(p.Claims, o.Name+"-"+v.Name)
		}
	}
	if a := o.Spec.Affinity; a != nil && a.PodAffinity != nil {
		p.RequiredAffinity = terms(o, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		p.PreferredAffinity = weighted(o, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if a := o.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
		p.RequiredAntiAffinity = terms(o, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		p.PreferredAntiAffinity = weighted(o, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if p.Node == "" {
		p.Object = o
	}
	return p
}

// On returns the pod as bound to a node.
func (p *Pod) On(node string) *Pod {
	q := *p
	q.Node, q.Object, q.groups = node, nil, nil
	return &q
}

func ports(o *corev1.Pod) []Port {
	var out []Port
	read := func(cs []corev1.Container, sidecarsOnly bool) {
		for i := range cs {
			if sidecarsOnly && (cs[i].RestartPolicy == nil || *cs[i].RestartPolicy != corev1.ContainerRestartPolicyAlways) {
				continue
			}
			for _, cp := range cs[i].Ports {
				if cp.HostPort <= 0 {
					continue
				}
				p := Port{IP: cp.HostIP, Protocol: cp.Protocol, Port: cp.HostPort}
				if p.IP == "" {
					p.IP = "0.0.0.0"
				}
				if p.Protocol == "" {
					p.Protocol = corev1.ProtocolTCP
				}
				out = append(out, p)
			}
		}
	}
	read(o.Spec.Containers, false)
	read(o.Spec.InitContainers, true)
	return out
}

func terms(o *corev1.Pod, in []corev1.PodAffinityTerm) []Term {
	out := make([]Term, 0, len(in))
	for i := range in {
		out = append(out, term(o, &in[i], 0))
	}
	return out
}

func weighted(o *corev1.Pod, in []corev1.WeightedPodAffinityTerm) []Term {
	out := make([]Term, 0, len(in))
	for i := range in {
		if in[i].Weight != 0 {
			out = append(out, term(o, &in[i].PodAffinityTerm, in[i].Weight))
		}
	}
	return out
}

func term(o *corev1.Pod, in *corev1.PodAffinityTerm, weight int32) Term {
	t := Term{TopologyKey: in.TopologyKey, Weight: weight, Namespaces: sets.New(in.Namespaces...)}
	t.Selector = Selector(in.LabelSelector)
	if in.NamespaceSelector != nil {
		t.NamespaceSelector = Selector(in.NamespaceSelector)
	} else if len(in.Namespaces) == 0 {
		t.Namespaces.Insert(o.Namespace)
	}
	names := t.Namespaces.UnsortedList()
	sort.Strings(names)
	t.ID = in.TopologyKey + "\x00" + t.Selector.String() + "\x00" + strings.Join(names, ",")
	if _, nothing := t.Selector.Requirements(); !nothing {
		t.ID += "\x00nothing"
	}
	if t.NamespaceSelector != nil {
		t.ID += "\x00" + t.NamespaceSelector.String()
	}
	return t
}

// Selector parses a label selector. An invalid one matches nothing.
func Selector(in *metav1.LabelSelector) labels.Selector {
	s, err := metav1.LabelSelectorAsSelector(in)
	if err != nil {
		return labels.Nothing()
	}
	return s
}
