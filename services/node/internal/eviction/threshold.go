package eviction

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal names something that a node can run out of.
type Signal string

// The signals. AllocatableMemory is what the pods' cgroup has left of its limit; the kubelet
// derives its threshold from that of MemoryAvailable.
const (
	MemoryAvailable   Signal = "memory.available"
	AllocatableMemory Signal = "allocatableMemory.available"
	NodeFSAvailable   Signal = "nodefs.available"
	ImageFSAvailable  Signal = "imagefs.available"
	NodeFSInodesFree  Signal = "nodefs.inodesFree"
	ImageFSInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
)

// signals are all signals, in the order in which shortages are acted on.
var signals = []Signal{MemoryAvailable, AllocatableMemory, NodeFSAvailable, ImageFSAvailable, NodeFSInodesFree, ImageFSInodesFree, PIDAvailable}

// Resources that are no resources of containers.
const (
	resourceInodes corev1.ResourceName = "inodes"
	resourcePIDs   corev1.ResourceName = "pids"
)

// Resource returns the resource that a signal measures, as events and messages name it.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable, AllocatableMemory:
		return corev1.ResourceMemory
	case NodeFSInodesFree, ImageFSInodesFree:
		return resourceInodes
	case PIDAvailable:
		return resourcePIDs
	}
	return corev1.ResourceEphemeralStorage
}

