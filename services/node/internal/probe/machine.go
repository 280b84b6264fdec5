package probe

import corev1 "k8s.io/api/core/v1"

// Kind is the purpose of a probe.
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

// machine turns the outcomes of one probe into a verdict. The verdict changes only after as
// many equal outcomes in a row as the probe's thresholds require.
type machine struct {
	kind Kind
	spec *corev1.Probe
	// passed and failed are the verdict. Until the first verdict, both may be false.
	passed, failed bool
	last           bool
	run            int32
}

// newMachine returns a machine in Kubernetes' initial state: alive, not ready, not started.
// For readiness and startup probes, before is the verdict that is known from an earlier
// agent.
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

// observe records one outcome and reports whether the verdict changed.
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

// over reports whether the probe need not run again for its instance.
func (m *machine) over() bool {
	switch m.kind {
	case Startup:
		return m.passed || m.failed
	case Liveness:
		return m.failed
	}
	return false
}
