package why

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// networkPolicy explains what a policy does: which pods it isolates, who may reach them, and whom they
// may reach. It is a problem if it selects no pods, or if a rule can match nothing.
func (w *World) networkPolicy(p *networkingv1.NetworkPolicy) *Answer {
	ref := refOf("NetworkPolicy", p)
	pods := w.matching(p.Namespace, &p.Spec.PodSelector)
	if len(pods) == 0 {
		a := problem(SelectsNothing, "its podSelector matches no pod that can be isolated in its namespace")
		a.spec(ref, "podSelector: %s", metav1.FormatLabelSelector(&p.Spec.PodSelector))
		a.next("correct the podSelector, or the labels of the pod template")
		return a
	}
	names := make([]string, len(pods))
	for i, pod := range pods {
		names[i] = pod.Name
	}
	a := healthy("it isolates %s: %s", plural(len(pods), "pod", "pods"), strings.Join(names[:min(len(names), 5)], ", "))
	check := func(direction string, rules []policyRule, verb string) {
		if len(rules) == 0 {
			a.spec(ref, "%s: nothing is allowed", direction)
		}
		for i, r := range rules {
			targets := pods
			texts, peers := w.peers(p.Namespace, r.peers)
			if direction == "egress" {
				targets = peers
			}
			a.spec(ref, "%s[%d]: %s %s, %s", direction, i, verb, orAnyone(texts), portsText(r.ports))
			for j := range r.peers {
				if _, found := w.peers(p.Namespace, r.peers[j:j+1]); r.peers[j].IPBlock == nil && len(found) == 0 && !w.Hidden["Namespace"] {
					a.fail(PeerMatchesNothing, "a peer of one of its rules matches no pod")
					a.status(ref, "%s[%d]: peer %d, %s, matches no pod", direction, i, j, peerText(&r.peers[j]))
				}
			}
			for _, port := range r.ports {
				if port.Port != nil && port.Port.Type == intstr.String && len(targets) > 0 && !anyPort(targets, port.Port.StrVal) {
					a.fail(PortMismatch, "no pod that one of its rules leads to has a container port named %q", port.Port.StrVal)
					a.next("give a containerPort this name, or use a port number")
				}
			}
		}
	}
	if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
		var rules []policyRule
		for _, r := range p.Spec.Ingress {
			rules = append(rules, policyRule{r.From, r.Ports})
		}
		check("ingress", rules, "from")
	}
	if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		var rules []policyRule
		for _, r := range p.Spec.Egress {
			rules = append(rules, policyRule{r.To, r.Ports})
		}
		check("egress", rules, "to")
	}
	if a.Healthy {
		a.next("the other policies of these pods allow more: kubectl get netpol%s", namespaced(p.Namespace))
	}
	return a
}

type policyRule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// fail makes the answer a problem. The first cause stays.
func (a *Answer) fail(code Code, format string, args ...any) {
	if a.Healthy {
		a.Healthy, a.Code, a.Cause = false, code, fmt.Sprintf(format, args...)
	}
}

// matching returns the pods of a namespace that a policy can select: those that have not ended and
// have a network of their own.
func (w *World) matching(namespace string, selector *metav1.LabelSelector) (out []*corev1.Pod) {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil
	}
	for _, p := range w.Pods {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if p.Namespace == namespace && !p.Spec.HostNetwork && !ended && s.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// peers returns what describes the peers, and the pods among them.
func (w *World) peers(namespace string, list []networkingv1.NetworkPolicyPeer) (texts []string, pods []*corev1.Pod) {
	for i := range list {
		p := &list[i]
		texts = append(texts, peerText(p))
		if p.IPBlock != nil {
			continue
		}
		selector := p.PodSelector
		if selector == nil {
			selector = &metav1.LabelSelector{}
		}
		if p.NamespaceSelector == nil {
			pods = append(pods, w.matching(namespace, selector)...)
			continue
		}
		where, err := metav1.LabelSelectorAsSelector(p.NamespaceSelector)
		if err != nil {
			continue
		}
		for _, n := range w.Namespaces {
			if where.Matches(labels.Set(n.Labels)) {
				pods = append(pods, w.matching(n.Name, selector)...)
			}
		}
	}
	return texts, pods
}

func peerText(p *networkingv1.NetworkPolicyPeer) string {
	selector := func(s *metav1.LabelSelector) string {
		if text := metav1.FormatLabelSelector(s); s != nil && len(s.MatchLabels)+len(s.MatchExpressions) > 0 {
			return text
		}
		return "any"
	}
	switch {
	case p.IPBlock != nil && len(p.IPBlock.Except) > 0:
		return p.IPBlock.CIDR + " except " + strings.Join(p.IPBlock.Except, ", ")
	case p.IPBlock != nil:
		return p.IPBlock.CIDR
	case p.NamespaceSelector == nil:
		return "pods " + selector(p.PodSelector)
	}
	return "pods " + selector(p.PodSelector) + " of namespaces " + selector(p.NamespaceSelector)
}

func orAnyone(texts []string) string {
	if len(texts) == 0 {
		return "anyone"
	}
	return strings.Join(texts, " or ")
}

func portsText(ports []networkingv1.NetworkPolicyPort) string {
	if len(ports) == 0 {
		return "any port"
	}
	var out []string
	for _, p := range ports {
		text := "TCP"
		if p.Protocol != nil {
			text = string(*p.Protocol)
		}
		if p.Port != nil {
			text += " " + p.Port.String()
		}
		if p.EndPort != nil {
			text += fmt.Sprintf("-%d", *p.EndPort)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}