// Condition returns the node condition that a shortage causes.
func (s Signal) Condition() corev1.NodeConditionType {
	switch s.Resource() {
	case corev1.ResourceMemory:
		return corev1.NodeMemoryPressure
	case resourcePIDs:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// Value is an amount of a resource: a quantity, or a share of the capacity.
type Value struct {
	Quantity *resource.Quantity
	// Share is used if Quantity is nil.
	Share float64
}

// Of returns the amount for a capacity.
func (v Value) Of(capacity int64) resource.Quantity {
	if v.Quantity != nil {
		return v.Quantity.DeepCopy()
	}
	return *resource.NewQuantity(int64(v.Share*float64(capacity)), resource.BinarySI)
}

// Threshold is what should be left of a resource.
type Threshold struct {
	Signal Signal
	Value  Value
	// Reclaim is how much more than Value is made free once the node acts.
	Reclaim Value
	// Grace is how long the threshold must be met before the node acts; 0 for a hard
	// threshold.
	Grace time.Duration
}

// Hard reports whether the node acts at once.
func (t Threshold) Hard() bool { return t.Grace == 0 }

// Policy is what a node keeps free, and how it ends pods to get there.
type Policy struct {
	// Thresholds are in the order in which they are acted on.
	Thresholds []Threshold
	// MaxPodGrace bounds the grace period of pods that are evicted for a soft threshold.
	// Negative means the pod's own.
	MaxPodGrace time.Duration
	// Transition is how long a condition stays true after its last threshold was met.
	Transition time.Duration
}

// Reserved returns what hard thresholds take away from a node's capacity.
func (p *Policy) Reserved(capacity corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, t := range p.Thresholds {
		if !t.Hard() || t.Signal != MemoryAvailable && t.Signal != NodeFSAvailable {
			continue
		}
		name := t.Signal.Resource()
		have := capacity[name]
		q := t.Value.Of(have.Value())
		if q.Cmp(have) > 0 {
			q = have.DeepCopy()
		}
		out[name] = q
	}
	return out
}

// String formats a value as flags have it.
func (v Value) String() string {
	if v.Quantity != nil {
		return v.Quantity.String()
	}
	return strconv.FormatFloat(100*v.Share, 'g', 6, 64) + "%"
}

// Configuration returns the policy as the fields of a kubelet's configuration.
func (p *Policy) Configuration() map[string]any {
	hard, soft, grace, reclaim := map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	for _, t := range p.Thresholds {
		if t.Signal == AllocatableMemory {
			continue // derived
		}
		s := string(t.Signal)
		if t.Reclaim.Quantity != nil || t.Reclaim.Share > 0 {
			reclaim[s] = t.Reclaim.String()
		}
		if t.Hard() {
			hard[s] = t.Value.String()
			continue
		}
		soft[s], grace[s] = t.Value.String(), t.Grace.String()
	}
	return map[string]any{
		"evictionHard": hard, "evictionSoft": soft, "evictionSoftGracePeriod": grace, "evictionMinimumReclaim": reclaim,
		"evictionMaxPodGracePeriod": int(p.MaxPodGrace / time.Second), "evictionPressureTransitionPeriod": p.Transition.String(),
	}
}

// defaults are the kubelet's hard thresholds.
var defaults = []string{"memory.available<100Mi", "nodefs.available<10%", "nodefs.inodesFree<5%", "imagefs.available<15%", "imagefs.inodesFree<5%"}

// Flags are the flags of a Policy, as the kubelet has them, and --disk-reserve.
type Flags struct {
	hard, soft, grace, reclaim []string
	maxPodGrace                int32
	transition                 time.Duration
	diskReserve                string
	// hardGiven is true if --eviction-hard replaces the defaults.
	hardGiven func() bool
}

const (
	flagHard    = "eviction-hard"
	flagSoft    = "eviction-soft"
	flagGrace   = "eviction-soft-grace-period"
	flagReclaim = "eviction-minimum-reclaim"
	flagReserve = "disk-reserve"
)

// AddFlags adds the flags to a flag set.
func AddFlags(fs *pflag.FlagSet) *Flags {
	f := &Flags{hardGiven: func() bool { return fs.Changed(flagHard) }}
	fs.StringSliceVar(&f.hard, flagHard, defaults, "thresholds below which the node evicts pods at once (memory.available<100Mi,nodefs.available<10%); a list replaces all defaults")
	fs.StringSliceVar(&f.soft, flagSoft, nil, "thresholds below which the node evicts pods after a grace period (memory.available<1.5Gi)")
	fs.StringSliceVar(&f.grace, flagGrace, nil, "grace period of each threshold of --eviction-soft (memory.available=1m30s)")
	fs.Int32Var(&f.maxPodGrace, "eviction-max-pod-grace-period", 0, "the most seconds that pods evicted for a soft threshold have to end; negative for the pods' own grace period")
	fs.StringSliceVar(&f.reclaim, flagReclaim, nil, "how much more than a threshold is made free (memory.available=200Mi,nodefs.available=5%)")
	fs.DurationVar(&f.transition, "eviction-pressure-transition-period", 5*time.Minute, "how long the node reports pressure after the last threshold was met")
	fs.StringVar(&f.diskReserve, flagReserve, "", "the hard threshold of nodefs.available and imagefs.available (10% or 1Gi), unless --eviction-hard names them")
	return f
}

// Parse returns the policy, or an error that names the flag at fault.
func (f *Flags) Parse() (*Policy, error) {
	hard, err := thresholds(flagHard, f.hard)
	if err != nil {
		return nil, err
	}
	if err := f.reserve(hard); err != nil {
		return nil, err
	}
	soft, err := thresholds(flagSoft, f.soft)
	if err != nil {
		return nil, err
	}
	if err := f.graces(soft); err != nil {
		return nil, err
	}
	if _, given := hard[AllocatableMemory]; !given {
		if t, ok := hard[MemoryAvailable]; ok {
			hard[AllocatableMemory] = Threshold{Signal: AllocatableMemory, Value: t.Value}
		}
	}
	if err := f.reclaims(hard, soft); err != nil {
		return nil, err
	}
	if f.transition < 0 {
		return nil, fmt.Errorf("--eviction-pressure-transition-period %s: must not be negative", f.transition)
	}
	p := &Policy{MaxPodGrace: time.Duration(f.maxPodGrace) * time.Second, Transition: f.transition}
	for _, s := range signals {
		for _, from := range []map[Signal]Threshold{hard, soft} {
			if t, ok := from[s]; ok {
				p.Thresholds = append(p.Thresholds, t)
			}
		}
	}
	return p, nil
}

// reserve applies --disk-reserve to the hard thresholds.
func (f *Flags) reserve(hard map[Signal]Threshold) error {
	if f.diskReserve == "" {
		return nil
	}
	v, err := parseValue(f.diskReserve)
	if err != nil {
		return fmt.Errorf("--%s %q: %w", flagReserve, f.diskReserve, err)
	}
	for _, s := range []Signal{NodeFSAvailable, ImageFSAvailable} {
		if _, named := hard[s]; named && f.hardGiven() {
			continue
		}
		delete(hard, s)
		if v != nil {
			hard[s] = Threshold{Signal: s, Value: *v}
		}
	}
	return nil
}

// graces sets the grace periods of soft thresholds.
func (f *Flags) graces(soft map[Signal]Threshold) error {
	given := map[Signal]bool{}
	for _, text := range f.grace {
		signal, value, err := split(flagGrace, text, "=", "memory.available=1m30s")
		if err != nil {
			return err
		}
		t, ok := soft[signal]
		if !ok {
			return fmt.Errorf("--%s %q: --%s has no threshold for this signal", flagGrace, text, flagSoft)
		}
		if t.Grace, err = time.ParseDuration(value); err != nil || t.Grace < 0 {
			return fmt.Errorf("--%s %q: want a duration that is not negative, for instance memory.available=1m30s", flagGrace, text)
		}
		soft[signal], given[signal] = t, true
	}
	for _, s := range signals {
		if _, ok := soft[s]; ok && !given[s] {
			return fmt.Errorf("--%s: %s needs a grace period: --%s %s=1m30s", flagSoft, s, flagGrace, s)
		}
	}
	return nil
}

// reclaims sets the minimum reclaims of thresholds.
func (f *Flags) reclaims(all ...map[Signal]Threshold) error {
	for _, text := range f.reclaim {
		signal, value, err := split(flagReclaim, text, "=", "nodefs.available=500Mi")
		if err != nil {
			return err
		}
		v, err := parseValue(value)
		if err != nil {
			return fmt.Errorf("--%s %q: %w", flagReclaim, text, err)
		}
		found := false
		for _, m := range all {
			for _, s := range []Signal{signal, AllocatableMemory} {
				t, ok := m[s]
				if !ok || s != signal && signal != MemoryAvailable {
					continue
				}
				found = true
				if v != nil {
					t.Reclaim = *v
					m[s] = t
				}
			}
		}
		if !found {
			return fmt.Errorf("--%s %q: neither --%s nor --%s has a threshold for this signal", flagReclaim, text, flagHard, flagSoft)
		}
	}
	return nil
}

// thresholds parses a list of thresholds. Those of 0% and 100% are left out: they stand for
// none.
func thresholds(flag string, list []string) (map[Signal]Threshold, error) {
	out := map[Signal]Threshold{}
	named := map[Signal]bool{}
	for _, text := range list {
		signal, value, err := split(flag, text, "<", "memory.available<100Mi")
		if err != nil {
			return nil, err
		}
		if named[signal] {
			return nil, fmt.Errorf("--%s %q: the signal has another threshold", flag, text)
		}
		named[signal] = true
		v, err := parseValue(value)
		if err != nil {
			return nil, fmt.Errorf("--%s %q: %w", flag, text, err)
		}
		if v != nil {
			out[signal] = Threshold{Signal: signal, Value: *v}
		}
	}
	return out, nil
}

// split splits an element of a flag into its signal and value.
func split(flag, text, operator, example string) (Signal, string, error) {
	name, value, ok := strings.Cut(strings.TrimSpace(text), operator)
	if !ok || name == "" || value == "" {
		return "", "", fmt.Errorf("--%s %q: want SIGNAL%sVALUE, for instance %s", flag, text, operator, example)
	}
	s := Signal(strings.TrimSpace(name))
	if strings.HasPrefix(name, "containerfs.") {
		return "", "", fmt.Errorf("--%s %q: containerfs is the same disk as imagefs; set the threshold of imagefs", flag, text)
	}
	if !slices.Contains(signals, s) {
		return "", "", fmt.Errorf("--%s %q: signal %q is none of %s", flag, text, s, list(signals))
	}
	return s, strings.TrimSpace(value), nil
}

func list(all []Signal) string {
	var out []string
	for _, s := range all {
		out = append(out, string(s))
	}
	return strings.Join(out, ", ")
}

var errValue = errors.New("want a percentage from 0% to 100% or a size that is not negative, for instance 10% or 1Gi")

// parseValue parses a percentage or a quantity. It returns nil for 0 and for 100%.
func parseValue(text string) (*Value, error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(p >= 0 && p <= 100) {
			return nil, errValue
		}
		if p == 0 || p == 100 {
			return nil, nil
		}
		return &Value{Share: p / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return nil, errValue
	}
	if q.IsZero() {
		return nil, nil
	}
	return &Value{Quantity: &q}, nil
}
