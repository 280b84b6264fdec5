package fence_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/internal/fence"
)

const second = time.Second

func TestPromiseInAnnotations(t *testing.T) {
	p := fence.Promise{After: 12 * second, Pods: []types.UID{"b", "a"}}
	annotations := p.Put(nil)
	got, ok := fence.ParsePromise(annotations)
	if !ok || got.After != p.After || !slices.Equal(got.Pods, []types.UID{"a", "b"}) {
		t.Errorf("read %+v, %v from %v", got, ok, annotations)
	}
	annotations["else"] = "kept"
	if annotations = (fence.Promise{After: second}).Put(annotations); len(annotations) != 1 || annotations["else"] != "kept" {
		t.Errorf("a promise for no pods leaves %v", annotations)
	}
	for _, text := range []string{"", "soon", "0s", "-3s"} {
		if p, ok := fence.ParsePromise(map[string]string{fence.AfterAnnotation: text, fence.PodsAnnotation: "a"}); ok {
			t.Errorf("duration %q: read %+v", text, p)
		}
	}
}

func TestPodsStopAtTheDeadline(t *testing.T) {
	n := &fence.Node{}
	if err := n.Enter("a", 0); !errors.Is(err, fence.ErrLapsed) {
		t.Errorf("entered without a lease: %v", err)
	}
	n.Renewed(n.Send(10*second, 12*second), 11*second)
	if err := n.Enter("a", 12*second); err != nil {
		t.Fatal(err)
	}
	r := n.Send(13*second, 12*second)
	if !slices.Equal(r.Promise.Pods, []types.UID{"a"}) {
		t.Errorf("the promise names %v", r.Promise.Pods)
	}
	if stop := n.Check(22*second - 1); len(stop) != 0 {
		t.Errorf("stopped %v before the deadline", stop)
	}
	if err := n.Enter("b", 22*second); !errors.Is(err, fence.ErrLapsed) {
		t.Errorf("entered at the deadline: %v", err)
	}
	// The answer comes too late.
	if stop := n.Renewed(r, 22*second); !slices.Equal(stop, []types.UID{"a"}) {
		t.Errorf("stopped %v, want a", stop)
	}
	if err := n.Enter("a", 23*second); !errors.Is(err, fence.ErrStopped) {
		t.Errorf("a stopped pod entered: %v", err)
	}
	if err := n.Enter("b", 23*second); err != nil {
		t.Errorf("the renewed lease admits no pod: %v", err)
	}
	n.Leave("a")
	if err := n.Enter("a", 23*second); err != nil {
		t.Error(err)
	}
}

// TestUnansweredRenewalWithAShorterPromise checks the deadline that the control plane may
// count with, although the node got no answer.
func TestUnansweredRenewalWithAShorterPromise(t *testing.T) {
	n := &fence.Node{}
	n.Renewed(n.Send(0, 30*second), second)
	n.Send(2*second, 12*second)
	n.Send(5*second, 30*second)
	if d := n.Deadline(); d != 14*second {
		t.Errorf("deadline %v, want 14s", d)
	}
	n.Renewed(n.Send(8*second, 30*second), 9*second)
	if d := n.Deadline(); d != 38*second {
		t.Errorf("deadline %v after a success, want 38s", d)
	}
}

func TestSuccessorKeepsTheDeadline(t *testing.T) {
	n := &fence.Node{}
	n.Renewed(n.Send(0, 12*second), second)
	if err := n.Enter("a", second); err != nil {
		t.Fatal(err)
	}
	record := n.Record("boot-1")
	next := fence.Restore(record, "boot-1")
	if stop := next.Check(12*second - 1); len(stop) != 0 {
		t.Errorf("stopped %v before the deadline", stop)
	}
	if stop := next.Check(12 * second); !slices.Equal(stop, []types.UID{"a"}) {
		t.Errorf("stopped %v, want a", stop)
	}
	n.Enter("b", 2*second) //nolint:errcheck // it is admitted, as above.
	if stop := fence.Restore(n.Record("boot-1"), "boot-2").Check(3 * second); len(stop) == 0 {
		t.Error("pods go on after a reboot")
	}
}
