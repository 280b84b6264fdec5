package probe

import corev1 "k8s.io/api/core/v1"

// Kind is what a probe is for.
type Kind int

// The kinds of probes.
const (
	Startup Kind = iota
	Liveness
	Readiness
)

func (k Kind) String() string {
	return [...]string{"Startup", "Liveness", "Readiness"}[k]
}

// machine turns the outcomes of one probe into a verdict: it changes only after
// as many equal outcomes in a row as the thresholds want.
type machine struct {
	kind Kind
	spec *corev1.Probe
	// verdict: passed, or failed; a startup probe has neither at first.
	passed, failed bool
	last           bool
	run            int32
}

// newMachine begins as Kubernetes has it: alive, not ready, not started; or with
// what is known from before.
func newMachine(kind Kind, spec *corev1.Probe, before bool) *machine {
	m := &machine{kind: kind, spec: spec}
	switch kind {
	case Liveness:
		m.passed = true
	case Readiness, Startup:
		m.passed = before
	}
	return m
}

// observe takes one outcome and reports whether the verdict changed.
func (m *machine) observe(ok bool) bool {
	if m.run == 0 || m.last != ok {
		m.last, m.run = ok, 1
	} else {
		m.run++
	}
	threshold := max(m.spec.FailureThreshold, 1)
	if ok {
		threshold = max(m.spec.SuccessThreshold, 1)
	}
	if m.run < threshold {
		return false
	}
	changed := m.passed != ok || m.failed == ok
	m.passed, m.failed = ok, !ok
	return changed
}

// over says that the probe has nothing left to find out about its instance.
func (m *machine) over() bool {
	switch m.kind {
	case Startup:
		return m.passed || m.failed
	case Liveness:
		return m.failed
	}
	return false
}
