package core

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/resource"
)

func podColumns() []metav1.TableColumnDefinition {
	spec, status := corev1.PodSpec{}, corev1.PodStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
		column.Text("Status", "The aggregate status of the containers in this pod."),
		column.Text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
		column.AgeColumn(),
		column.Wide("IP", column.Doc(status, "podIP")),
		column.Wide("Node", column.Doc(spec, "nodeName")),
		column.Wide("Nominated Node", column.Doc(status, "nominatedNodeName")),
		column.Wide("Readiness Gates", column.Doc(spec, "readinessGates")),
	}
}

func podCells(o resource.Object) []any {
	p := o.(*corev1.Pod)
	s := summarize(p)
	return []any{
		fmt.Sprintf("%d/%d", s.ready, s.total), s.reason, s.restartsText(), column.Age(p.CreationTimestamp),
		column.Or(podIP(p), column.None),
		column.Or(p.Spec.NodeName, column.None),
		column.Or(p.Status.NominatedNodeName, column.None),
		readinessGates(p),
	}
}

// summary is the state of a pod for its row.
type summary struct {
	reason       string
	ready, total int
	restarts     int32
	lastRestart  metav1.Time
}

// podReasonLost was set by older node lifecycle controllers.
const podReasonLost = "NodeLost"

func summarize(p *corev1.Pod) summary {
	s := summary{reason: string(p.Status.Phase), total: len(p.Spec.Containers)}
	if p.Status.Reason != "" {
		s.reason = p.Status.Reason
	}
	if c := condition(p, corev1.PodScheduled); c != nil && c.Reason == corev1.PodReasonSchedulingGated {
		s.reason = corev1.PodReasonSchedulingGated
	}
	initializing := s.addInit(p)
	if c := condition(p, corev1.PodInitialized); !initializing || c != nil && c.Status == corev1.ConditionTrue {
		s.addContainers(p)
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == podReasonLost:
			s.reason = string(corev1.PodUnknown)
		case p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed:
			s.reason = "Terminating"
		}
	}
	return s
}

func condition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// addInit counts the init containers and reports whether one of them still keeps the pod from
// starting. Sidecars count like ordinary containers.
func (s *summary) addInit(p *corev1.Pod) (initializing bool) {
	stays := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if sidecar(&p.Spec.InitContainers[i]) {
			stays[p.Spec.InitContainers[i].Name] = true
			s.total++
		}
	}
	var restarts, sidecarRestarts int32
	var last, sidecarLast metav1.Time
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		restarts += c.RestartCount
		later(&last, c)
		if stays[c.Name] {
			sidecarRestarts += c.RestartCount
			later(&sidecarLast, c)
		}
		t := c.State.Terminated
		switch {
		case initializing:
		case t != nil && t.ExitCode == 0:
		case stays[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
		default:
			initializing = true
			s.reason = "Init:" + initReason(c, i, len(p.Spec.InitContainers))
			s.restarts, s.lastRestart = restarts, last
		}
	}
	if !initializing {
		s.restarts, s.lastRestart = sidecarRestarts, sidecarLast
	} else if c := condition(p, corev1.PodInitialized); c != nil && c.Status == corev1.ConditionTrue {
		s.restarts, s.lastRestart = sidecarRestarts, sidecarLast
	}
	return initializing
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func initReason(c *corev1.ContainerStatus, i, total int) string {
	if t := c.State.Terminated; t != nil {
		return endReason(t)
	}
	if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" {
		return w.Reason
	}
	return fmt.Sprintf("%d/%d", i, total)
}

func endReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// addContainers counts the containers. The first one that is waiting or terminated determines the
// reason.
func (s *summary) addContainers(p *corev1.Pod) {
	running := false
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		s.restarts += c.RestartCount
		later(&s.lastRestart, c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.reason = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.reason = endReason(c.State.Terminated)
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.reason == "Completed" && running {
		s.reason = "NotReady"
		if c := condition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
			s.reason = "Running"
		}
	}
}

func later(last *metav1.Time, c *corev1.ContainerStatus) {
	if t := c.LastTerminationState.Terminated; t != nil && last.Before(&t.FinishedAt) {
		*last = t.FinishedAt
	}
}

func (s *summary) restartsText() string {
	n := strconv.Itoa(int(s.restarts))
	if s.restarts != 0 && !s.lastRestart.IsZero() {
		n += " (" + duration.HumanDuration(time.Since(s.lastRestart.Time)) + " ago)"
	}
	return n
}

func readinessGates(p *corev1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return column.None
	}
	open := 0
	for _, g := range p.Spec.ReadinessGates {
		if c := condition(p, g.ConditionType); c != nil && c.Status == corev1.ConditionTrue {
			open++
		}
	}
	return fmt.Sprintf("%d/%d", open, len(p.Spec.ReadinessGates))
}
