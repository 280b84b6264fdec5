package why

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// evicted explains a pod that its node ended, or refused, for lack of a resource or because the
// pod exceeded a limit of local storage.
func (w *World) evicted(p *corev1.Pod, ref Ref) *Answer {
	message := strings.TrimSpace(p.Status.Message)
	has := func(part string) bool { return strings.Contains(message, part) }
	var a *Answer
	switch {
	case has("The node had condition: "):
		a = problem(PodRefused, "node %s refused it because it was under pressure: %s", p.Spec.NodeName, strings.TrimPrefix(message, "Pod was rejected: "))
		if has("MemoryPressure]") {
			a.next("give it a memory request: under memory pressure a node refuses only pods without requests and limits")
		}
		a.next("wait until the node is no longer under pressure, or find out why it is: keel why node/%s", p.Spec.NodeName)
	case has("Usage of EmptyDir volume"):
		a = problem(StorageLimit, "it was evicted from node %s for exceeding the sizeLimit of a volume: %s", p.Spec.NodeName, message)
		a.next("raise the volume's sizeLimit, or find out what fills it")
	case has("local ephemeral storage limit"), has("Pod ephemeral local storage usage"):
		a = problem(StorageLimit, "it was evicted from node %s for exceeding its limit of ephemeral-storage: %s", p.Spec.NodeName, message)
		a.next("raise resources.limits.ephemeral-storage, or write less: logs, files of the container and emptyDirs count")
	default:
		a = problem(PodEvicted, "it was evicted from node %s: %s", p.Spec.NodeName, message)
		switch {
		case has("low on resource: pids"):
			a.next("find out what starts so many processes; node --pod-max-pids limits them for each pod")
		default:
			a.next("set requests that match what the pod uses, so that it is not the first to go")
		}
	}
	if c := condition(p, corev1.DisruptionTarget); c != nil && c.Status == corev1.ConditionTrue {
		a.status(ref, "DisruptionTarget is True since %s: %s", w.ago(c.LastTransitionTime), c.Reason)
	}
	w.seen(a, ref, p.UID, "Evicted")
	if n := find(w.Nodes, Ref{Name: p.Spec.NodeName}); n != nil && a.Code != StorageLimit {
		for _, t := range pressures {
			if c := nodeCondition(n, t); c != nil && c.Status == corev1.ConditionTrue {
				a.status(refOf("Node", n), "node %s: %s is True since %s: %s", n.Name, c.Type, w.ago(c.LastTransitionTime), c.Message)
			}
		}
	}
	return a
}

// pressures are the conditions of a node that is short of a resource.
var pressures = []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// forkErrors are what shells and language runtimes print when they cannot start a process or a
// thread because of a limit.
var forkErrors = []string{
	"can't fork", "fork: retry", "fork: Resource temporarily unavailable", "fork: Cannot allocate memory", "pthread_create failed: Resource temporarily unavailable",
	"unable to create native thread", "newosproc", "can't start new thread",
}

// outOfProcesses reports whether the log of a container's last instance shows that it could not
// start processes or threads.
func (w *World) outOfProcesses(p *corev1.Pod, container string) bool {
	text := w.Logs[p.Name+"/"+container]
	return slices.ContainsFunc(forkErrors, func(e string) bool { return strings.Contains(text, e) })
}
